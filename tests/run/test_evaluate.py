"""Evaluation and cost against plain restatements: counts by hand, and torch's own counter."""

from __future__ import annotations

import functools
import math
import statistics

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datafree import Recipe, compress, evaluate
from datafree import graph as g
from datafree.graph import layer_macs
from datafree.graph.capture import trace
from datafree.records import decibel
from datafree.run.evaluate import evaluate_models, layer_sqnr
from nets import NETS, conv

FREE = ("equalize=free", "weights.per=tensor")


@functools.cache
def made(name, *settings):
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2", "solve.clip=false", *settings]), inputs)
    return run, inputs


class Shifted(nn.Module):
    """Logits plus a fixed vector: some decisions change."""

    def forward(self, logits):
        return logits + torch.linspace(0, 1, logits.shape[1])


def logits(count, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=generator), torch.randint(classes, (count,), generator=generator)


# Accuracy


@pytest.mark.parametrize("sizes", [(40,), (13, 13, 14), (1,) * 40], ids=str)
def test_percentages_and_errors_against_a_plain_restatement(sizes):
    x, y = logits(40)
    found = evaluate_models(Shifted(), nn.Identity(), zip(x.split(sizes), y.split(sizes), strict=True))
    ours, theirs = Shifted()(x), x
    hits, float_hits, same, lost = [], [], [], []
    for row in range(40):
        mine, other = int(ours[row].argmax()), int(theirs[row].argmax())
        hits.append(100.0 * (mine == y[row].item())), float_hits.append(100.0 * (other == y[row].item()))
        same.append(100.0 * (mine == other)), lost.append(float_hits[-1] - hits[-1])
    mean, error = statistics.mean, lambda v: statistics.stdev(v) / math.sqrt(len(v))
    assert found.num_images == 40
    assert (found.top1, found.float_top1, found.agreement) == pytest.approx((mean(hits), mean(float_hits), mean(same)))
    assert (found.lost, found.lost_error) == pytest.approx((mean(lost), error(lost)))
    assert found.top1_error == pytest.approx(error(hits))
    assert found.lost == pytest.approx(found.float_top1 - found.top1)
    assert 0 < found.agreement < 100, "the two were made to differ"


def test_the_binomial_error_is_that_of_the_textbook():
    x, y = logits(400)
    found = evaluate_models(nn.Identity(), nn.Identity(), [(x, y)])
    p = found.top1 / 100
    assert found.top1_error == pytest.approx(100 * math.sqrt(p * (1 - p) / 399))
    assert (found.lost, found.lost_error, found.agreement) == (0, 0, 100)


def test_one_image_has_no_standard_error():
    found = evaluate_models(nn.Identity(), nn.Identity(), [logits(1)])
    assert found.num_images == 1 and found.top1_error == math.inf


def test_no_images_are_refused():
    with pytest.raises(ValueError, match=r"^there are no images to evaluate on; give batches of \(x, y\), or of x$"):
        evaluate_models(nn.Identity(), nn.Identity(), [])


def test_labels_out_of_range_are_refused():
    x, y = logits(8)
    for label in (4, 1000):
        with pytest.raises(
            ValueError, match=rf"^label {label} is outside of the network's 4 classes; check the labels"
        ):
            evaluate_models(nn.Identity(), nn.Identity(), [(x, torch.where(y == 1, label, y))])
    with pytest.raises(ValueError, match="is outside of the network's 4 classes"):
        evaluate_models(nn.Identity(), nn.Identity(), [(x, y - 1)])


def test_a_negative_label_is_named():
    x, y = logits(8)
    with pytest.raises(ValueError, match=r"^label -5 is outside"):
        evaluate_models(nn.Identity(), nn.Identity(), [(x, torch.where(y == y[0], -5, y))])


@pytest.mark.parametrize(
    "network", [lambda x: x[:, 0], lambda x: {"classes": x}, lambda x: x[:, :, None, None]], ids=["1d", "dict", "4d"]
)
def test_what_are_no_logits_is_refused(network):
    class Wrapped(nn.Module):
        def forward(self, x):
            return network(x)

    with pytest.raises(ValueError, match=r"one tensor of logits \(N, classes\)"):
        evaluate_models(Wrapped(), Wrapped(), [logits(8)])


def test_evaluate_measures_the_run_against_its_teacher():
    run, (x,) = made("residual", "weights.bits=4")
    x = torch.randn(32, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = run.student(x).argmax(1), run.teacher(x).argmax(1)
    found = evaluate(run, [(x, theirs)])
    assert found.float_top1 == 100
    assert found.top1 == found.agreement == pytest.approx(100 * float((ours == theirs).float().mean()))


# Layers


@pytest.mark.parametrize(
    "name, settings",
    [
        ("residual", ("weights.bits=4",)),
        ("squeeze and excitation", FREE),
        ("shared module", (*FREE, "layers.1.conv=keep")),
    ],
)
def test_every_layer_has_its_ratio(name, settings):
    run, (x,) = made(name, *settings)
    found = evaluate(run, [(x, torch.zeros(len(x), dtype=torch.int64))]).layer_sqnr_db
    assert list(found) == list(g.layers(run.teacher))
    assert min(found.values()) > 3


def test_what_is_equal_has_an_infinite_ratio():
    run, (x,) = made("residual", "weights.bits=null", "activations.bits=null")
    assert set(layer_sqnr(run.student, run.teacher, x).values()) == {math.inf}


def test_ratios_are_those_of_the_layers_outputs():
    """Against an interpreter that writes down what every layer puts out; no vectors are in the way."""

    class Notes(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if g.note(node).layer:
                self.notes[g.layer_name(node)] = value
            return value

    def noted(graph):
        interpreter = Notes(graph)
        interpreter.notes = {}
        with torch.no_grad():
            interpreter.run(x)
        return interpreter.notes

    run, (x,) = made("residual", "weights.bits=4")
    ours, theirs = noted(run.student), noted(run.teacher)
    wanted = {
        n: decibel(float(v.square().mean()), float((v - ours[n]).square().mean())) for n, v in theirs.items()
    }  # fmt: skip
    assert layer_sqnr(run.student, run.teacher, x) == pytest.approx(wanted, abs=1e-3)


def test_ratios_with_vectors_are_in_the_models_units():
    """v_o is part of the student's layer, so the teacher's is compared behind its multiply."""
    settings = ("weights.per=tensor", "activations.bits=null", "weights.bits=8")
    plain, (x,) = made("squeeze and excitation", "equalize=off", *settings)
    vectors, _ = made("squeeze and excitation", "equalize=foldable", *settings)
    assert [n for n in vectors.teacher.graph.nodes if g.note(n).v_o]
    for run in (plain, vectors):
        assert min(layer_sqnr(run.student, run.teacher, x).values()) > 20


# Cost


class Counted(nn.Module):
    """conv 3 -> 4, stride 2: 8x8 -> 4x4; depthwise; conv 1x1 4 -> 6; linear 6 -> 5."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise, self.point = conv(3, 4, stride=2), conv(4, 4, groups=4), conv(4, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.point(torch.relu(self.depthwise(torch.relu(self.first(x))))).mean((2, 3)))


WEIGHTS = {"first": 4 * 3 * 9, "depthwise": 4 * 9, "point": 6 * 4, "last": 5 * 6}
ROWS = {"first": 4, "depthwise": 4, "point": 6, "last": 5}
MACS = {"first": 108 * 16, "depthwise": 36 * 16, "point": 24 * 16, "last": 30}


def counted(*settings):
    torch.manual_seed(0)
    recipe = Recipe.preset("w8a8").updated(["signal.images=2", "equalize=off", *settings])
    return compress(Counted().eval(), recipe, torch.zeros(1, 3, 8, 8))


def test_bytes_multiply_adds_and_bit_operations_by_hand():
    run = counted("weights.bits=3", "activations.bits=4", "layers.point=keep")
    bits = {"first": 8, "depthwise": 3, "point": 32, "last": 8}
    inputs = {"first": 8, "depthwise": 4, "point": 32, "last": 8}
    scales = {"first": 4, "depthwise": 4, "point": 0, "last": 5}
    assert layer_macs(run.teacher) == MACS
    assert run.summary.macs == 1728 + 576 + 384 + 30 == sum(MACS.values())
    assert run.summary.float_bytes == 4 * (108 + 36 + 24 + 30) + 4 * (4 + 4 + 6 + 5)
    assert run.summary.bytes == sum(math.ceil(WEIGHTS[n] * bits[n] / 8) + 4 * ROWS[n] + 4 * scales[n] for n in bits)
    assert run.summary.bit_operations == sum(MACS[n] * bits[n] * inputs[n] for n in bits)
    assert run.summary.float_bit_operations == 1024 * sum(MACS.values())
    assert (run.summary.num_layers, run.summary.num_quantized) == (4, 3)


def test_one_scale_a_tensor_costs_four_bytes_a_layer():
    run = counted("weights.per=tensor")
    assert run.summary.bytes == sum(WEIGHTS.values()) + 4 * sum(ROWS.values()) + 4 * 4
    assert run.summary.bit_operations == 64 * sum(MACS.values())


@pytest.mark.parametrize(
    "name", ["depthwise inverted residual", "dilated and rectangular", "linear after flatten", "two inputs"]
)
def test_multiply_adds_are_those_torch_counts(name):
    model, inputs = NETS[name]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(x[:1] for x in inputs))
    assert 2 * sum(layer_macs(trace(model, inputs)).values()) == counter.get_total_flops()


# Images without labels, and labels that do not fit


def test_without_labels_the_agreement_is_known():
    run, (x,) = made("chain")
    labelled = evaluate(run, [(x, torch.zeros(len(x), dtype=torch.int64))])
    for images in (x, x.numpy(), [x], iter([x]), [(x, None)]):
        found = evaluate(run, images)
        assert (found.agreement, found.num_images) == (labelled.agreement, len(x))
        assert found.top1 is found.float_top1 is found.lost is found.top1_error is found.lost_error is None
        assert found.layer_sqnr_db == labelled.layer_sqnr_db


def test_images_and_labels_may_be_one_pair():
    run, (x,) = made("chain")
    y = torch.zeros(len(x), dtype=torch.int64)
    assert evaluate(run, (x, y)) == evaluate(run, [(x, y)]) == evaluate(run, (x.numpy(), y.numpy()))


@pytest.mark.parametrize(
    "data, message",
    [
        (lambda x, y: [(x, y), x], "some batches have labels and others have none; give labels with all or with none"),
        (lambda x, y: [(x, y.float())], r"labels are torch.float32 \(2,\) of 2 images; give class indices, integers"),
        (lambda x, y: [(x, y[:1])], r"labels are torch.int64 \(1,\) of 2 images"),
        (
            lambda x, y: [(x, y + 5)],
            "label 5 is outside of the network's 5 classes; check the labels; where",
        ),
        (lambda x, y: [(x[:, :1], y)], r"images are \(2, 1, 16, 16\), the network takes \(N, 3, 16, 16\)"),
        (lambda x, y: [(x * float("nan"), y)], "images hold values that are NaN or inf; look at how they are read"),
        (lambda x, y: [(x.to(torch.uint8), y)], r"images are torch.uint8; give floats as the network sees them"),
        (lambda x, y: [(x, y, y)], r"a batch is tuple; give images \(N, C, H, W\), or \(images, labels \(N,\)\)"),
        (lambda x, y: ["a"], "a batch is str"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    x = NETS["chain"]()[1][0][:2]
    with pytest.raises(ValueError, match=message):
        evaluate(made("chain")[0], data(x, torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("step, what", [(1, "subtract 1 from"), (-1, "add 1 to")])
def test_labels_that_count_from_elsewhere_are_told(step, what):
    """As those of ImageNet do for a network of 1001 classes."""
    answers = torch.arange(60) % 6 + 1
    logits = torch.nn.functional.one_hot(answers, 8).float()
    net = torch.nn.Flatten()
    x = logits.view(60, 8, 1, 1)
    assert evaluate_models(net, net, [(x, answers)]).top1 == 100
    with pytest.raises(ValueError, match=rf"the label to 0.0 % of the images, and to 100.0 % .*: {what} the labels"):
        evaluate_models(net, net, [(x, answers + step)])
