"""The kinds of code that a check can run: modules, in-place functions, functions that draw, and training steps."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l1_ref import L1Config, checks
from l1_ref.checks import messages, pictures
from l1_ref.checks.compare import Rough, difference, same, short
from l1_ref.checks.engine import Exercise, Mistake, Probe, Property
from l1_ref.checks.observe import observe_draws, observe_in_place, observe_step

HINTS = ("one", "two", "three")


# Modules.


class Bottleneck(nn.Module):
    """Narrow, bend, widen, drop; the switches are mistakes."""

    def __init__(self, config, *, bend=True, drop=True, always=False, bias=True):
        super().__init__()
        self.config, self.bend, self.drop, self.always = config, bend, drop, always
        self.down = nn.Linear(config.n_embd, 3, bias=bias)
        self.up = nn.Linear(3, config.n_embd)

    def forward(self, x):
        y = self.down(x)
        y = self.up(y.relu() if self.bend else y)
        return F.dropout(y, self.config.dropout, self.training or self.always) if self.drop else y


def hidden(*shape, dropout=0.0):
    def build(generator):
        config = L1Config(n_embd=4, n_heads=2, dropout=dropout)
        return {"config": config, "x": torch.randn(*shape, 4, generator=generator)}

    return build


BOTTLENECK = Exercise(
    name="Bottleneck",
    notebook="99_test",
    reference=Bottleneck,
    init=("config",),
    probes=(Probe("one row", hidden(1, 1), "B T C"), Probe("a batch", hidden(2, 3, dropout=0.5), "B T C")),
    mistakes=(
        Mistake("no bend", "two linear maps are one.", partial(Bottleneck, bend=False)),
        Mistake("no dropout", "it regularises.", partial(Bottleneck, drop=False)),
        Mistake("dropout in eval mode too", "an answer must not be left to chance.", partial(Bottleneck, always=True)),
        Mistake("no bias", "the config has one.", partial(Bottleneck, bias=False)),
    ),
    properties=(Property("each row by itself", lambda f, x: torch.allclose(f(x)[:1], f(x[:1]), atol=1e-5)),),
    hints=HINTS,
)


class Functional(nn.Module):
    """The same in another style: other order, other initialisation, a buffer, dropout by hand."""

    def __init__(self, config):
        super().__init__()
        self.up, self.down = nn.Linear(3, config.n_embd), nn.Linear(config.n_embd, 3)
        nn.init.xavier_normal_(self.up.weight)
        self.register_buffer("keep", torch.tensor(1 - config.dropout))

    def forward(self, x):
        y = F.linear(torch.clamp(x @ self.down.weight.T + self.down.bias, min=0), self.up.weight, self.up.bias)
        if self.training:
            y = y * torch.bernoulli(torch.full_like(y, float(self.keep))) / self.keep
        return y


def changed(**members):
    """Return a class made of Functional with other members."""
    return type("Mine", (Functional,), members)


def test_another_style_of_module_is_right():
    for seed in range(10):
        assert BOTTLENECK.diagnose(Functional, seed).state == "solved"


@pytest.mark.parametrize("bend", [True, False])
@pytest.mark.parametrize("drop", [True, False])
def test_mistakes_of_a_module_are_named_alone_and_together(bend, drop):
    def forward(self, x):
        y = self.down(x)
        y = self.up(torch.maximum(y, torch.zeros(())) if bend else y)
        return nn.Dropout(0.5 if self.keep < 1 else 0.0).train(self.training)(y) if drop else y

    verdict = BOTTLENECK.diagnose(changed(forward=forward))
    expected = ["no bend"] * (not bend) + ["no dropout"] * (not drop)
    assert verdict.mistakes == tuple(expected), verdict.text
    assert ("these two changes" in verdict.text) == (len(expected) == 2)


def test_dropout_that_never_stops_is_a_mistake_with_a_name():
    verdict = BOTTLENECK.diagnose(changed(forward=lambda self, x: F.dropout(self.up(self.down(x).relu()), 0.5)))
    assert verdict.mistakes == () and "two calls on the same input differ" in verdict.text  # without dropout too

    def forward(self, x):
        return F.dropout(self.up(self.down(x).relu()), float(1 - self.keep))

    assert BOTTLENECK.diagnose(changed(forward=forward)).mistakes == ("dropout in eval mode too",)


def test_another_share_of_dropout_is_told():
    def forward(self, x):
        return F.dropout(self.up(self.down(x).relu()), float(1 - self.keep) / 2, self.training)

    text = BOTTLENECK.diagnose(changed(forward=forward)).text
    assert "the share of zeros in training is not right" in text and "got  about 0.25" in text


def test_dropout_that_does_not_rescale_is_told():
    def forward(self, x):
        y = self.up(self.down(x).relu())
        return y * torch.bernoulli(torch.full_like(y, float(self.keep))) if self.training else y

    assert "in training" in BOTTLENECK.diagnose(changed(forward=forward)).text


def test_wrong_names_of_parameters_are_told():
    class Renamed(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.narrow, self.up = nn.Linear(4, 3), nn.Linear(3, 4)

        def forward(self, x):
            return self.up(self.narrow(x).relu())

    text = BOTTLENECK.diagnose(Renamed).text
    assert "missing: down.bias, down.weight; not expected: narrow.bias, narrow.weight" in text


def test_a_wrong_shape_of_a_parameter_is_told():
    def init(self, config):
        Functional.__init__(self, config)
        self.down = nn.Linear(4, 5)

    text = BOTTLENECK.diagnose(changed(__init__=init)).text
    assert "RuntimeError" in text or "other value: down.bias, down.weight" in text


def test_a_mask_kept_as_a_parameter_is_told():
    def init(self, config):
        Functional.__init__(self, config)
        self.scale = nn.Parameter(torch.ones(()))

    assert "not expected: scale" in BOTTLENECK.diagnose(changed(__init__=init)).text


def test_parameters_that_should_be_two_are_told():
    class Pair(nn.Module):
        def __init__(self, config, tied=False):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            if tied:
                self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    exercise = Exercise("Pair", "99", Pair, BOTTLENECK.probes, (), (), HINTS, init=("config",))
    other_way = type("Other", (Pair,), {"forward": lambda self, x: x @ self.a.weight.T @ self.b.weight.T})
    assert exercise.diagnose(other_way).passed
    assert "missing: b.weight" in exercise.diagnose(partial(Pair, tied=True)).text


def test_an_object_in_place_of_a_class_is_told():
    verdict = BOTTLENECK.diagnose(Functional(L1Config(n_embd=4, n_heads=2)))
    assert "hand in the class itself, as in checks.Bottleneck(Bottleneck)" in verdict.text
    assert "an nn.Module must be built, got a value of type int" in BOTTLENECK.diagnose(lambda config: 3).text


def test_the_reference_is_recognised_behind_a_thin_cover():
    assert BOTTLENECK.diagnose(type("Bare", (Bottleneck,), {})).state == "given"
    assert BOTTLENECK.diagnose(partial(Bottleneck)).state == "given"
    assert BOTTLENECK.diagnose(changed(__wrapped__=Bottleneck)).state == "solved"  # a claim alone is not believed
    broken = type(
        "Broken", (Bottleneck,), {"__init__": lambda self, config: Bottleneck.__init__(self, config, bend=False)}
    )
    assert BOTTLENECK.diagnose(broken).mistakes == ("no bend",)
    own = type("Own", (Bottleneck,), {"forward": Functional.forward, "keep": torch.tensor(0.5)})
    assert BOTTLENECK.diagnose(own).state != "given"


def test_an_error_of_a_module_shows_the_readers_line():
    def forward(self, x):
        return self.up(x)  # too wide

    text = BOTTLENECK.diagnose(changed(forward=forward)).text
    assert "# too wide" in text and "mat1 and mat2" in text
    assert "Bottleneck(config=L1Config(n_heads=2, n_embd=4, dropout=0.0))(x=" in text


def test_a_module_without_forward_is_no_blank():
    class Empty(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.up, self.down = nn.Linear(3, config.n_embd), nn.Linear(config.n_embd, 3)

    verdict = BOTTLENECK.diagnose(Empty)
    assert verdict.state == "wrong" and 'missing the required "forward" function' in verdict.text


def test_a_module_that_never_answers_gets_no_name_of_a_mistake():
    verdict = BOTTLENECK.diagnose(changed(forward=lambda self, x: self.down(x).no_such_thing()))
    assert verdict.mistakes == () and "AttributeError" in verdict.text


def test_an_output_of_whole_numbers_is_told():
    verdict = BOTTLENECK.diagnose(changed(forward=lambda self, x: Functional.forward(self, x).long()))
    assert verdict.state == "wrong" and "dtype" in verdict.text


def test_whole_numbers_are_compared_exactly_and_rough_ones_with_nan():
    assert not same(20000, 20001, 1e-5) and not same(True, 1, 1e-5) and same(3, 3, 1e-5)
    nan = float("nan")
    assert same(Rough(nan, 0.1), Rough(nan, 0.1), 1e-5) and not same(Rough(nan, 0.1), Rough(0.5, 0.1), 1e-5)


def test_a_batch_on_another_axis_is_told():
    verdict = BOTTLENECK.diagnose(changed(forward=lambda self, x: Functional.forward(self, x).transpose(0, 1)))
    assert "the axes must be in the order B T C, not T B C" in verdict.text


def test_an_array_in_place_of_a_tensor_is_told():
    text = checks.softmax.diagnose(lambda x, dim: x.softmax(dim).detach().numpy()).text
    assert "output: type" in text and "got  a value of type ndarray" in text


def test_sparse_gradients_are_compared_as_dense_ones():
    dense = torch.tensor([[0.0, 1.0]])
    assert same(dense.to_sparse(), dense, 1e-6) and not same(dense.to_sparse(), 2 * dense, 1e-6)


def test_a_rule_of_a_module_gets_the_module_ready_to_call():
    def forward(self, x):
        return Functional.forward(self, x) + (1e-3 * x.mean(0) if len(x) == 3 else 0)

    rule = Property("three rows as one", lambda f, x: torch.allclose(f(x.repeat(3, 1, 1))[:1], f(x[:1]), atol=1e-5))
    exercise = Exercise("Bottleneck", "99", Bottleneck, BOTTLENECK.probes[:1], (), (rule,), HINTS, init=("config",))
    assert exercise.diagnose(Functional).passed
    assert "a rule is broken: three rows as one" in exercise.diagnose(changed(forward=forward)).text


# Functions that work in place.


def decay(p, rate):
    with torch.no_grad():
        p.mul_(1 - rate)


def parameter(generator):
    return {"p": nn.Parameter(torch.randn(3, generator=generator)), "rate": 0.1}


DECAY = Exercise(
    name="decay",
    notebook="99_test",
    reference=decay,
    probes=(Probe("a parameter", parameter, "C"),),
    mistakes=(Mistake("it grows", "decay shrinks.", lambda p, rate: p.data.mul_(1 + rate) and None),),
    properties=(),
    hints=HINTS,
    observe=observe_in_place,
)


def test_an_in_place_function_is_judged_by_what_it_leaves():
    assert DECAY.diagnose(lambda p, rate: p.data.copy_(p.data * (1 - rate)) * 0 or None).state == "wrong"  # returns

    def by_hand(p, rate):
        for i in range(len(p)):
            p.data[i] -= rate * p.data[i]

    assert DECAY.diagnose(by_hand).state == "solved"
    assert "p afterwards is not right" in DECAY.diagnose(lambda p, rate: None).text


def test_inputs_that_share_something_share_it_in_the_copy_too():
    def link(model, p):
        assert model.weight is p

    def build(generator):
        model = nn.Linear(2, 2)
        return {"model": model, "p": model.weight}

    exercise = Exercise("link", "99", link, (Probe("linked", build),), (), (), HINTS, observe=observe_in_place)
    assert all("output" in seen and seen["output"] is None for seen in exercise.observations(lambda m, p: link(m, p)))


# Functions that draw.


def pick(n, generator):
    return torch.randint(n, (4,), generator=generator)


DRAWS = partial(
    observe_draws, describe=lambda out, inputs: (tuple(out.shape), out.dtype), outcomes=lambda out, inputs: out.tolist()
)
PICK = Exercise(
    name="pick",
    notebook="99_test",
    reference=pick,
    probes=(Probe("five", lambda generator: {"n": 5, "generator": None}),),
    mistakes=(
        Mistake("the generator is ignored", "a run must be repeatable.", lambda n, generator: torch.randint(n, (4,))),
        Mistake("the last is never drawn", "all must be.", lambda n, generator: pick(n - 1, generator)),
        Mistake("always the same", "a draw must differ.", lambda n, generator: torch.arange(4)),
    ),
    properties=(),
    hints=HINTS,
    observe=DRAWS,
)


def test_draws_are_judged_by_their_distribution_and_not_by_equal_numbers():
    def by_multinomial(n, generator=None):
        return torch.multinomial(torch.ones(n), 4, replacement=True, generator=generator)

    def by_rand(n, generator=None):
        return (torch.rand(4, generator=generator) * n).long()

    for seed in range(10):
        assert PICK.diagnose(by_multinomial, seed).passed and PICK.diagnose(by_rand, seed).passed


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (lambda n, generator: torch.rand(4).mul(n).long(), "the generator is ignored"),
        (lambda n, generator: torch.rand(4, generator=generator).mul(n - 1).long(), "the last is never drawn"),
        (lambda n, generator: torch.tensor([0, 1, 2, 3]), "always the same"),
        (lambda n, generator: torch.randint(n, (4,), generator=torch.Generator().manual_seed(1)), None),
        (lambda n, generator: torch.rand(4, generator=generator).square().mul(n).long(), None),
        (lambda n, generator: torch.randint(n, (5,), generator=generator), None),
    ],
)
def test_wrong_draws_are_told(candidate, words):
    for seed in range(10):
        verdict = PICK.diagnose(candidate, seed)
        assert verdict.state == "wrong" and (words is None or verdict.mistakes == (words,)), verdict.text


# Training steps.


def step(model, x, y, optimizer, scaler):
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


class Scaler:
    """A stand-in with the methods of torch's GradScaler, for a machine without a GPU."""

    def scale(self, loss):
        return loss * 8

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad /= 8

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def clip_before_unscale(model, x, y, optimizer, scaler):
    optimizer.zero_grad(set_to_none=True)
    loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), max_norm=0.1)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def no_zero_grad(model, x, y, optimizer, scaler):
    optimizer.zero_grad = lambda *_, **__: None
    return step(model, x, y, optimizer, scaler)


def training(generator):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
            p.grad = torch.ones_like(p)  # left over from a step before
    x, y = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)
    return {"model": model, "x": x, "y": y, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "scaler": Scaler()}


STEP = Exercise(
    name="step",
    notebook="99_test",
    reference=step,
    probes=(Probe("one step", training),),
    mistakes=(
        Mistake("clipped before unscaling", "the norm is then that of the scaled gradients.", clip_before_unscale),
        Mistake("the old gradients are kept", "they would add up.", no_zero_grad),
    ),
    properties=(),
    hints=HINTS,
    observe=observe_step,
)


def test_a_step_is_judged_by_the_order_of_its_calls_and_by_what_it_leaves():
    text = STEP.diagnose(lambda *a: copy.copy(clip_before_unscale)(*a)).text
    assert "looks like: clipped before unscaling" in text and "[the order of the calls]" in text

    def same_order(model, x, y, optimizer, scaler):
        optimizer.zero_grad()
        out = model(x)
        loss = ((out - y) ** 2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.1)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    assert STEP.diagnose(same_order).state == "solved"


def test_what_a_step_forgets_is_told():
    def forgets_update(model, x, y, optimizer, scaler):
        scaler.update = lambda: None
        return step(model, x, y, optimizer, scaler)

    def keeps_the_graph(model, x, y, optimizer, scaler):
        step(model, x, y, optimizer, scaler)
        return F.mse_loss(model(x), y)

    assert "the order of the calls is not right" in STEP.diagnose(forgets_update).text
    assert (
        "the loss keeps its graph" in str(STEP.diagnose(keeps_the_graph).text)
        or not STEP.diagnose(keeps_the_graph).passed
    )


# What every check does.


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr("l1_ref.checks.engine.limited", partial(checks.engine.limited, 0.2))

    def endless(x, dim):
        while True:
            x = x + 1

    text = checks.softmax.diagnose(endless).text
    assert "your code stopped with TimeoutError" in text and "does a loop never end?" in text
    assert "x = x + 1" in text or "while True:" in text


def test_what_the_code_prints_is_kept_for_the_message(capsys):
    def talks(x, dim):
        print("x has", x.ndim, "axes")
        return x

    text = checks.softmax.diagnose(talks).text
    assert "printed   x has 1 axes" in text and text.count("printed") == 3
    assert capsys.readouterr().out == ""


def test_swapped_axes_are_told_by_name():
    found = difference(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3), "B T C")
    assert found.what == "shape: the axes must be in the order B T C, not B C T"


def test_a_config_is_shown_by_what_differs_from_its_defaults():
    assert short(L1Config(n_embd=12, n_heads=3)) == "L1Config(n_heads=3, n_embd=12)"
    assert short(L1Config(n_embd=12, n_heads=3, n_inner=7)) == "L1Config(n_heads=3, n_embd=12, n_inner=7)"


def test_dicts_are_compared_key_by_key():
    found = difference({"a": 1, "b": 2}, {"a": 1, "c": 2})
    assert (found.what, found.expected, found.got) == ("missing: b; not expected: c", "{'b': 2}", "{'c': 2}")
    assert difference({"a": 1}, {"a": 2}).what == "other value: a"


def mask_exercise(picture=True):
    def build(generator):
        return {"n": 3}

    return Exercise(
        name="mask",
        notebook="99",
        reference=lambda n: torch.ones(n, n).tril().bool(),
        probes=(Probe("three", build, "T S", picture=picture),),
        mistakes=(),
        properties=(),
        hints=HINTS,
    )


def test_a_picture_shows_the_readers_matrix_beside_the_right_one():
    picture = mask_exercise().diagnose(lambda n: torch.ones(n, n).triu().bool()).picture
    assert picture.count("<rect") == 18 and "expected" in picture and "yours" in picture
    assert "aria-label='expected: 3 rows of 3; not zero at [0], [0, 1], [0, 1, 2]; yours: " in picture
    assert mask_exercise(picture=False).diagnose(lambda n: torch.ones(n, n).triu().bool()).picture == ""
    assert mask_exercise().diagnose(lambda n: None).picture == ""
    assert mask_exercise().diagnose(lambda n: torch.ones(n, n, n).bool()).picture == ""


def test_a_picture_holds_numbers_that_are_not_finite():
    svg = pictures.side_by_side({"a <b>": torch.tensor([[float("nan"), -1.0], [float("inf"), 0.5]])})
    assert "a &lt;b&gt;" in svg and ">nan<" in svg and ">inf<" in svg and svg.count("<rect") == 2


def test_the_picture_stands_below_the_message_in_html():
    assert messages.as_html("head\n  body", "<svg></svg>").endswith("<svg></svg></div>")


def test_the_exercise_of_the_readme_works_as_written():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import torch\n\nfrom l1_ref import checks.*?)```", readme, re.DOTALL)
    try:
        with pytest.raises(checks.CheckFailed, match="standardise · output is not right"):
            exec(code, {})
        assert checks.standardise.diagnose(lambda x: nn.functional.normalize(x)).state == "wrong"
        assert checks.standardise.diagnose(lambda x: x / x.std(1)[:, None]).mistakes == ("the mean is not subtracted",)
        assert checks.standardise.diagnose(lambda x: x.sub(x.mean(1, True)).div(x.std(1, keepdim=True))).passed
    finally:
        checks.EXERCISES.pop("standardise", None)


def test_a_teachers_exercise_can_be_added():
    try:
        assert checks.add(BOTTLENECK) is BOTTLENECK
        assert checks.Bottleneck is BOTTLENECK and checks.give("Bottleneck") is Bottleneck
        with pytest.raises(ValueError, match="'softmax', which is taken"):
            checks.add(Exercise("softmax", "99", Bottleneck, (), (), (), HINTS))
        with pytest.raises(ValueError, match="'hint', which is taken"):
            checks.add(Exercise("hint", "99", Bottleneck, (), (), (), HINTS))
    finally:
        checks.EXERCISES.pop("Bottleneck", None)
