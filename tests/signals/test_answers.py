"""Networks without BatchNorm: images are moved until the network answers, and nothing else moves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.execution import MAKING_IMAGES
from datafree.graph.capture import trace
from datafree.records import InputRange
from datafree.signals import make_signal, propagated, signal_job
from datafree.signals.answers import STEPS, Answers, num_classes
from datafree.signals.batch_means import BatchMeans
from datafree.signals.moving import SHORT
from datafree.signals.propagated import probe_images
from datafree.signals.varied import varied
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, conv, folded_copy, small_network

KINDS = ("propagated", "matched", "inverted")
UNIT = InputRange((0.0,), (1.0,), "a test")


def signal(kind, images=8):
    return Recipe.preset("w8a8").updated([f"signal.kind={kind}", f"signal.images={images}"]).signal


def without_memory(name):
    """The captured network of a name with BatchNorm folded, and nothing known of it."""
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    fold_batchnorm_(graph)
    return graph


def made(graph, kind="propagated", *, seed=0, stats=None):
    return make_signal(graph, stats or {}, signal(kind), seed=seed, input_range=UNIT)


def plain(graph, *, seed=0, stats=None):
    return propagated(signal_job(graph, stats or {}, signal("propagated"), seed, UNIT))


def start(graph):
    """The images of `made` before any is moved."""
    job = signal_job(graph, {}, signal("propagated"), 0, UNIT)
    return propagated(replace(job, unit=tuple(varied(x, SHORT.pixel_limit, job.rng) for x in job.unit)))


# What moves


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["no batchnorm at all", "chain", "depthwise inverted residual", "keyword spotting"])
def test_images_move_towards_random_classes(name, kind):
    graph = without_memory(name)
    found = made(graph, kind)
    assert (found.kind, found.towards, found.unmoved) == (kind, "random classes", "")
    before, after = found.distance
    assert after < before
    (images,), (before_moving,) = found.inputs, start(graph).inputs
    assert images.shape == before_moving.shape and not images.requires_grad
    assert not torch.equal(images, before_moving)
    assert 0 <= found.asked <= 100
    assert float(images[::2].abs().max()) <= SHORT.pixel_limit + 2e-3  # rounded to half precision
    assert torch.allclose(images[1::2], before_moving[1::2], atol=2e-3), "every second one stays"


def test_the_loss_said_is_that_of_the_classes_asked_for():
    graph = without_memory("chain")
    found = made(graph)
    rng = torch.Generator().manual_seed(0)
    varied(probe_images((8, 3, 16, 16), signal("propagated"), rng), SHORT.pixel_limit, rng)
    classes = torch.randint(g.shape(g.outputs(graph)[0])[1], (4,), generator=rng)
    with torch.no_grad():
        logits = graph(found.inputs[0][::2])
    assert float(F.cross_entropy(logits, classes)) == pytest.approx(found.distance[1], rel=1e-4)
    assert 100 * float((logits.argmax(1) == classes).float().mean()) == pytest.approx(found.asked)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_every_bit_and_another_gives_other_images(kind):
    graph = without_memory("chain")
    first, again, other = (made(graph, kind, seed=seed).inputs[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ["chain", "conv without batchnorm", "U-Net", "two outputs"])
def test_nothing_moves_where_there_is_a_batchnorm(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    found = made(graph, stats=stats)
    assert torch.equal(found.inputs[0], plain(graph, stats=stats).inputs[0])
    assert (found.towards, found.distance, found.asked, found.unmoved) == ("", None, None, "")


def test_images_given_are_kept():
    graph = without_memory("chain")
    images = (torch.randn(4, 3, 16, 16),)
    found = make_signal(graph, {}, signal("propagated"), seed=0, input_range=UNIT, images=images)
    assert torch.equal(found.inputs[0], images[0]) and found.towards == ""


# Networks that are no classifiers


@pytest.mark.parametrize("name", ["U-Net", "two outputs", "1-d autoencoder"])
def test_outputs_that_are_no_classes_are_spread(name):
    graph = without_memory(name)
    assert num_classes(graph) == 0
    found = made(graph)
    before, after = found.distance
    assert found.towards == "random outputs" and after < before
    assert not torch.equal(found.inputs[0], start(graph).inputs[0])


def test_one_output_is_made_large_or_small():
    torch.manual_seed(0)
    layers = (conv(3, 6, bias=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    graph = trace(nn.Sequential(*layers).eval(), torch.randn(2, 3, 16, 16))
    found, before_moving = made(graph), start(graph)
    with torch.no_grad():
        assert float(graph(found.inputs[0][::2]).std()) > 1.5 * float(graph(before_moving.inputs[0][::2]).std())


def test_scores_of_outputs_are_both_signs_of_what_differs_from_the_start():
    graph = without_memory("U-Net")
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = graph(x).mean((2, 3))
        mean, std = y.mean(0, keepdim=True), y.std(0, keepdim=True)
        scores = Answers(graph, UNIT, torch.zeros(6, dtype=torch.int64), BatchMeans(6), ((mean, std),)).scores(x)
    assert torch.allclose(scores, torch.cat([(y - mean) / std, (mean - y) / std], 1), atol=1e-5)


def test_probabilities_count_as_the_logits_they_come_from():
    model = NETS["chain"]()[0]
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    targets, both = torch.tensor([0, 1, 2, 0]), (model, nn.Sequential(model, nn.Softmax(1)))
    with torch.no_grad():
        first, second = (float(Answers(trace(net, x), UNIT, targets, BatchMeans(4))(x, slice(0, 4))[1]) for net in both)
    assert first == pytest.approx(second, rel=1e-4)


# Where it is no use


class Ramp(nn.Module):
    """Its answers do not depend on the image in a way that has a gradient."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3)).sign()


def test_images_stay_where_the_loss_does_not_fall():
    torch.manual_seed(0)
    graph = trace(Ramp().eval(), torch.randn(2, 3, 16, 16))
    found = made(graph)
    assert torch.equal(found.inputs[0], start(graph).inputs[0]) and found.distance is None
    assert found.unmoved.startswith("there is no BatchNorm, and the loss of random classes went from ")


def test_images_stay_where_the_loss_is_no_number():
    graph = without_memory("chain")
    layer = list(g.layers(graph))[-1]
    with torch.no_grad():
        g.get_tensor(graph, f"{layer}.bias").fill_(torch.inf)
    found = made(graph)
    assert torch.equal(found.inputs[0], start(graph).inputs[0])
    assert found.unmoved.startswith("there is no BatchNorm, and making images: the loss is nan at step 0")


def test_two_inputs_stay_as_they_are():
    graph = without_memory("two inputs")
    found = make_signal(graph, {}, signal("propagated"), seed=0)
    assert found.unmoved == "there is no BatchNorm, and the network has 2 inputs"


def test_steps_are_told_and_counted():
    model, inputs = NETS["no batchnorm at all"]()
    seen = []
    told = lambda what, done, total: seen.append((what, done, total))  # noqa: E731
    recipe = Recipe.preset("w8a8").updated(["signal.images=4"])
    run = compress(model, recipe, inputs, on_step=told)
    made = [step for step in seen if step[0] == MAKING_IMAGES]
    assert made == [(MAKING_IMAGES, step, STEPS) for step in range(1, STEPS + 1)] == seen[:STEPS]
    assert run.summary.signal.towards == "random classes"


# Folded copies


def test_a_folded_copy_is_solved_on_moved_images():
    model, x = small_network()
    folded, recipe = folded_copy(model), Recipe.preset("w8a8").updated(["signal.images=8"])
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), atol=1e-4)
    run, kept = (compress(net, recipe, x[:1]) for net in (folded, model))
    assert (run.summary.signal.towards, kept.summary.signal.towards) == ("random classes", "")
    assert "moved towards random classes" in run.summary.warnings[0] and kept.summary.warnings == ()
