"""The engine: what it sees, what it says, and how progress is kept."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from l1_ref import checks
from l1_ref.checks import marks, messages
from l1_ref.checks.compare import Failure, difference, largest_difference, same
from l1_ref.checks.diagnosis import differing
from l1_ref.checks.engine import Exercise, Mistake, Probe, Property
from l1_ref.checks.observe import observe_call


def swap(pair: list, scale: float) -> list:
    return [scale * pair[1], scale * pair[0]]


def swap_in_place(pair, scale):
    pair[0], pair[1] = scale * pair[1], scale * pair[0]
    return list(pair)


SWAP = Exercise(
    name="swap",
    notebook="99_test",
    reference=swap,
    probes=(
        Probe("two numbers", lambda generator: {"pair": [1.0, 2.0], "scale": 1.0}),
        Probe("scaled", lambda generator: {"pair": [3.0, -1.0], "scale": 2.0}),
    ),
    mistakes=(
        Mistake("scale is left out", "the caller asked for it.", lambda pair, scale: [pair[1], pair[0]]),
        Mistake("the list is changed", "the caller still needs it.", swap_in_place),
    ),
    properties=(Property("the length stays", lambda f, pair, scale: len(f(pair, scale)) == 2),),
    hints=("one", "two", "three"),
)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / marks.MARKER).write_text("")
    monkeypatch.delenv("L1_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "_hints_taken", type(checks._hints_taken)())
    return tmp_path


# Verdicts.


def test_an_exercise_is_a_page_of_plain_code():
    assert SWAP.diagnose(lambda p, s: [p[1] * s, p[0] * s]).state == "solved"
    assert SWAP.diagnose(lambda p, s: p[::-1]).mistakes == ("scale is left out",)
    assert SWAP.diagnose(swap_in_place).state == "wrong"


def test_two_mistakes_are_both_named():
    def both(pair, scale):
        pair.reverse()
        return list(pair)

    assert SWAP.diagnose(both).mistakes == ("scale is left out", "the list is changed")


def test_a_reference_is_recognised_and_passes_as_given(capsys):
    assert SWAP.diagnose(swap).state == "given"
    SWAP(swap)
    assert capsys.readouterr().out == "✓ swap · given: this is the course's own version\n"


def test_a_broken_rule_alone_is_told():
    class Forgetful:
        n_calls = 0

        def __call__(self, pair, scale):
            self.n_calls += 1
            return swap(pair, scale) if self.n_calls <= 4 else []

    text = SWAP.diagnose(Forgetful()).text
    assert "a rule is broken: the length stays" in text


def test_the_smallest_failing_case_is_shown_where_nothing_is_known():
    text = SWAP.diagnose(lambda pair, scale: [0.0, 0.0]).text
    assert "swap(pair=[1.0, 2.0], scale=1)" in text
    assert "expected  [2.0, 1.0]     got  [0.0, 0.0]" in text
    assert 'hint: checks.hint("swap")' in text


def test_an_exception_shows_the_readers_own_line():
    def mine(x, dim):
        return torch.nn.functional.softmax(x, dim) + torch.ones(7, 7)  # my line

    text = checks.softmax.diagnose(mine).text
    assert "your code stopped with RuntimeError" in text
    assert "# my line" in text and "site-packages" not in text


def test_torchs_own_not_implemented_is_no_blank():
    def integers(x, dim):
        return torch.softmax(x.long(), dim)

    verdict = checks.softmax.diagnose(integers)
    assert verdict.state == "wrong" and "NotImplementedError" in verdict.text


@pytest.mark.parametrize("candidate", [None, 3, torch.ones(3), "softmax"])
def test_what_cannot_be_called_is_told(candidate):
    with pytest.raises(checks.CheckFailed, match=r"hand in the code itself, as in checks.softmax\(softmax\)"):
        checks.softmax(candidate)


def test_a_failure_is_shown_where_no_answer_came():
    def columns(x, dim):
        return x.exp() / x.exp().sum(1, keepdim=True) if x.ndim > 1 else x[:, None]

    text = checks.softmax.diagnose(columns).text
    assert "a value of type str" not in text and "got  None" not in text


def test_exact_answers_have_no_largest_difference():
    assert "(largest difference below" in SWAP.diagnose(lambda p, s: [p[1], p[0]]).text
    exercise = checks.EXERCISES["causal_mask"]
    text = exercise.diagnose(lambda T, S: torch.ones(T, S).triu().bool()).text
    assert "largest difference" not in text


def test_a_wrong_axis_is_told_by_its_name():
    text = checks.softmax.diagnose(lambda x, dim: torch.softmax(x, dim).sum(dim, keepdim=True)).text
    assert "V must be 3, not 1" in text


def test_a_wrong_dtype_is_told():
    text = checks.softmax.diagnose(lambda x, dim: torch.softmax(x.double(), dim)).text
    assert "dtype" in text and "expected  torch.float32     got  torch.float64" in text


def test_a_check_leaves_the_readers_random_numbers_threads_and_modes_alone():
    torch.manual_seed(5)
    before, n_threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        checks.softmax.diagnose(lambda x, dim: torch.rand_like(x))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == n_threads


def test_messages_are_the_same_on_every_run():
    assert len({checks.softmax.diagnose(lambda x, dim: torch.sigmoid(x)).text for _ in range(3)}) == 1


def unlike(exercise, a, b):
    return any(place for i in range(len(a)) for place in differing(exercise, i, a[i], b[i]))


@pytest.mark.parametrize("exercise", checks.EXERCISES.values(), ids=lambda exercise: exercise.name)
def test_no_two_mistakes_look_alike_and_none_looks_right(exercise):
    seen = [(m.name, exercise.observations(v)) for m in exercise.mistakes for v in (m.wrong, *m.versions)]
    right = exercise.observations(exercise.reference)
    for i, (name, one) in enumerate(seen):
        assert unlike(exercise, right, one), f"{name} cannot be told from the reference"
        for other_name, other in seen[:i]:
            assert other_name == name or unlike(exercise, other, one), f"{name} cannot be told from {other_name}"


@pytest.mark.parametrize("exercise", checks.EXERCISES.values(), ids=lambda exercise: exercise.name)
def test_an_exercise_explains_itself(exercise):
    assert len(exercise.mistakes) >= 5 and len(exercise.hints) == 3
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert all(mistake.why.endswith(".") for mistake in exercise.mistakes)
    assert exercise.tolerance == (1e-3 if exercise.name == "amp_train_step" else 1e-5)  # the last bit of a half


def test_the_catalogues_are_as_large_as_the_readme_says():
    known = [exercise for exercise in checks.EXERCISES.values() if exercise.notebook < "09"]
    assert len(known) == 51 and sum(len(exercise.mistakes) for exercise in known) > 1300
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "more than 1,300 in the 51\n  exercises of notebooks 00 to 08" in readme


# What is seen.


def test_an_observation_holds_output_inputs_and_gradients():
    seen = observe_call(lambda x, y: x * y, {"x": torch.tensor([2.0]), "y": 3.0}, gradient=True, seed=0)
    assert list(seen) == ["output", "the input x", "the gradient of x"]
    assert seen["output"].item() == 6 and seen["the input x"] == "as it was"


def test_observing_does_not_touch_the_inputs():
    x = torch.ones(3)
    seen = observe_call(lambda x: x.mul_(2), {"x": x}, gradient=True, seed=0)
    assert seen["the input x"] == "changed in place" and torch.equal(x, torch.ones(3))


def test_sameness_of_special_values():
    nan, inf = math.nan, math.inf
    assert same(nan, nan, 1e-5) and same(inf, inf, 1e-5) and not same(inf, -inf, 1e-5)
    assert same(torch.tensor([nan, inf]), torch.tensor([nan, inf]), 1e-5)
    assert not same(torch.tensor([1.0]), torch.tensor([1]), 1e-5)
    assert not same(True, 1, 1e-5) and not same([1], (1,), 1e-5) and not same(None, 0, 1e-5)
    assert same(Failure(ValueError()), Failure(TypeError()), 1e-5) and not same(Failure(ValueError()), None, 1e-5)
    assert same({"a": [1.0]}, {"a": [1.0 + 1e-7]}, 1e-5) and not same({"a": 1}, {"b": 1}, 1e-5)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=5), st.floats(-1e-6, 1e-6))
def test_a_small_error_is_allowed_and_measured(values, error):
    a = torch.tensor(values, dtype=torch.float64)
    assert same(a, a + error, 1e-5)
    assert largest_difference(a, a + error) <= 1.1e-6


def test_a_difference_is_put_into_words():
    assert difference(torch.ones(2), None, "V").what.startswith("nothing came back")
    assert difference(torch.ones(2, 3), torch.ones(2), "B V").what == "shape: the number of axes must be 2, not 1"
    assert difference([1], (1,)).what == "type"
    assert difference(torch.zeros(9), torch.arange(9.0)).got == "… 3 4 5 6 7 8"


# Messages.


def test_ipython_shows_the_message_and_no_traceback():
    error = messages.CheckFailed("✗ x · wrong\n  details")
    assert error._render_traceback_() == ["✗ x · wrong\n  details"]
    error.shown = True
    assert error._render_traceback_() == ["not passed yet: see above"]


def test_a_cell_that_uses_a_blank_is_told_in_two_lines(monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    messages.tell_blanks_briefly()
    shell.run_cell(
        f"class Block:\n    def forward(self):\n        raise NotImplementedError('{messages.STUB_MESSAGE}')"
    )
    assert capsys.readouterr().out == ""
    done = shell.run_cell("b = Block()\ny = 1 + b.forward()")
    assert isinstance(done.error_in_exec, NotImplementedError)
    told = capsys.readouterr().out
    assert told == "· Block.forward · not written yet\n  needed in line 2: y = 1 + b.forward()\n"
    # Whatever else raises it has its traceback: torch, or a reader's own line in the cell itself.
    for code in ("import torch\ntorch.ones(3).to('meta').tolist()", "raise NotImplementedError('not written yet')"):
        shell.run_cell(code)
        assert "Traceback (most recent call last)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('checks.hint("sofmax")', "KeyError: no exercise is called 'sofmax'; did you mean 'softmax'?\n"),
        ("checks.sofmax(len)", "AttributeError: no exercise is called 'sofmax'; did you mean 'softmax'?\n"),
        ('checks.hint("softmax", 4)', "ValueError: n must be in 1..3, got n=4\n"),
        ('checks.hint("softmax", True)', "ValueError: n must be in 1..3, got n=True\n"),
        ('checks.hint(["softmax"])', "KeyError: no exercise is called ['softmax']; did you mean 'softmax'?\n"),
    ],
)
def test_a_slip_in_a_call_of_checks_is_told_in_one_line(code, told, capsys):
    InteractiveShell().run_cell(f"from l1_ref import checks\n{code}")
    assert capsys.readouterr().out == told


def test_html_is_shown_in_a_notebook_and_escapes_what_it_shows(monkeypatch):
    shown = []
    monkeypatch.setattr(messages, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    error = messages.failure("✗ x · <b>wrong</b>\n  a < b")
    assert error.shown
    assert "&lt;b&gt;wrong" in shown[0]["text/html"] and "a &lt; b" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == str(error)


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: InteractiveShell.__new__(InteractiveShell))
    assert not messages.failure("text").shown


@pytest.mark.parametrize(
    ("gap", "words"), [(0.0, "1e-6"), (3e-8, "1e-6"), (2e-7, "1e-6"), (2e-5, "1e-4"), (0.002, "1e-2")]
)
def test_the_largest_difference_is_a_power_of_ten(gap, words):
    assert messages._within(gap) == f" (largest difference below {words})"
    assert messages._within(None) == ""


# Hints, giving, progress.


def test_hints_come_one_by_one(workspace, capsys):
    for _ in range(4):
        checks.hint("softmax")
    checks.hint("softmax", n=1)
    lines = capsys.readouterr().out.splitlines()
    last = 'that is the last; checks.show("softmax") shows our version, checks.give("softmax") hands it over'
    assert all(len(line) <= 88 for line in lines if line != last)
    assert [line if line == last else line[:11] for line in lines if not line.startswith("  ")] == [
        "hint 1 of 3", "hint 2 of 3", "hint 3 of 3", last, "hint 3 of 3", last, "hint 1 of 3",
    ]  # fmt: skip
    assert checks.progress_table()[0].hints == 3
    with pytest.raises(ValueError, match=r"n must be in 1..3, got n=4"):
        checks.hint("softmax", n=4)


def test_a_wrong_name_offers_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'softmax'"):
        checks.give("sofmax")
    with pytest.raises(AttributeError, match="did you mean 'softmax'"):
        _ = checks.softmaxx


def test_progress_is_kept_and_never_falls_back(workspace, capsys):
    def state():
        return checks.progress_table()[0].state

    assert state() == "open"
    with pytest.raises(checks.CheckFailed):
        checks.softmax(lambda x, dim: x)
    assert state() == "tried"
    checks.softmax(checks.give("softmax"))
    assert state() == "given"
    checks.softmax(torch.softmax)
    assert state() == "solved"
    with pytest.raises(checks.CheckFailed):
        checks.softmax(lambda x, dim: x)
    checks.give("softmax")
    assert checks.progress_table()[0] == marks.Row("00_start_here", "softmax", "solved", 3, 0)
    capsys.readouterr()
    checks.progress()
    first, *_, lead, after = capsys.readouterr().out.splitlines()
    assert first.split() == ["▸", "00_start_here", "✓·", "1", "of", "2", "solved"]
    assert lead.startswith(f"1 of {len(checks.EXERCISES)} solved; about ")
    assert after == "next: tempered_softmax in 00_start_here (easy, 5 min)"


def test_a_check_of_code_that_was_checked_before_is_a_try_only_where_it_changes_the_state(workspace):
    for state in ("wrong", "wrong", "solved", "solved", "wrong"):
        marks.record("softmax", state, again=True)
    assert checks.progress_table()[0] == marks.Row("00_start_here", "softmax", "solved", 2, 0)


def test_a_blank_is_no_try(workspace):
    def softmax(x, dim):
        raise NotImplementedError("not written yet")

    with pytest.raises(checks.CheckFailed):
        checks.softmax(softmax)
    assert checks.progress_table()[0].tries == 0


def test_a_folder_below_the_workspace_belongs_to_it(workspace, monkeypatch):
    (workspace / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(workspace / "deep" / "er")
    assert marks.find_workspace() == workspace


def test_nothing_is_written_outside_a_workspace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("L1_WORKSPACE", str(tmp_path / "missing"))
    checks.softmax(torch.softmax)
    assert list(tmp_path.iterdir()) == []
    checks.progress()
    assert "l1 learn makes one" in capsys.readouterr().out


def test_the_workspace_can_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("L1_WORKSPACE", str(tmp_path))
    checks.softmax(torch.softmax)
    assert json.loads((tmp_path / "progress.json").read_text())["exercises"]["softmax"]["state"] == "solved"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"exercises": {"softmax": 3}}', b'{"exercises": 1}']
)
def test_a_broken_progress_file_is_kept_aside(workspace, capsys, content):
    (workspace / "progress.json").write_bytes(content)
    (workspace / "progress.json.broken").write_bytes(b"an older one")
    checks.softmax(torch.softmax)
    assert checks.progress_table()[0].state == "solved"
    assert (workspace / "progress.json.broken1").read_bytes() == content
    assert (workspace / "progress.json.broken").read_bytes() == b"an older one"
    assert "kept as progress.json.broken1" in capsys.readouterr().err


def test_a_workspace_that_cannot_be_written_does_not_stop_a_check(workspace, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(marks, "write_atomic", refuse)
    checks.softmax(torch.softmax)
    captured = capsys.readouterr()
    assert captured.out.startswith("✓ softmax") and "progress was not saved" in captured.err
