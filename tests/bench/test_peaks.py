"""The page of peak memory: ratios to the bound, what was stopped, and the exponent of time."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.tables import memory
from bench.tables.memory import MB, Asked, Row

LARGE = Row(
    "torchvision:resnet152", 64, "w4a8", weights=60 * MB, moments=30 * MB, activations=10 * MB, peak=150 * MB,
    base=400 * MB, line="a.py:1", commit="0000000",
)  # fmt: skip


def page_of(rows, folder):
    (folder / "memory.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return memory.page(folder)


def test_a_peak_stands_beside_its_bound(tmp_path):
    text = page_of([LARGE, replace(LARGE, preset="w8a8", finished=False)], tmp_path)
    assert "| resnet152 | `w4a8` | 60 | 30 | 10 | 100 | 150 | 1.50 †" in text
    assert "Stopped after 12 minutes, as far as they came: resnet152 `w8a8`." in text


def test_under_a_limit_the_whole_process_counts(tmp_path):
    assert "| resnet152, 64 | `w4a8` | 500 | 550 | 110 % †" in page_of([replace(LARGE, limit=500)], tmp_path)


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_exponent_of_a_power_is_found(power):
    x = [1.0, 2.0, 5.0]
    assert memory.exponent(x, [3 * v**power for v in x]) == pytest.approx(power)


def test_time_is_shown_where_there_are_three_sizes(tmp_path):
    rows = [
        replace(LARGE, **asdict(asked), cpu_seconds=asked.side**2 / 100) for asked in memory.PARTS["pixels"][:3]
    ]  # fmt: skip
    assert "CPU seconds ~ (pixels)^1.00." in page_of(rows, tmp_path)
    assert "CPU seconds ~" not in page_of(rows[:2], tmp_path)


def test_a_line_of_the_package_is_named_and_none_of_others():
    assert memory.where(sys._getframe()) == ""
    assert memory.where(None) == ""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")
def test_what_this_process_holds_is_read():
    held = memory.resident()
    assert 0 < held["RssAnon"] <= held["VmRSS"] <= held["VmHWM"]


def test_the_largest_networks_are_measured_at_both_presets():
    assert {(a.network, a.preset) for a in memory.PARTS["peak"]} >= {
        ("timm:convnext_large", "w4a8"), ("torchvision:wide_resnet101_2", "w8a8-tensor"),
    }  # fmt: skip
    assert all(isinstance(a, Asked) for part in memory.PARTS.values() for a in part)
