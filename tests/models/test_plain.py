"""Networks as people have them: other types of numbers, wrappers, and answers in records."""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from datafree import Recipe, Run, compress, estimate, evaluate, export_onnx, load, save
from datafree import graph as g
from datafree.models import ModelError, dtype_of, plain, unwrapped
from datafree.run import graph_from_json, graph_to_json, tensors_of
from datafree.run.graph_json import FormatError
from nets import NETS

RECIPE = Recipe.parse("weights: {bits: 8}\nsignal: {images: 2}\n")
X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@functools.cache
def made(dtype):
    model = NETS["chain"]()[0].to(dtype)
    return model, compress(model, RECIPE, X[:1].to(dtype))


def as_float32(x):
    return torch.float32 if isinstance(x, Tensor) and x.is_floating_point() else None


OTHER = [torch.float16, torch.bfloat16, torch.float64]


# Types of numbers


@pytest.mark.parametrize("dtype", OTHER, ids=str)
def test_a_student_takes_and_gives_the_models_type(dtype):
    model, run = made(dtype)
    rounded = compress(copy.deepcopy(model).float(), RECIPE, X[:1])
    with torch.no_grad():
        found, wanted = run.student(X.to(dtype)), rounded.student(X.to(dtype).float())
        assert found.dtype == run.teacher(X.to(dtype)).dtype == model(X.to(dtype)).dtype == dtype
        assert torch.equal(found, wanted.to(dtype)), "computed in float32"
        assert torch.equal(run.student(X), rounded.student(X).to(dtype)), "other inputs are taken, too"
    assert {as_float32(t) for t in run.student.state_dict().values()} <= {torch.float32, None}
    assert dtype_of(model) == dtype, "the caller's own is not changed"


@pytest.mark.parametrize("dtype", OTHER, ids=str)
def test_the_type_is_kept_in_files_and_copies(dtype, tmp_path):
    _, run = made(dtype)
    run.save(tmp_path / "run")
    save(run, tmp_path / "net.safetensors")
    students = [
        Run.load(tmp_path / "run").student,
        load(tmp_path / "net.safetensors"),
        quietly(copy.deepcopy, run.student),
    ]
    with torch.no_grad():
        wanted = run.student(X)
        for student in students:
            assert torch.equal(student(X), wanted) and student(X).dtype == dtype


def test_float32_files_say_nothing_of_types():
    run = made(torch.float32)[1]
    assert g.with_ends(run.student, torch.float32) is run.student
    assert "ends" not in graph_to_json(run.student)


def test_a_type_that_is_none_is_refused():
    student = made(torch.float16)[1].student
    data = {**graph_to_json(student), "ends": {"torch": "torch.strided"}}
    with pytest.raises(FormatError, match="is no type of numbers; the graph is damaged"):
        graph_from_json(data, tensors_of(student))


def test_half_a_network_is_exported_and_estimated_in_float32(tmp_path):
    pytest.importorskip("onnxruntime")
    run = made(torch.float16)[1]
    check = export_onnx(run, tmp_path / "net.onnx")
    assert check.sqnr_db > 60
    assert estimate(run) == estimate(run.with_ends(torch.float32))
    assert evaluate(run, X.half()).agreement == evaluate(run, X.half().float()).agreement


# Wrappers


def quietly(wrap, *given):
    """torch's own deprecations, while it is imported in parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap(*given)


def wrapped():
    """Each with the names of its layers as they are without."""
    inner = NETS["chain"]()[0]
    inner[0] = quietly(torch.compile, inner[0])
    in_place = NETS["chain"]()[0]
    quietly(in_place.compile)
    return {
        "compiled": quietly(torch.compile, NETS["chain"]()[0]),
        "parallel": nn.DataParallel(NETS["chain"]()[0]),
        "both": quietly(torch.compile, nn.DataParallel(NETS["chain"]()[0])),
        "compiled inside": inner,
        "compiled in place": in_place,
    }


WRAPPED = ("compiled", "parallel", "both", "compiled inside", "compiled in place")


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_come_off(name):
    wanted, model = made(torch.float32)[1], wrapped()[name]
    before = dict(model.named_modules())
    run = compress(model, RECIPE, X[:1])
    assert [layer.name for layer in run.layers] == [layer.name for layer in wanted.layers]
    assert run.summary.model == wanted.summary.model
    with torch.no_grad():
        assert torch.equal(run.student(X), wanted.student(X))
    assert dict(model.named_modules()) == before, "the caller's own is not changed"


def test_a_plain_network_is_not_copied():
    model = NETS["chain"]()[0]
    assert plain(model) is model is unwrapped(quietly(torch.compile, model))


def test_torchscript_is_refused():
    scripted = quietly(torch.jit.trace, NETS["chain"]()[0], X[:1])
    with pytest.raises(ModelError, match=r"^the model is TorchScript, .*; give the nn\.Module it was made from, with"):
        compress(scripted, RECIPE, X[:1])
    with pytest.raises(ModelError, match=r"^model\.1 is TorchScript"):
        compress(nn.Sequential(nn.ReLU(), scripted), RECIPE, X[:1])


def test_weights_that_are_not_there_are_refused():
    with pytest.raises(ModelError, match=r'^model\.0 is on the device "meta", without weights; load them first'):
        compress(nn.Sequential(nn.Conv2d(3, 4, 1, device="meta")), RECIPE, X[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_network_on_a_gpu_stays_there():
    model = NETS["chain"]()[0].cuda()
    run = compress(model, RECIPE, X[:1].cuda())
    with torch.no_grad():
        assert torch.equal(run.student(X), made(torch.float32)[1].student(X))
    assert all(p.is_cuda for p in model.parameters())


def test_what_is_no_network_is_refused():
    with pytest.raises(ModelError, match=r"^model is str; give an nn\.Module, such as the first of what load_model\("):
        plain("torchvision:resnet18")


# BatchNorms without effect


@pytest.mark.parametrize("kind", ["matched", "inverted"])
def test_gammas_of_zero_are_named_and_do_not_stop(kind):
    """As in residual networks whose branches begin with nothing."""
    model, (x,) = NETS["residual"]()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    nn.init.zeros_(model.get_submodule(names[-1]).weight)
    settings = [f"signal.kind={kind}", "signal.steps=3"]
    run = compress(model, RECIPE.updated(settings), x[:1])
    with torch.no_grad():
        assert bool(torch.isfinite(run.student(x)).all())
    assert run.summary.warnings[0].startswith(
        f"{names[-1]}: gamma of BatchNorm is 0 in every channel, as before training"
    )


def test_a_layer_whose_outputs_are_too_large_is_named():
    model, (x,) = NETS["chain"]()
    with torch.no_grad():
        model[1].conv.weight.mul_(1e30)
    with pytest.raises(ValueError, match=r"^1\.conv: making images: the loss is (inf|nan) at step 0"):
        compress(model, RECIPE.updated(["signal.kind=matched", "signal.steps=3"]), x[:1])


# Answers


@dataclass
class Answer:
    logits: Tensor
    features: tuple[Tensor, Tensor]


class Pair(NamedTuple):
    logits: Tensor
    features: dict[str, Tensor]


class Answering(nn.Module):
    """A chain, and what it says in another form."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = NETS["chain"]()[0], form

    def forward(self, x):
        logits = self.net(x)
        return self.form(logits)


FORMS = {
    "dataclass": lambda y: Answer(y, (y + 1, y * 2)),
    "named tuple": lambda y: Pair(y, {"up": y + 1, "twice": y * 2}),
    "dictionary": lambda y: {"logits": y, "features": [y + 1, y * 2]},
    "list of dataclasses": lambda y: [Answer(y, (y + 1, y)), {"one": Answer(y, (y, y))}],
}


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in leaves(part)]


@pytest.mark.parametrize("form", FORMS)
def test_answers_in_records_are_captured_and_saved(form, tmp_path):
    run = compress(Answering(FORMS[form]).eval(), RECIPE, X[:1])
    run.save(tmp_path / "run")
    save(run, tmp_path / "net.safetensors")
    with torch.no_grad():
        found = run.student(X)
        for student in (Run.load(tmp_path / "run").student, load(tmp_path / "net.safetensors")):
            again = student(X)
            assert all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(found), strict=True))
            if form in ("dataclass", "named tuple"):
                assert type(again).__name__ == {"dataclass": "Answer", "named tuple": "Pair"}[form]
                assert torch.equal(again.logits, found.logits) and again._fields == ("logits", "features")


def test_the_named_tuple_is_the_callers_own():
    assert type(answering("named tuple")(X)) is Pair


@functools.cache
def answering(form):
    """A student."""
    return compress(Answering(FORMS[form]).eval(), RECIPE, X[:1]).student


@pytest.mark.parametrize(
    "nesting",
    ["x", {"set": []}, {"record": "a b", "fields": {}}, {"record": "Pair", "fields": {"x=1": "*"}}, {}, 3],
    ids=str,
)
def test_a_nesting_that_was_not_written_here_is_refused(nesting):
    student = answering("named tuple")
    data = {**graph_to_json(student), "outputs": {"nesting": nesting}}
    with pytest.raises(FormatError, match=r"the graph is damaged: .* (plain names|nesting of answers); write"):
        graph_from_json(data, tensors_of(student))
