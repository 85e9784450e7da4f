"""Rendered text is the same next time and where it is said to be; what RapidOCR reads is scored as told."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

if importlib.util.find_spec("matplotlib") is None:
    pytest.skip("fonts come with matplotlib", allow_module_level=True)
pytest.importorskip("PIL")
from bench.networks.text_images import Line, lines, pages
from bench.tables import rapidocr, rapidocr_files, rapidocr_reading
from bench.tables.rapidocr_reading import Images, Reading

WHITE = np.full((40, 100, 3), 255, np.uint8)


def test_the_same_seed_gives_the_same_lines_and_another_one_others():
    again = zip(lines(3, seed=1), lines(3, seed=1), strict=True)
    assert all(a[1] == b[1] and np.array_equal(a[0], b[0]) for a, b in again)
    assert [text for _, text in lines(3, seed=1)] != [text for _, text in lines(3, seed=2)]


def test_pages_hold_ink_where_their_lines_are():
    for pixels, written in pages(2, seed=0):
        assert written
        for line in written:
            left, top, right, bottom = (round(v) for v in line.box)
            inside = pixels[top:bottom, left:right].astype(float)
            assert inside.size and np.ptp(inside.mean(2)) > 60


def test_lines_are_right_with_and_without_their_spaces():
    images = Images([(WHITE, "a b"), (WHITE, "cd"), (WHITE, "ef")], [])
    reading = Reading(["ab", "cd", "xx"], [], [])
    assert rapidocr_reading.lines_right(reading, images).tolist() == [100, 100, 0]
    assert rapidocr_reading.lines_right(reading, images, spaces=True).tolist() == [0, 100, 0]


def test_lines_of_a_page_count_wherever_they_are_found_on_it():
    images = Images([], [(WHITE, [Line("a b", (0, 0, 9, 9)), Line("c", (0, 9, 9, 20))])])
    assert rapidocr_reading.share_of_pages(Reading([], [["zz", "ab"]], []), images) == 50


@pytest.mark.parametrize(
    "table, expected",
    [
        ([[1.0]], [1.0]),
        ([[0.5, 0.9], [0.8, 0.7]], [0.9, 0.8]),
        ([[0.6], [0.7]], [0.7, 0.0]),
        (np.zeros((0, 2)), [0.0, 0.0]),
        ([[0.0]], [0.0, 0.0]),
    ],
    ids=["same", "largest first", "one too many", "nothing found", "apart"],
)
def test_boxes_are_paired_and_the_rest_counts_nothing(table, expected):
    assert rapidocr_reading.paired(np.array(table)) == expected


def test_settings_are_of_all_parts_or_of_the_one_named():
    settings = ["weights.bits=4", "det:layers.a=keep"]
    assert rapidocr_files.settings_of("det", settings) == ["weights.bits=4", "layers.a=keep"]
    assert rapidocr_files.settings_of("rec", settings) == ["weights.bits=4"]


def test_the_page_shows_figures_and_reasons(tmp_path):
    parts = {"det": 0.3, "cls": 0.4, "rec": 0.25}
    made = rapidocr.Row("ours", 0, 500, 60, 94.0, 58.0, 0.4, 0.2, 1.0, 99.0, 95.0, 93.0, 0.97, 0.29, parts, parts, 80.0)
    rows = [made, rapidocr.Row("ONNX Runtime, dynamic", 0, 500, 60, skipped="no such operator")]
    (tmp_path / "rapidocr.jsonl").write_text("\n".join(json.dumps(vars(row)) for row in rows))
    page = rapidocr.page(tmp_path)
    assert "0.290 (0.30 / 0.40 / 0.25)" in page
    assert "ONNX Runtime, dynamic: no such operator" in page
