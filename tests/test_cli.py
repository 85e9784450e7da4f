"""The command line: exit codes, one line for what is wrong, and figures that are those of the run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datafree import cli
from datafree.layer import LayerError
from datafree.run import Run, evaluate

FACTORY = """
from collections import OrderedDict
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    parts = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6()
    names = "stem[/red]", "norm", "act", "body", "relu6"
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(OrderedDict(zip(names, parts)), ).append(head)
    model(torch.rand(64, 1, 8, 8))
    return model, torch.zeros(1, 1, 8, 8)

def overflowing():
    layers = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e25)
    return nn.Sequential(*layers), torch.zeros(1, 1, 8, 8)
"""
MODEL = "tiny_factory_of_cli_tests:net"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current directory with a factory in it."""
    (tmp_path / "tiny_factory_of_cli_tests.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # one line a fact


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def facts(text):
    """The table's rows by their names."""
    return dict(re.findall(r"^ (\S+(?: \S+)*) {2,}(.+?) *$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and what compress printed; made once, at 8 bits."""
    here, place = Path.cwd(), tmp_path_factory.mktemp("finished")
    (place / "tiny_factory_of_cli_tests.py").write_text(FACTORY)
    os.chdir(place)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "200")
            ...
    finally:
        os.chdir(here)
