"""Images as a PNG that other programs read."""

from __future__ import annotations

import io

import pytest
import torch

from datafree.run.contact_sheet import MOST, contact_sheet

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("count", [1, 5, MOST + 3])
def test_every_image_is_on_the_sheet(channels, count):
    images = torch.zeros(count, channels, 6, 4)
    images[-1] += 1
    images[0] -= 1
    with Image.open(io.BytesIO(contact_sheet(images))) as sheet:
        sheet.load()
        shown = min(count, MOST)
        columns = next(c for c in range(1, 9) if c * c >= shown)
        assert sheet.mode == "RGB"
        assert sheet.width % columns == 0 and sheet.height % -(-shown // columns) == 0
        cell = sheet.width // columns
        assert sheet.getpixel((cell // 2, 3)) == (0, 0, 0)  # the first is the darkest


def test_colours_keep_their_order():
    images = torch.linspace(-2, 5, 3 * 64).view(1, 3, 8, 8)
    with Image.open(io.BytesIO(contact_sheet(images))) as sheet:
        row = [sheet.getpixel((x, sheet.height // 2))[0] for x in range(2, sheet.width - 2)]
    assert row == sorted(row) and row[0] < row[-1]
