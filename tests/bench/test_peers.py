import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.networks.plain_modules import plain_modules
from bench.tables.peers import NOT_OFFERED, Row, table


class OwnConv(nn.Conv2d):
    """A convolution of a class of its own, as networks with TensorFlow's padding have it."""

    def forward(self, input):
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"groups": 2, "stride": 2}], ids=str)
def test_a_convolution_called_as_a_function_becomes_a_module(settings, tmp_path):
    model = nn.Sequential(OwnConv(4, 6, 3, **settings), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    plain = plain_modules(model)
    assert [type(m) for m in plain.modules() if isinstance(m, nn.Conv2d)] == [nn.Conv2d, nn.Conv2d]
    torch.save(plain, tmp_path / "model.pt")
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))


def test_a_cell_says_what_is_not_offered_and_what_failed():
    row = Row("resnet20_cifar10", "nncf", "3", "w8a8", "none", 0, 10, skipped=f"{NOT_OFFERED}it needs images")
    rows = [
        row,
        dataclasses.replace(row, preset="w4a8", skipped="ValueError: no"),
        dataclasses.replace(row, images="real"),
    ]
    rows[2] = dataclasses.replace(rows[2], skipped="", top1=80.0, lost=1.0, lost_error=0.5, agreement=97.0, seconds=3.0)
    text = "\n".join(table(rows))
    assert "float top-1 81.0 % on 10 images" in text
    assert "| nncf 3 | none | not offered † |  | failed † |  |" in text
    assert "| nncf 3 | real | 1.0 ± 0.5 (97) † |  |  | 3 |" in text
    assert "nncf w8a8 (none): it needs images" in text and "nncf w4a8 (none): ValueError: no" in text
