"""What a reader asks to be shown: the progress as a picture and as text, and the reference with its paper."""

import inspect
import re
from functools import partial
from xml.etree import ElementTree

import pytest

from l1_ref import checks
from l1_ref.checks import marks, messages, showing
from l1_ref.checks.showing import Shown
from l1_ref.course import standing


def small_course() -> list[standing.Task]:
    return [
        standing.Task("00_a", "one", "solved", 2, 1, 10, "easy"),
        standing.Task("00_a", "two", "given", 0, 3, 5, "easy"),
        standing.Task("01_<b>", "three's", "tried", 1, 0, 50, "hard"),
        standing.Task("01_<b>", "four", "open", 0, 0, 75, "medium"),
    ]


def told() -> tuple[dict, list[str]]:
    return standing.by_notebook(small_course()), standing.in_words(small_course())


# Progress.


def test_the_text_has_a_sign_an_exercise():
    assert showing.progress_lines(*told()).splitlines() == [
        "  00_a    ✓→  1 of 2 solved",
        "▸ 01_<b>  ✗·  0 of 2 solved",
        "✓ solved  → given  ✗ tried  · open",
        "1 of 4 solved, 1 given; about 2 h 5 min of exercises left",
        "next: three's in 01_<b> (hard, 50 min)",
    ]


def test_the_picture_is_well_formed_and_says_in_words_what_it_shows():
    picture = ElementTree.fromstring(showing.progress_picture(*told()))
    svg = picture.find("svg")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Progress. 00_a: 1 of 2 solved; 01_<b>: 0 of 2 solved"
    assert [title.text for title in svg.iter("title")] == [
        "one: solved, 2 tries, 1 hint", "two: given, 3 hints", "three's: tried, 1 try", "four: open",
    ]  # fmt: skip
    assert [group.find("text").text for group in svg.findall("g")] == ["✓", "→", "✗", "·"]
    assert [div.text for div in picture.findall("div")[1:]] == told()[1]


def test_no_two_states_differ_by_colour_alone():
    strokes = [re.sub(r"#\w+", "", style) for style in showing._SQUARES.values()]
    assert len(set(showing.SIGNS.values())) == len(set(strokes)) == len(showing._SQUARES) == 4


def test_a_picture_is_readable_on_a_light_and_on_a_dark_page():
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    picture = showing.progress_picture(*told())
    assert set(re.findall(r"<text[^>]* fill='([^']+)'", picture)) == {"currentColor", "#fff"}
    for colour in re.findall(r"stroke='(#\w{6})'", picture):
        for page in ("#ffffff", "#111111"):
            low, high = sorted((luminance(colour), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, page)  # WCAG's rule for graphics


def test_all_done_says_so():
    done = [standing.Task("00_a", "one", "solved", 1, 0, 10, "easy")]
    assert standing.in_words(done) == ["1 of 1 solved: all is done"]
    assert "▸" not in showing.progress_lines(standing.by_notebook(done), [])
    assert (standing.next_task(done), standing.minutes_left(done)) == (None, 0)


def test_an_exercise_without_a_source_has_no_minutes():
    (task,) = standing.tasks([marks.Row("my_class", "standardise", "open", 0, 0)])
    assert (task.minutes, task.difficulty) == (0, "")
    assert standing.in_words([task])[1] == "next: standardise in my_class"


def test_every_exercise_of_the_course_has_its_minutes():
    assert all(task.minutes > 0 and task.difficulty for task in standing.tasks(checks.progress_table()))


@pytest.mark.parametrize(("minutes", "words"), [(0, "0 min"), (59, "59 min"), (60, "1 h"), (597, "9 h 57 min")])
def test_minutes_are_written_for_a_person(minutes, words):
    assert standing.duration(minutes) == words


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    """Return what a notebook is given to show."""
    found: list[dict] = []
    monkeypatch.setattr(messages, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: found.append(data))
    return found


def test_a_notebook_shows_the_picture_and_keeps_the_text(tmp_path, shown):
    (tmp_path / marks.MARKER).write_text("")
    checks.progress(tmp_path)
    (data,) = shown
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/html"].count("<title>") == len(checks.EXERCISES)
    assert f"0 of {len(checks.EXERCISES)} solved" in data["text/plain"]


# The reference.


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Be in no workspace, with nothing asked for yet."""
    monkeypatch.delenv("L1_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "_asked_to_show", set())
    return tmp_path


def test_the_answer_is_shown_to_who_asks_twice_or_is_sure(nowhere, capsys):
    checks.show("softmax")
    assert capsys.readouterr().out == "this shows the answer to softmax, our version; the same call again shows it\n"
    checks.show("softmax")
    asked = capsys.readouterr().out
    checks._asked_to_show.clear()
    checks.show("softmax", sure=True)
    assert asked == capsys.readouterr().out
    name, paper, place, empty, *source = asked.splitlines()
    assert name == "softmax · the course's own version" and paper.startswith("Source: Bridle 1990, ") and empty == ""
    assert re.fullmatch(r"In l1_ref\.attention, line \d+ \(.*attention\.py:\d+\)", place)
    assert source[0].startswith("def softmax(") and source[-1].startswith("    return ")
    assert list(nowhere.iterdir()) == []


def test_of_what_is_solved_nothing_can_be_given_away(nowhere, capsys):
    (nowhere / marks.MARKER).write_text("")
    marks.record("softmax", "solved")
    before = (nowhere / marks.FILE).read_bytes()
    checks.show("softmax")
    assert "def softmax(" in capsys.readouterr().out
    assert (nowhere / marks.FILE).read_bytes() == before  # to look is no try, and nothing is handed in


def test_a_notebook_colours_the_code_to_its_own_theme(nowhere, shown):
    checks.show("adamw_step", sure=True)
    (data,) = shown
    head, code = data["text/markdown"].split("\n\n```python\n", 1)
    assert head.startswith("adamw\\_step · the course's own version  \nSource: Loshchilov and Hutter 2019")
    assert code.startswith(("def adamw_step(", "@")) and code.endswith("\n```")
    assert data["text/plain"].startswith("adamw_step · ")


@pytest.mark.parametrize("exercise", checks.EXERCISES.values(), ids=lambda each: each.name)
def test_every_reference_has_its_source_and_all_of_its_paper(exercise):
    seen = Shown(exercise)
    assert exercise.name in seen.source and seen.line > 0
    said = (inspect.getdoc(exercise.reference) or "").partition("\nSource: ")[2].partition("\n\n")[0]
    assert seen.paper == ("Source: " + " ".join(said.split()) if said else "")
    assert seen.paper == "" or seen.paper.endswith(".")


def test_code_that_is_in_no_file_is_told():
    space = {"__name__": "a_class"}
    exec("def mine(x):\n    return x\n", space)

    class Mine:
        name, reference = "mine", partial(space["mine"])

    assert Shown(Mine).text == "mine · the course's own version\nIn a_class\nits source is in no file"
    assert "```" not in Shown(Mine).markdown


def test_a_source_that_holds_a_fence_gets_a_longer_one():
    fenced = Shown(checks.EXERCISES["softmax"])
    fenced.source = 'x = "````"'
    assert fenced.markdown.endswith('`````python\nx = "````"\n`````')


def test_show_is_no_name_for_an_exercise():
    with pytest.raises(ValueError, match="an exercise needs a name of its own, got 'show'"):
        checks.add(checks.Exercise("show", "my_class", len, (), (), (), ("a", "b", "c")))
