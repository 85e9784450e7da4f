"""Networks at the ends of what numbers can be: a student without NaN, or an error that names the layer."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.allocation.channels import PruneError
from datafree.models import ModelError
from datafree.recipe import presets
from datafree.signals.moving import MatchingError
from datafree.solve import LayerError
from datafree.solve.solve_layer import compress_layer
from datafree.student import check_runs
from jobs import ADAROUND, SGD, make_job, with_covariance
from nets import NETS

CHEAP = ("signal.kind=propagated", "signal.images=4", "solve.sequential=false")
REFUSED = LayerError, MatchingError


class Net(nn.Module):
    """Convolution, depthwise, pointwise and linear, two of them with BatchNorm."""

    def __init__(self, *, width=4, kernel=3):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
        self.c, self.d = nn.Conv2d(width, width, 1), nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.m(self.b(torch.relu(self.n(self.a(x))))))
        return self.d(torch.relu(self.c(x)).mean((2, 3)))


def made(change, **sizes):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Net(**sizes).eval()
        for norm in (model.n, model.m):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        change(model)
    return model


def mixed_variances(m):
    m.n.running_var.copy_(torch.tensor([0.0, 1e12, 1e-30, 1.0]))


EXTREMES = {
    "variance 0": lambda m: m.n.running_var.zero_(),
    "variance 1e12": lambda m: m.n.running_var.fill_(1e12),
    "all variances": mixed_variances,
    "variance 3e38": lambda m: m.m.running_var.fill_(3e38),
    "mean 1e30": lambda m: m.n.running_mean.fill_(1e30),
    "gamma 0": lambda m: m.n.weight.zero_(),
    "gamma 1e30": lambda m: m.n.weight.fill_(1e30),
    "gamma 1e-30": lambda m: m.n.weight.fill_(1e-30),
    "dead outputs": lambda m: m.n.bias.fill_(-1e3),
    "a weight of 0": lambda m: m.c.weight.zero_(),
    "first weight of 0": lambda m: m.a.weight.zero_(),
    "weights of 1e-30": lambda m: m.a.weight.mul_(1e-30),
    "weights of 1e30": lambda m: m.c.weight.mul_(1e30),
    "weights below normal numbers": lambda m: m.c.weight.mul_(1e-42),
    "a row of 1e30": lambda m: m.c.weight[0].mul_(1e30),
    "a row of 0": lambda m: m.c.weight[0].zero_(),
    "equal rows": lambda m: m.a.weight.copy_(m.a.weight[:1].expand_as(m.a.weight)),
    "a bias of 1e30": lambda m: m.d.bias.fill_(1e30),
    "all 0": lambda m: [p.zero_() for p in m.parameters()],
}
FEW = ("variance 0", "all variances", "dead outputs", "all 0", "weights of 1e30", "first weight of 0")


def assert_no_nan(model, recipe, *, may_refuse=True):
    """The student's answers are finite; or one line refuses the network: of a layer, or that no channel can go."""
    try:
        run = compress(model, recipe, (2, 3, 8, 8), progress=False)
    except PruneError as error:
        assert re.match(r"whole channels can save at most 0 % of this network's multiply-adds", str(error)), str(error)
        return
    except REFUSED as error:
        assert may_refuse and str(error).partition(":")[0] in dict(model.named_modules()), str(error)
        return
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert bool(torch.isfinite(run.student(x)).all())
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in run.student.state_dict().values())


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in EXTREMES])
def test_no_extreme_ends_in_nan(name):
    assert_no_nan(made(EXTREMES[name]), Recipe.preset("w4a8").updated(list(CHEAP)))


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("name", EXTREMES)
def test_no_preset_ends_in_nan(name, preset):
    recipe = Recipe.preset(preset)
    few = ["signal.images=4"]
    few += ["signal.steps=2"] if recipe.signal.kind in ("inverted", "matched", "adversarial") else []
    few += ["solve.steps=20"] if recipe.solve.method in ("straight_through", "adaround") else []
    assert_no_nan(made(EXTREMES[name]), recipe.updated(few))


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [
        (
            "weights of 1e30",
            "w4a4-mixed",
            r"^[a-d]: its error at some bits is not finite, so none can be chosen; leave",
        ),
        (
            "weights of 1e30",
            "paper-prune50",
            r"^[a-d]: the cov of the layer's inputs is not finite; look at the layers",
        ),
    ],
)
def test_what_is_not_finite_names_its_layer(name, preset, message):
    recipe = Recipe.preset(preset).updated(["signal.images=4"])
    recipe = recipe.updated(["signal.steps=2"]) if recipe.signal.kind == "inverted" else recipe
    with pytest.raises(LayerError, match=message):
        compress(made(EXTREMES[name]), recipe, (2, 3, 8, 8), progress=False)


@pytest.mark.parametrize("sizes", [{"width": 1}, {"kernel": 1}], ids=["one channel", "one tap"])
def test_the_smallest_layers(sizes):
    recipe = Recipe.preset("w4a8").updated(list(CHEAP))
    assert_no_nan(made(lambda m: None, **sizes), recipe, may_refuse=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nearest", "gptq", "squant"])
def test_a_layer_of_4608_taps(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 512, 1), nn.BatchNorm2d(512), nn.ReLU(), nn.Conv2d(512, 4, 3)).eval()
    assert_no_nan(model, Recipe.preset("w4a8").updated([*CHEAP, f"solve={{method: {method}}}"]), may_refuse=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["c.weight", "d.bias", "n.running_var", "m.running_mean"])
def test_weights_that_are_not_finite_are_refused_by_name(name, value):
    model = made(lambda m: m.state_dict()[name].view(-1)[0].fill_(value))
    with pytest.raises(ModelError, match=rf"^model.{name} holds 1 (NaN|inf) of \d+ values: .*; load weights whose"):
        compress(model, "w8a8", (2, 3, 8, 8), progress=False)


METHODS = ["nearest", "gptq", "squant", "straight_through", "adaround"]


@st.composite
def hard_jobs(draw, method):
    """One layer's problem with weights and inputs of any scale, rows and taps that are 0, moments of any rank."""
    steps = {"straight_through": replace_steps(SGD), "adaround": replace_steps(ADAROUND)}
    row = steps.get(method) or Recipe(solve={"method": method}).solve
    groups, rows, taps = draw(st.sampled_from([1, 2])), draw(st.integers(1, 4)), draw(st.integers(1, 12))
    job = make_job(
        row, seed=draw(st.integers(0, 99)), groups=groups, rows=rows, taps=taps, rank=draw(st.integers(1, 3))
    )
    size, reach = 10.0 ** draw(st.integers(-30, 15)), 10.0 ** draw(st.integers(-15, 9))
    weight, moments = job.weight * size, job.moments
    if draw(st.booleans()):
        weight[:, 0] = draw(st.sampled_from([0.0, 1e-30, 1e15]))
    cov = moments.cov * reach**2
    if draw(st.booleans()):
        cov = torch.zeros_like(cov) if draw(st.booleans()) else cov.clone()
        cov[:, 0] = 0
        if cov.dim() == 3:
            cov[:, :, 0] = 0
    drawn = None if job.rows is None else job.rows * reach
    means = {"mean": moments.mean * reach, "student_mean": moments.student_mean * reach}
    return replace(with_covariance(job, cov), weight=weight, rows=drawn, moments=replace(moments, cov=cov, **means))


def replace_steps(recipe):
    return recipe.model_copy(update={"steps": 5})


def check_finite(job):
    found = compress_layer(job)
    assert bool(torch.isfinite(found.bias).all()), "bias"
    assert bool(torch.isfinite(found.weight.float()).all()), "weight"
    if found.weight_qparams is not None:  # else the layer was left in float, which would have lost channels
        scale = found.weight_qparams.scale
        assert bool((scale > 0).all() and torch.isfinite(scale).all()), "scale"
    assert not math.isnan(found.error_db) and not math.isnan(found.channel_db), "error"


@pytest.mark.parametrize("count", [6, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_hard_layers(method, count):
    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(hard_jobs(method))
    def one(job):
        check_finite(job)

    one()


# The student is run before it is handed over


def chain(preset="w8a8"):
    model, inputs = NETS["chain"]()
    return compress(model, Recipe.preset(preset).updated(["signal.images=2", "signal.kind=propagated"]), inputs), inputs


def broken(student, name, value):
    """A copy of the student, whose layer has scales of that value."""
    damaged = g.duplicate(student)
    path = next(p for p in damaged.state_dict() if p.startswith(name) and p.endswith("scale"))
    damaged.state_dict()[path].fill_(value)
    return damaged


def test_a_student_that_runs_passes_and_is_not_touched():
    run, inputs = chain()
    before = {name: tensor.clone() for name, tensor in run.student.state_dict().items()}
    check_runs(run.student, run.teacher, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.student.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_student_of_nan_names_the_first_layer(value):
    run, inputs = chain()
    student = broken(run.student, "1.conv", value)
    with pytest.raises(LayerError, match=r"^1.conv.*: the student's values are not finite from here on, .*=keep"):
        check_runs(student, run.teacher, inputs)


def test_answers_that_the_network_gives_too_are_its_own():
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.log(torch.relu(self.conv(x) - 1e6))  # of 0

    run = compress(Log().eval(), Recipe.preset("w8a8").updated(list(CHEAP)), (2, 3, 8, 8), progress=False)
    assert bool(torch.isinf(run.student(torch.zeros(1, 3, 8, 8))).all())
