"""What a row keeps and the page says, without the tools; a file goes through the command as a user types it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.tables import file_peers
from bench.tables.file_peers import OWN, Case, Row, beyond, measure, packed, table, unpacked
from bench.tables.one_command import compress_file

RIGHT = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
MINE = Row("resnet20_cifar10", OWN, 10, "1", 90.0, 80.0, 10.0, 10.0, 90.0, 0.28, 9.0, packed(RIGHT))


def of_tool(tool: str, right: torch.Tensor) -> Row:
    return replace(MINE, tool=tool, right=packed(right))


def test_a_row_keeps_which_images_were_right():
    assert torch.equal(unpacked(MINE), 100 * RIGHT.double())


@pytest.mark.parametrize(
    "right, word",
    [(RIGHT, "level"), (torch.zeros(10, dtype=torch.bool), "ours loses less"), (RIGHT.logical_not(), "ours loses less"),
     (torch.ones(10, dtype=torch.bool), "ours loses more")],
    ids=["the same", "all wrong", "the other way round", "all right"],
)  # fmt: skip
def test_within_a_standard_error_of_the_difference_files_are_level(right, word):
    more, found = beyond(of_tool("onnxsim", right), MINE)
    difference = 100 * (RIGHT.double() - right.double())
    assert more == f"{difference.mean():.1f} ± {difference.std() / 10**0.5:.1f}"
    assert found == word


def test_a_page_has_a_line_a_tool_and_the_reason_where_one_failed():
    failed = replace(MINE, tool="modelopt", top1=None, right="", skipped="no kernel")
    text = "\n".join(table([failed, of_tool("onnxsim", RIGHT), MINE]))
    assert "### resnet20_cifar10: float top-1 90.0 % on 10 images" in text
    assert "| datafree | 80.0 | 10.0 ± 10.0 (90) † |  |  | 28 % | 9 |" in text
    assert "| onnxsim | 80.0 | 10.0 ± 10.0 (90) † | 0.0 ± 0.0 | level | 28 % | 9 |" in text
    assert "| modelopt | failed † |" in text and "\nmodelopt: no kernel" in text


def test_a_tool_that_cannot_run_is_a_row_with_its_reason(tmp_path):
    logits = torch.eye(4)
    case = Case("resnet20_cifar10", tmp_path / "float.onnx", torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), logits)
    row = measure(case, "onnxsim", tmp_path / "python")
    assert row.float_top1 == 75 and row.top1 is None
    assert row.skipped.startswith("no such environment; `make peers` or `make file-peers` makes it")


def test_every_tool_has_its_script_and_its_line():
    peers = Path(file_peers.SCRIPT).parent
    listed = (peers / "one_file.py").read_text()
    assert all(f'"{tool}": (' in listed for tool in file_peers.PEERS)
    assert listed.count('", "with_') == len(file_peers.PEERS)


@pytest.mark.slow  # a process that loads torch; what it says is asked in tests/app/test_wrong_uses.py
def test_the_command_says_why_it_refuses_a_file(tmp_path):
    broken = tmp_path / "net.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"^error: net\.onnx is not an ONNX file"):
        compress_file(broken, tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()
