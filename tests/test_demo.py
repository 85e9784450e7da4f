"""The demo network: really trained, of the kind that is hard to round, and made by a script that runs."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from datafree.demo import DemoError, DigitsNet, InvertedResidual, digits, digits_net
from datafree.extras import install

SCRIPT = Path(__file__).parent.parent / "examples" / "train_demo.py"


@pytest.fixture(scope="module")
def splits():
    pytest.importorskip("sklearn")
    return {split: digits(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def train_demo():
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def num_correct(net, images, labels):
    with torch.no_grad():
        return int((net(images).argmax(1) == labels).sum())


def loss(net, images, labels):
    """On the statistics of the images themselves: running ones are far behind after an epoch."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net.train()(images), labels))


def test_weights_are_small_finite_and_all_there():
    packed = resources.files("datafree.demo").joinpath("digits.safetensors").read_bytes()
    assert len(packed) < 1_000_000
    tensors = safetensors.torch.load(packed)
    assert tensors.keys() == DigitsNet().state_dict().keys()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_network_has_the_parts_that_make_mobilenets_hard():
    modules = list(digits_net().modules())
    convs = [module for module in modules if isinstance(module, nn.Conv2d)]
    residuals = [m for m in modules if isinstance(m, InvertedResidual) and m.is_residual]
    assert sum(conv.groups == conv.in_channels > 1 for conv in convs) == 11
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == len(convs)
    assert sum(isinstance(module, nn.ReLU6) for module in modules) > 20
    assert len(residuals) == 2


def test_residual_sum_adds_the_input():
    block = InvertedResidual(6, 6, stride=1).eval()
    with torch.no_grad():
        block.project.bn.weight.zero_()
        x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
        assert torch.equal(block(x), x)


def test_network_is_in_eval_mode_and_the_same_each_time():
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = digits_net(), digits_net()
    assert not any(module.training for module in first.modules())
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        assert first(x).shape == (3, 10)


def test_top1_on_held_out_digits(splits):
    images, labels = splits["test"]
    assert num_correct(digits_net(), images, labels) >= 0.97 * len(labels)


def test_untrained_network_guesses(splits):
    images, labels = splits["test"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DigitsNet().eval()
    assert num_correct(net, images, labels) < 0.3 * len(labels)


def test_splits_share_no_image(splits):
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    assert train.shape == (1201, 1, 16, 16) and train_labels.shape == (1201,)
    assert test.shape == (596, 1, 16, 16) and test_labels.shape == (596,)
    assert not {row.numpy().tobytes() for row in train} & {row.numpy().tobytes() for row in test}


def test_splits_hold_every_digit_in_the_same_share(splits):
    train, test = (torch.bincount(splits[split][1], minlength=10) for split in ("train", "test"))
    assert (train - 2 * test).abs().max() <= 2


def test_split_is_the_same_each_time(splits):
    assert all(torch.equal(a, b) for a, b in zip(digits("test"), splits["test"], strict=True))


def test_digits_are_standardised(splits):
    images, _ = splits["train"]
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=0.01, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=0.01, rtol=0)


def test_unknown_split_is_an_error():
    with pytest.raises(DemoError, match='no split \'val\' of the digits; allowed are "train" and "test"'):
        digits("val")


def test_missing_sklearn_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DemoError, match=re.escape(install("demo"))):
        digits("test")


@pytest.mark.slow
def test_script_writes_weights_that_load_and_have_learned(splits, train_demo, tmp_path, capsys):
    torch.set_num_threads(1)  # as the script runs by itself
    state = torch.get_rng_state()
    for name in ("first", "second"):
        train_demo.main(["--out", str(tmp_path / name), "--epochs", "1"])
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert "of 596 held-out digits" in capsys.readouterr().out
    trained, untouched = DigitsNet(), DigitsNet().state_dict()
    trained.load_state_dict(safetensors.torch.load_file(tmp_path / "first"))
    assert trained.state_dict().keys() == untouched.keys()
    untrained = train_demo.train(*splits["train"], epochs=0, seed=1)
    assert loss(trained, *splits["test"]) < loss(untrained, *splits["test"])  # by 0.22; rounding moves it by 0.04
