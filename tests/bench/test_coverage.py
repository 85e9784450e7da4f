"""The coverage table: a network that ends its process ends no more than its row; the fastest networks are exact."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
import torch
from torch import nn

from bench.tables.coverage import EXACT, FAILED, REFUSED, CoverageRow, examined, page
from bench.tables.coverage_checks import SAME, Case, Mismatch
from bench.tables.coverage_checks import _same as same

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
FASTEST = (
    "timm:test_resnet", "timm:test_efficientnet", "timm:test_byobnet", "timm:test_efficientnet_gn",
    "timm:test_mambaout", "timm:test_convnext", "timm:test_nfnet", "timm:starnet_s050", "timm:lcnet_035",
    "timm:test_efficientnet_evos", "timm:mobilenetv3_small_050", "timm:test_coatnet",
    "timm:ese_vovnet19b_slim", "timm:dla46_c", "torchvision:shufflenet_v2_x0_5", "timm:cpubone_nano",
    "timm:mnasnet_small", "timm:hgnetv2_b0", "timm:convnext_zepto_rms", "timm:convnextv2_atto",
)  # fmt: skip
IMAGE = torch.zeros(1, 3, 16, 16)


def small():
    blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in ((3, 6), (6, 8))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), IMAGE


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def asleep():
    time.sleep(60)


def large():
    return nn.Linear(2**17, 2**17), IMAGE  # 64 GiB


class Branching(nn.Module):
    """The sign of its input decides what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def branching():
    return Branching(), IMAGE


def test_a_network_is_examined_from_its_module_and_from_a_file():
    row = examined(f"{__name__}:small")
    assert row.said == EXACT
    assert (row.side, row.num_layers, row.num_batchnorms, row.written_by) == (16, 3, 2, "PyTorch")
    assert set(row.student_db or ()) == {"w8a8", "w8a8-tensor", "prune50"}
    assert all(off is not None and off < 1e-5 for off in (row.captured, row.folded, row.equalized, row.read))


class Chaotic(nn.Module):
    """Turns a rounding of float32 into something that can be seen."""

    def forward(self, x):
        for _ in range(20):
            x = 3.9 * x * (1 - x)
        return x


def test_a_network_may_differ_by_rounding_as_much_as_float32_itself_does_and_no_more():
    torch.manual_seed(0)
    x = torch.rand(4, 8)
    case = Case(Chaotic(), x, [Chaotic()(x)])
    assert case.rounding > SAME
    assert SAME < same(lambda x: Chaotic()(x.double()).float(), case) <= case.rounding * 1.001
    with pytest.raises(Mismatch, match=r"^the output is off by .* of its range$"):
        same(lambda x: Chaotic()(x + 1e-3), case)
    calm = Case(nn.Identity(), x, [x])
    with pytest.raises(Mismatch, match=r"^the output is off by"):
        same(lambda x: x * (1 + 3 * SAME), calm)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (killed, "failed: build: the process ended with exit code -9"),
        (asleep, "failed: build: more than 1.5 s"),
        (large, "failed: build: .*can't allocate memory"),
        (branching, "refused: capture: Branching cannot be captured with input"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_goes_wrong_is_said_in_its_row(factory, said):
    row = examined(f"{__name__}:{factory.__name__}", seconds=1.5 if factory is asleep else 60)
    assert re.match(said, row.said)


def test_the_page_counts_and_lists_what_was_not_exact(tmp_path):
    rows = [
        CoverageRow(
            network="timm:a",
            said=EXACT,
            side=64,
            num_layers=3,
            num_batchnorms=2,
            captured=0.0,
            folded=1e-7,
            equalized=2e-7,
            student_db={"w8a8": 30.0, "prune50": float("inf")},
            file_db=120.0,
            read=0.0,
        ),
        CoverageRow(network="timm:b", said=f"{REFUSED}: capture: what it is"),
        CoverageRow(network="torchvision:c", said=f"{FAILED}: fold: x | y"),
        CoverageRow(network="torchvision:c", said=f"{FAILED}: fold: x | y"),
    ]
    (tmp_path / "coverage.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    text = page(tmp_path)
    assert "3 networks: 1 exact (33.3 %), 1 refused (33.3 %), 1 failed (33.3 %)." in text
    assert "| b | refused: capture: what it is † |" in text
    assert r"| torchvision:c | failed: fold: x \| y † |" in text
    assert "| a | 64 | 3 | 2 | 0e+00 | 1e-07 | 2e-07 | 30 dB | - | the same | 120 dB | 0e+00 |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", FASTEST)
def test_the_fastest_networks_are_exact(name):
    assert examined(name).said == EXACT
