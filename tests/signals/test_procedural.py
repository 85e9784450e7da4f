"""Images of networks whose BatchNorm says little: every fourth is moved; where it says enough nothing is."""

import torch
from torch import nn

from datafree import Recipe, compress
from datafree.graph.capture import trace
from datafree.recipe import Matched, Propagated
from datafree.signals import signal_job
from datafree.signals.procedural import procedural_images
from datafree.signals.propagated import propagated
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import calibrate_batchnorm_

RECIPE = Propagated(images=32)


def a_job(num_bare):
    """A network of one convolution with BatchNorm and others without."""
    torch.manual_seed(0)
    bare = [layer for _ in range(num_bare) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU(), *bare)
    calibrate_batchnorm_(net, torch.randn(64, 3, 12, 12))
    norm.running_mean += 2 * norm.running_var.sqrt()  # of images unlike procedural ones
    graph = trace(net, torch.zeros(1, 3, 12, 12))
    stats, _ = fold_batchnorm_(graph)
    return net, signal_job(graph, stats, RECIPE, 0, None)


def test_every_fourth_image_is_moved_where_batchnorm_says_little():
    _, job = a_job(8)
    moved, plain = procedural_images(job), propagated(job)
    changed = [not torch.equal(x, y) for x, y in zip(moved.inputs[0], plain.inputs[0], strict=True)]
    assert changed == [number % 4 == 0 for number in range(32)]
    before, after = moved.distance
    assert after < before and moved.at_batchnorm == "restandardise"


def test_nothing_is_moved_where_it_says_enough():
    _, job = a_job(2)
    assert torch.equal(procedural_images(job).inputs[0], propagated(job).inputs[0])
    assert procedural_images(job).distance is None


def test_the_summary_tells_of_it():
    net, _ = a_job(8)
    recipe = Recipe.preset("w8a8").updated(["signal.images=32"])
    assert compress(net, recipe, torch.zeros(1, 3, 12, 12)).summary.signal.distance is not None


def test_images_that_come_no_nearer_stay(monkeypatch):
    _, job = a_job(8)
    monkeypatch.setattr("datafree.signals.procedural.Matched", lambda: Matched(steps=1, smoothness=1e6))
    found = procedural_images(job)
    assert torch.equal(found.inputs[0], propagated(job).inputs[0])
    assert "no nearer" in found.unmoved or "loss" in found.unmoved
