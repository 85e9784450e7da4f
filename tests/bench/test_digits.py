"""The networks benches train for themselves: the same bits each time, kept between runs, of the kinds promised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from bench.networks import digits
from datafree.demo import digits as data


@pytest.fixture
def brief(monkeypatch):
    """Two steps of training instead of seconds."""
    for name, training in digits.NETWORKS.items():
        short = digits.Training(training.build, 1, training.learning_rate)
        monkeypatch.setitem(digits.NETWORKS, name, short)


def of(kind, model):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_resnet_has_residual_stages_and_a_batchnorm_behind_every_convolution():
    model = digits.ResNet()
    assert len(of(digits.BasicBlock, model)) == 6
    assert len(of(nn.BatchNorm2d, model)) == len(of(nn.Conv2d, model)) == 15
    assert not of(nn.ReLU6, model)


def test_mobilenet_is_depthwise_with_relu6_behind_every_convolution():
    model = digits.MobileNet()
    convs = of(nn.Conv2d, model)
    assert sum(conv.groups == conv.in_channels > 1 for conv in convs) == len(model.BLOCKS)
    assert len(of(nn.ReLU6, model)) == len(of(nn.BatchNorm2d, model)) == len(convs)


@pytest.mark.parametrize("name", digits.NETWORKS)
def test_training_gives_the_same_bits_and_leaves_the_random_state(name):
    x, y = data("train")
    training = digits.Training(digits.NETWORKS[name].build, 1, 0.03)
    before, grad = torch.get_rng_state(), torch.is_grad_enabled()
    first, second = (digits.train(training, x[:256], y[:256]).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled() == grad


def test_second_load_reads_what_the_first_one_trained(brief, tmp_path):
    first = digits.load("mobilenet_digits", cache=tmp_path)
    [file] = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    second = digits.load("mobilenet_digits", cache=tmp_path)
    assert file.stat().st_mtime_ns == written and list(tmp_path.iterdir()) == [file]
    assert not first.training and not second.training
    x, _ = digits.images("mobilenet_digits", 8)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))


def test_images_are_the_held_out_digits_in_one_order():
    (x, y), (some, labels) = digits.images("resnet_digits"), digits.images("resnet_digits", 10)
    assert x.shape == (596, 1, 16, 16) and y.dtype == torch.int64
    assert torch.equal(x[:10], some) and torch.equal(y[:10], labels)
    assert {row.numpy().tobytes() for row in x} == {row.numpy().tobytes() for row in data("test")[0]}
    assert len(x) == digits.NUM_IMAGES + digits.NUM_CALIBRATION


def test_augmentation_moves_ink_and_keeps_paper():
    x, _ = data("train")
    moved = digits.augmented(x[:32], torch.Generator().manual_seed(0))
    assert moved.shape == (32, 1, 16, 16) and not torch.equal(moved, x[:32])
    paper = torch.full((2, 1, 16, 16), digits.BACKGROUND)
    torch.testing.assert_close(digits.augmented(paper, torch.Generator().manual_seed(0)), paper)


@pytest.mark.parametrize("function", [digits.load, digits.images])
def test_unknown_network_is_an_error(function):
    with pytest.raises(ValueError, match="no network 'lenet' trained on digits; there are resnet_digits, mobilenet_"):
        function("lenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", digits.NETWORKS)
def test_trained_networks_read_digits(name, tmp_path):
    model, (x, y) = digits.load(name, cache=tmp_path), digits.images(name)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).double().mean() > 0.95
