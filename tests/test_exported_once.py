"""The suite's own memory of exported nets: it is used, and what comes out of it is the net that was given."""

import torch
from torch import nn

from datafree.graph.capture import trace
from nets import NETS, randomise_batchnorm_


def test_a_net_is_exported_once(exported_once):
    trace(*NETS["residual"]())
    known = len(exported_once)
    trace(*NETS["residual"]())
    assert len(exported_once) == known


def test_other_weights_are_no_other_net(exported_once):
    model, inputs = NETS["residual"]()
    first = trace(model, inputs)
    wanted, known = first(*inputs), len(exported_once)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    randomise_batchnorm_(model, torch.Generator().manual_seed(1))
    other = trace(model, inputs)
    assert len(exported_once) == known
    torch.testing.assert_close(other(*inputs), model(*inputs))
    assert torch.equal(first(*inputs), wanted) and not torch.allclose(other(*inputs), wanted)


class Held(nn.Module):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self, held):
        super().__init__()
        self.conv, self.held = nn.Conv2d(3, 4, 3), [held]

    def forward(self, x):
        return self.conv(x) * self.held[0]


def test_a_tensor_that_is_no_weight_counts_by_its_value():
    x = torch.ones(2, 3, 8, 8)
    for value in (2.0, 3.0):
        model = Held(torch.tensor(value)).eval()
        torch.testing.assert_close(trace(model, x)(x), model(x))


def test_weights_that_are_shared_are_another_net():
    x = torch.ones(2, 4, 8, 8)
    one, two = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 2)
    for model in (one, two):
        torch.testing.assert_close(trace(model.eval(), x)(x), model(x))
