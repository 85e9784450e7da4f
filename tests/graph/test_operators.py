"""Every row of the table of operators goes all the way: captured, equalized, compressed, written to ONNX and run."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from datafree import Recipe, compress, export_onnx
from datafree.export.onnx.translate import TABLE
from datafree.graph.capture import trace
from datafree.graph.operators import OPERATORS, argument, aten
from datafree.graph.view import duplicate
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_
from nets import block, conv

IMAGE = (2, 4, 8, 8)
ONES = torch.ones(4)
CUBE, SQUARE = torch.ones(4, 4, 2), torch.ones(4, 4, 2, 2)
ROWS_OF_8 = torch.linspace(0, 1, 24).view(3, 8)
PAIR = torch.ones(1, 4, 1, 1)

CALLS = {
    aten.hardtanh.default: lambda x: aten.hardtanh(x, -0.5, 0.5),
    aten.clamp.default: lambda x: aten.clamp(x, -0.5, 0.5),
    aten.clamp_min.default: lambda x: aten.clamp_min(x, -0.5),
    aten.clamp_max.default: lambda x: aten.clamp_max(x, 0.5),
    aten.prelu.default: lambda x: aten.prelu(x, 0.2 * ONES),
    aten._prelu_kernel.default: lambda x: aten._prelu_kernel(x, 0.2 * PAIR),
    aten.pow.Tensor_Scalar: lambda x: aten.pow.Tensor_Scalar(x, 2),
    aten.sqrt.default: lambda x: aten.sqrt(aten.abs(x)),
    aten.log.default: lambda x: aten.log(aten.add.Scalar(aten.abs(x), 1)),
    aten.rsqrt.default: lambda x: aten.rsqrt(aten.add.Scalar(aten.abs(x), 1)),
    aten.reciprocal.default: lambda x: aten.reciprocal(aten.add.Scalar(aten.abs(x), 1)),
    aten.add.Scalar: lambda x: aten.add.Scalar(x, 0.5),
    aten.sub.Scalar: lambda x: aten.sub.Scalar(x, 0.5),
    aten.rsub.Scalar: lambda x: aten.rsub.Scalar(x, 0.5, 2),
    aten.mul.Scalar: lambda x: aten.mul.Scalar(x, 0.5),
    aten.div.Scalar: lambda x: aten.div.Scalar(x, 2.0),
    aten.div.Tensor: lambda x: aten.div.Tensor(x, 2 * PAIR),
    aten.to.dtype: lambda x: aten.to.dtype(x, torch.float32),
    aten.add.Tensor: lambda x: x + x.flip(3),
    aten.sub.Tensor: lambda x: x - x.flip(3),
    aten.mul.Tensor: lambda x: x * x.flip(3),
    aten.maximum.default: lambda x: torch.maximum(x, x.flip(3)),
    aten.minimum.default: lambda x: torch.minimum(x, x.flip(3)),
    aten.max_pool1d.default: lambda x: nn.functional.max_pool1d(x.flatten(2), 2),
    aten.adaptive_max_pool1d.default: lambda x: nn.functional.adaptive_max_pool1d(x.flatten(2), 2),
    aten.avg_pool1d.default: lambda x: nn.functional.avg_pool1d(x.flatten(2), 2),
    aten.adaptive_avg_pool1d.default: lambda x: nn.functional.adaptive_avg_pool1d(x.flatten(2), 2),
    aten.upsample_nearest1d.vec: lambda x: nn.functional.interpolate(x.flatten(2), scale_factor=2),
    aten.upsample_linear1d.vec: lambda x: nn.functional.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    aten.max_pool2d.default: lambda x: nn.functional.max_pool2d(x, 2),
    aten.adaptive_max_pool2d.default: lambda x: nn.functional.adaptive_max_pool2d(x, 2),
    aten.avg_pool2d.default: lambda x: nn.functional.avg_pool2d(x, 2),
    aten.adaptive_avg_pool2d.default: lambda x: nn.functional.adaptive_avg_pool2d(x, 2),
    aten.mean.dim: lambda x: x.mean((2, 3)),
    aten.amax.default: lambda x: x.amax((2, 3)),
    aten.sum.dim_IntList: lambda x: x.sum((2, 3)),
    aten.upsample_nearest2d.vec: lambda x: nn.functional.interpolate(x, scale_factor=2),
    aten.upsample_bilinear2d.vec: lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
    aten.group_norm.default: lambda x: nn.functional.group_norm(x, 2),
    aten.instance_norm.default: lambda x: nn.functional.instance_norm(x),
    aten.batch_norm.default: lambda x: nn.functional.batch_norm(x, x.mean((0, 2, 3)), x.square().mean((0, 2, 3)) + 1),
    aten.layer_norm.default: lambda x: nn.functional.layer_norm(x, (8,)),
    aten.contiguous.default: lambda x: aten.contiguous(x.permute(0, 1, 3, 2)),
    aten.view.default: lambda x: x.view(x.shape[0], 2, 2, 8, 8),
    aten.reshape.default: lambda x: x.reshape(x.shape[0], 2, 2, 8, 8),
    aten._unsafe_view.default: lambda x: aten._unsafe_view(x, (x.shape[0], 2, 2, 8, 8)),
    aten.expand.default: lambda x: x[:, :1].expand(-1, 4, -1, -1),
    aten.expand_as.default: lambda x: aten.expand_as(x[:, :1], x),
    aten.flatten.using_ints: lambda x: aten.flatten.using_ints(x, 1),
    aten.unflatten.int: lambda x: x.unflatten(1, (2, 2)),
    aten.permute.default: lambda x: x.permute(0, 2, 3, 1),
    aten.transpose.int: lambda x: x.transpose(1, 2),
    aten.squeeze.dim: lambda x: x[:, :1].squeeze(1),
    aten.squeeze.dims: lambda x: aten.squeeze.dims(x[:, :1, :1], (1, 2)),
    aten.unsqueeze.default: lambda x: x.unsqueeze(2),
    aten.slice.Tensor: lambda x: x[:, 1:3],
    aten.narrow.default: lambda x: x.narrow(1, 1, 2),
    aten.select.int: lambda x: x.select(1, 2),
    aten.split.Tensor: lambda x: x.split(2, 1)[0],
    aten.split_with_sizes.default: lambda x: aten.split_with_sizes(x, [1, 3], 1)[1],
    aten.chunk.default: lambda x: aten.chunk(x, 2, 1)[1],
    aten.unbind.int: lambda x: x.unbind(1)[2],
    operator.getitem: lambda x: x.split(2, 1)[1],
    aten.roll.default: lambda x: x.roll((1, -3), (2, 3)),
    aten.flip.default: lambda x: x.flip(3),
    aten.pixel_shuffle.default: lambda x: nn.functional.pixel_shuffle(x, 2),
    aten.channel_shuffle.default: lambda x: aten.channel_shuffle(x, 2),
    aten.cat.default: lambda x: torch.cat([x, x.flip(3)], 1),
    aten.stack.default: lambda x: torch.stack([x, x.flip(3)], 1),
    aten.constant_pad_nd.default: lambda x: nn.functional.pad(x, (1, 2)),
    aten.pad.default: lambda x: nn.functional.pad(x, (1, 2, 1, 1), mode="reflect"),
    aten.conv1d.default: lambda x: nn.functional.conv1d(x.flatten(2), CUBE),
    aten.conv2d.default: lambda x: nn.functional.conv2d(x, SQUARE),
    aten.conv_transpose1d.default: lambda x: nn.functional.conv_transpose1d(x.flatten(2), CUBE),
    aten.conv_transpose2d.input: lambda x: nn.functional.conv_transpose2d(x, SQUARE),
    aten.linear.default: lambda x: nn.functional.linear(x, ROWS_OF_8),
    aten.matmul.default: lambda x: x @ x.transpose(2, 3),
    aten.bmm.default: lambda x: torch.bmm(x[:, 0], x[:, 1]),
    aten.softmax.int: lambda x: x.softmax(1),
    aten.rms_norm.default: lambda x: nn.functional.rms_norm(x, (8,)),
    aten.conv3d.default: lambda x: nn.functional.conv3d(x[:, None], torch.ones(2, 1, 1, 3, 3)),
    aten.einsum.default: lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
    aten.scaled_dot_product_attention.default: lambda x: nn.functional.scaled_dot_product_attention(x, x, x),
    aten.max.other: lambda x: torch.ops.aten.max.other(x, x.flip(3)),
    aten.min.other: lambda x: torch.ops.aten.min.other(x, x.flip(3)),
    aten.addcmul.default: lambda x: torch.addcmul(x, x, x.flip(3)),
    aten.var.correction: lambda x: aten.var.correction(x, (2, 3)),
    aten.var.dim: lambda x: aten.var.dim(x, (2, 3)),
    aten.linalg_vector_norm.default: lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    aten.norm.ScalarOpt_dim: lambda x: aten.norm.ScalarOpt_dim(x, 2, (2, 3)),
    aten.dropout.default: lambda x: aten.dropout(x, 0.5, False),
    aten.feature_dropout.default: lambda x: aten.feature_dropout(x, 0.5, False),
    aten.alpha_dropout.default: lambda x: aten.alpha_dropout(x, 0.5, False),
}
FIRST = {row: target for target, row in reversed(OPERATORS.items())}  # of all operators that are alike
ROWS = pytest.mark.parametrize(
    "target",
    [t if FIRST[row] is t else pytest.param(t, marks=pytest.mark.slow) for t, row in OPERATORS.items()],
    ids=str,
)


class Around(nn.Module):
    """A layer, the operator, and a layer that reads it flattened."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function = block(4, 4), function
        self.second = conv(4, 4, 1)
        with torch.no_grad():
            self.last = nn.Linear(self._flat(torch.zeros(IMAGE)).shape[1], 3)

    def _flat(self, x):
        return self.function(self.second(self.first(x))).flatten(1)

    def forward(self, x):
        return self.last(self._flat(x))


def net(target):
    torch.manual_seed(0)
    return Around(CALLS.get(target, lambda x: target(x))).eval()


@ROWS
def test_a_row_is_captured_by_its_name_and_equalized(target):
    """What does nothing in eval mode is left out; the function stays, whatever is equalized."""
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    graph = trace(net(target), x)
    assert any(n.target is target for n in graph.graph.nodes) != OPERATORS[target].identity
    with torch.no_grad():
        wanted = graph(x)
        stats, _ = fold_batchnorm_(graph)
        for mode in ("foldable", "free"):
            equalized = duplicate(graph)
            equalize_(equalized, stats, mode=mode)
            assert torch.allclose(equalized(x), wanted, rtol=1e-3, atol=1e-4)


def test_no_scale_passes_through_a_square():
    """x * x is one operand read twice: f(s x) = s^2 f(x)."""
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    graph = trace(Around(lambda x: x * x).eval(), x)
    with torch.no_grad():
        wanted = graph(x)
        stats, _ = fold_batchnorm_(graph)
        equalize_(graph, stats, mode="between")
        assert torch.allclose(graph(x), wanted, rtol=1e-3, atol=1e-4)


@ROWS
def test_a_row_is_compressed_and_written(target, tmp_path):
    pytest.importorskip("onnxruntime")
    run = compress(net(target), Recipe.preset("w8a8").updated(["signal.images=4"]), torch.zeros(IMAGE))
    assert export_onnx(run, tmp_path / "net.onnx").sqnr_db > 20


def test_what_can_be_written_has_a_row_and_every_row_can_be_written_or_is_left_out():
    of_files = {torch.ops.datafree.onnx_node.default}  # what an ONNX file holds and nobody here knows
    assert set(TABLE) - of_files <= set(OPERATORS)
    assert {t for t in OPERATORS if t not in TABLE and not OPERATORS[t].identity} == {operator.getitem}


def test_an_argument_is_found_by_its_name_wherever_it_stands():
    graph = trace(Around(lambda x: aten.constant_pad_nd(x, [1, 1])).eval(), torch.zeros(IMAGE))
    node = next(n for n in graph.graph.nodes if n.target is aten.constant_pad_nd.default)
    assert (argument(node, "pad"), argument(node, "value")) == ([1, 1], 0)
    with pytest.raises(AssertionError, match="has no argument dim"):
        argument(node, "dim")
