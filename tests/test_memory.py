"""`memory=`: less of it, the same student but for rounding; what it cannot do is said before the work."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from datafree import Recipe, compress
from datafree.app.arguments import parse_bytes
from datafree.app.cli import main
from datafree.execution.resume import CheckpointError
from datafree.run import MemoryLimitError
from datafree.run.expected import BASE
from nets import NETS

SETTINGS = {
    "each by itself": ["signal.kind=propagated", "solve.sequential=false"],
    "in sequence": ["signal.kind=propagated", "solve.sequential=true"],
    "gaussian": ["signal.kind=gaussian", "solve.sequential=false"],
}


def least(model, inputs, recipe):
    """The limit that leaves room for one image."""
    with pytest.raises(MemoryLimitError, match=r"; give [\d,]+ or more$") as caught:
        compress(model, recipe, inputs, memory=1)
    return int(re.sub(r"\D", "", str(caught.value).split("; give ")[1]))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["residual", "concat", "squeeze and excitation", "asymmetric zero padding"])
def test_students_agree(name, settings):
    model, inputs = NETS[name]()
    recipe = Recipe.preset("w4a8").updated(["signal.images=24", *settings])
    whole = compress(model, recipe, inputs)
    little = compress(model, recipe, inputs, memory=least(model, inputs, recipe))
    x = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        wanted, found = whole.student(*x), little.student(*x)
    assert (wanted - found).norm() < 0.02 * wanted.norm()


def test_images_are_moved_in_smaller_parts_and_come_as_near():
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("w4a8").updated(["signal.images=8", "signal.steps=12"])
    whole = compress(model, recipe, inputs)
    little = compress(model, recipe, inputs, memory=least(model, inputs, recipe))
    assert not torch.equal(whole.images[0], little.images[0])
    before, after = little.summary.signal.distance
    assert after < before and after < 1.3 * whole.summary.signal.distance[1]


def test_a_limit_without_room_for_one_image_says_what_would_do():
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=4"])
    enough = least(model, inputs, recipe)
    compress(model, recipe, inputs, memory=enough)
    said = r"^memory=[\d,]+ bytes are too few: Python, torch, weights, images and one layer's moments take about [\d,]+"
    with pytest.raises(MemoryLimitError, match=said):
        compress(model, recipe, inputs, memory=enough - 1)


def test_layers_in_sequence_need_more_for_their_moments():
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=4"])
    alone, in_sequence = (least(model, inputs, recipe.updated([f"solve.sequential={s}"])) for s in ("false", "true"))
    assert in_sequence > alone


def test_images_count():
    model, inputs = NETS["residual"]()
    few, many = (least(model, inputs, Recipe.preset("w8a8").updated([f"signal.images={n}"])) for n in (4, 8))
    x = inputs[0] if isinstance(inputs, tuple) else inputs
    assert many - few == 4 * x[:1].nbytes


def test_procedural_images_beside_those_that_are_made_count():
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("prune50").updated(["signal.images=4"])
    alone, joined = (least(model, inputs, recipe.updated([f"prune.probes={p}"])) for p in ("false", "true"))
    x = inputs[0] if isinstance(inputs, tuple) else inputs
    assert joined - alone == 4 * x[:1].nbytes


def test_unfinished_work_of_another_limit_is_refused(tmp_path):
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=2"])
    compress(model, recipe, inputs, resume=tmp_path / "work")
    with pytest.raises(CheckpointError, match="holds work on another memory; go on with the same"):
        compress(model, recipe, inputs, memory=2 * BASE, resume=tmp_path / "work")
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".json", ".safetensors"}


MEASURED = """
import json, sys
import torch
from torch import nn
torch.set_num_threads(1)
from datafree import Recipe, compress
from datafree.execution import peak_memory

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        )
    def forward(self, x):
        return torch.relu(x + self.body(x))

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Sum(), Sum(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(16, 10),
).eval()
memory = int(sys.argv[1]) or None
run = compress(net, Recipe.preset("w8a8").updated(["signal.images=64"]), (1, 3, 160, 160), memory=memory)
with torch.no_grad():
    answers = run.student(torch.ones(1, 3, 160, 160)).tolist()
print(json.dumps([peak_memory(), answers]))
"""


@pytest.mark.slow
def test_a_limit_lowers_the_peak():
    """By 300 MB when alone, less on a busy machine: pages of files that wait to be written count as memory."""
    done = (
        subprocess.run([sys.executable, "-c", MEASURED, str(most)], capture_output=True, text=True)
        for most in (0, BASE + 40_000_000)
    )
    (most, wanted), (least, found) = (json.loads(run.stdout) for run in done)
    assert least < most  # each tensor of all images has 105 MB, three are there at a time
    assert torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "text, size", [("2GB", 2 * 10**9), ("800 MB", 8 * 10**8), ("1.5gib", 3 * 2**29), ("512MiB", 2**29), (None, None)]
)
def test_amounts_of_memory_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["2", "2 G", "much", "0GB", "-1GB", "nanGB", "1e3MB"])
def test_other_words_are_no_amount(text):
    with pytest.raises(ValueError, match=rf"^'{text}' is no amount of memory; write 800MB or 2GB$"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "size, said", [("2G", "is no amount of memory"), ("1MB", "bytes are too few: Python, torch, ")]
)
def test_the_command_refuses_before_the_work(size, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "net_of_memory.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ["compress", "net_of_memory:net", "--input", "1,3,16,16", "--out", "net.onnx", "--memory", size]
    assert main(asked) == 2
    assert said in capsys.readouterr().err and [p.name for p in tmp_path.glob("net.onnx*")] == []
