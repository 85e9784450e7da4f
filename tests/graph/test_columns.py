"""Columns of every kind of layer: weights times columns is what torch computes, at every output position."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datafree.execution.room import Files
from datafree.graph.columns import output_size, positions, taps_inside, unfold
from datafree.records import Layer
from jobs import convolution

KINDS = {
    "conv1d": (1, F.conv1d), "conv2d": (2, F.conv2d),
    "conv_transpose1d": (1, F.conv_transpose1d), "conv_transpose2d": (2, F.conv_transpose2d),
}  # fmt: skip
CONVS = {
    "3x3": ((3, 3), {}),
    "everything": ((2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}),
    "1x1 strided": ((1, 1), {"stride": (2, 2)}),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everywhere(shape, layer):
    return positions(shape, layer, math.prod(output_size(shape, layer)), 0)


def drawn_layer(data, kind):
    """A layer of a kind, and an image's sides it gives an output for."""
    rank = KINDS[kind][0]
    per_side = lambda low, high: data.draw(st.tuples(*[st.integers(low, high)] * rank))  # noqa: E731
    kernel, stride, dilation, sides = per_side(1, 3), per_side(1, 3), per_side(1, 2), per_side(1, 7)
    options = {"stride": stride, "padding": per_side(0, 3), "dilation": dilation}
    if "transpose" in kind:
        options["output_padding"] = tuple(
            data.draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)
        )
    layer = convolution(kernel, kind, groups=data.draw(st.sampled_from([1, 2, 4])), **options)
    assume(min(output_size((1, 4, *sides), layer)) > 0)
    return layer, sides


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_weights_times_columns_is_the_layer(kind, data):
    layer, sides = drawn_layer(data, kind)
    x, weight = randn(2, 4, *sides), randn(layer.groups, 8 // layer.groups, 4 // layer.groups, *layer.kernel, seed=1)
    as_called = weight.transpose(1, 2) if "transpose" in kind else weight
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    options |= {"output_padding": layer.output_padding} if "transpose" in kind else {}
    expected = KINDS[kind][1](x, as_called.flatten(0, 1), None, **options)
    assert output_size(x.shape, layer) == (2, *expected.shape[2:])
    u = unfold(x, layer, everywhere(x.shape, layer))
    y = torch.einsum("rgn,gon->rgo", u, weight.flatten(2)).flatten(1)
    torch.testing.assert_close(y, expected.movedim(1, -1).flatten(0, -2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_taps_are_inside_where_they_see_an_image_of_ones(kind, data):
    layer, sides = drawn_layer(data, kind)
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * len(sides), max_size=2 * len(sides)))
    image = F.pad(torch.ones(1, layer.groups, *sides), pads)
    seen = unfold(image, layer, everywhere(image.shape, layer))
    assert torch.equal(taps_inside(layer, sides, pads), seen[:, 0])


def test_a_linear_layer_reads_vectors():
    x, layer = randn(2, 3, 4, 6), Layer("fc", "fc", "linear")
    assert torch.equal(unfold(x, layer, everywhere(x.shape, layer)), x.reshape(24, 1, 6))
    assert torch.equal(taps_inside(layer, ()), torch.ones(1, 1))


@pytest.mark.parametrize("name", CONVS)
def test_memory_layout_of_the_input_does_not_matter(name):
    layer, x = convolution(CONVS[name][0], **CONVS[name][1]), randn(3, 4, 8, 9)
    at = everywhere(x.shape, layer)
    wide = torch.cat([-x, x], 3)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "a slice": wide[..., x.shape[3] :],
        "every second image": torch.stack([-x, x], 1).flatten(0, 1)[1::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for layout, value in layouts.items():
        assert torch.equal(unfold(value, layer, at), unfold(x, layer, at)), layout


@pytest.mark.parametrize("name", CONVS)
def test_positions_are_drawn_inside_the_output_and_by_the_seed(name):
    layer, x = convolution(CONVS[name][0], **CONVS[name][1]), randn(3, 4, 8, 9)
    size = output_size(x.shape, layer)
    drawn = positions(x.shape, layer, 5, 0)
    assert drawn.shape == (5, len(size))
    assert (drawn >= 0).all() and (drawn < torch.tensor(size)).all()
    assert torch.equal(drawn, positions(x.shape, layer, 5, 0))
    assert not torch.equal(drawn, positions(x.shape, layer, 5, 1))
    rows = unfold(x, layer, everywhere(x.shape, layer)).unflatten(0, size)
    assert torch.equal(unfold(x, layer, drawn), rows[tuple(drawn.T)])


@pytest.mark.parametrize("name", CONVS)
def test_columns_of_what_lies_in_a_file_are_the_same(name, tmp_path):
    kernel, options = CONVS[name]
    layer, x = convolution(kernel, **options), randn(3, 4, 8, 9)
    on_file = Files(tmp_path).empty(x.shape, x.dtype).copy_(x)
    at = positions(x.shape, layer, 40, 1)
    assert torch.equal(unfold(on_file, layer, at), unfold(x, layer, at))
