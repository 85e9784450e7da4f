"""The plan: which layer gets how many bits, which tensors are quantized and where, and what is left out and why."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree import Recipe
from datafree import graph as g
from datafree.batchnorm import fold_batchnorm_
from datafree.capture import trace
from datafree.plan import plan_layers, root
from datafree.recipe import RecipeError
from nets import NETS, conv, head

W4A4 = {"weights": {"bits": 4}, "activations": {"bits": 4}}


@functools.cache
def folded(name):
    graph = trace(*NETS[name]())
    fold_batchnorm_(graph)
    return graph


def widths(plan):
    """(weight bits, input bits) of every layer."""
    return {name: (item.weights and item.weights.bits, item.input_bits) for name, item in plan.layers.items()}


def planned(name, **fields):
    return widths(plan_layers(folded(name), Recipe(**{**W4A4, **fields})))


# Bits


def test_ends_keep_eight_bits_below_eight():
    assert list(planned("residual").values()) == [(8, 8), *[(4, 4)] * 4, (8, 8)]
    assert list(planned("residual", weights={"bits": 6}).values()) == [(8, 8), *[(6, 4)] * 4, (8, 8)]


def test_ends_alike_are_like_the_others():
    assert set(planned("residual", ends="alike").values()) == {(4, 4)}


def test_ends_stay_float_where_all_is_float():
    assert set(planned("residual", weights={"bits": None}, activations={"bits": None}).values()) == {(None, None)}


def test_first_and_last_are_those_that_run_first_and_last():
    model, x = NETS["declared out of order"]()
    assert list(g.layers(trace(model, x))) == ["conv1", "conv2", "head.2"]
    assert planned("declared out of order") == {"conv1": (8, 8), "conv2": (4, 4), "head.2": (8, 8)}


def test_a_rule_for_an_end_is_obeyed():
    found = planned("chain", layers={"0.conv": {"weights": {"bits": 3}}, "2.2": {"activations": {"bits": 5}}})
    assert found == {"0.conv": (3, 8), "1.conv": (4, 4), "2.2": (8, 5)}


def test_eight_bit_weights_are_symmetric_and_others_as_asked():
    plan = plan_layers(folded("chain"), Recipe(**W4A4))
    assert [item.weights.symmetric for item in plan.layers.values()] == [True, False, True]
    plan = plan_layers(folded("chain"), Recipe(weights={"bits": 4, "symmetric": True, "per": "tensor"}))
    assert {(i.weights.symmetric, i.weights.per_channel) for i in plan.layers.values()} == {(True, False)}


# Rules


def test_the_last_rule_that_matches_wins():
    narrow, wide = {"weights": {"bits": 2}}, {"weights": {"bits": 7}}
    assert planned("residual", layers={"*": narrow, "1.*": wide})["1.0.conv"] == (7, 4)
    assert planned("residual", layers={"1.*": wide, "*": narrow})["1.0.conv"] == (2, 4)
    assert planned("residual", layers={"1.*": wide, "1.0.conv": "keep"})["1.0.conv"] == (None, None)
    assert planned("residual", layers={"1.0.conv": "keep", "1.*": wide})["1.0.conv"] == (7, 4)


def test_a_rule_changes_only_what_it_names():
    rule = {"1.0.conv": {"activations": {"bits": 6}}, "1.1.conv": {"weights": {"per": "tensor"}}}
    plan = plan_layers(folded("residual"), Recipe(**W4A4, layers=rule))
    assert widths(plan)["1.0.conv"] == (4, 6) and widths(plan)["1.1.conv"] == (4, 4)
    assert [plan.layers[n].weights.per_channel for n in ("1.0.conv", "1.1.conv")] == [True, False]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.twice = conv(3, 4), nn.Sequential(conv(4, 4), nn.ReLU())

    def forward(self, x):
        return self.twice(self.twice(self.stem(x)))


def test_both_calls_of_a_shared_module_match():
    graph = trace(Twice(), torch.zeros(1, 3, 8, 8))
    assert widths(plan_layers(graph, Recipe(layers={"twice.*": "keep"}))) == {
        "stem": (8, 8), "twice.0": (None, None), "twice.0@1": (None, None)
    }  # fmt: skip
    only = {"twice.0@1": "keep"}
    assert widths(plan_layers(graph, Recipe(layers=only)))["twice.0"] == (8, 8)


def test_a_pattern_that_matches_nothing_lists_the_layers():
    with pytest.raises(RecipeError, match=r"^layers: pattern 'conv\*' matches no layer; layers are 0.conv, .*, 5.2$"):
        planned("residual", layers={"0.*": "keep", "conv*": "keep"})


def test_of_many_layers_eight_are_listed():
    graph = trace(nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)]), torch.zeros(1, 2))
    with pytest.raises(RecipeError, match=r"layers are 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(9 in all\)$"):
        plan_layers(graph, Recipe(layers={"nosuch": "keep"}))


# What is left out


def test_kept_layers_are_listed_with_the_reason():
    plan = plan_layers(folded("residual"), Recipe(layers={"1.*": "keep"}))
    assert [(s.name, s.reason) for s in plan.skipped] == [
        (name, "kept in float: the recipe says so") for name in ("1.0.conv", "1.1.conv")
    ]


def test_a_transposed_convolution_is_listed_with_the_reason():
    plan = plan_layers(folded("transposed conv"), Recipe())
    (skip,) = plan.skipped
    assert "conv_transpose2d" in skip.reason and skip.reason.startswith("left in float")
    assert len(plan.layers) == 3


class Product(nn.Module):
    """Its second product has weights that are computed: nothing a layer-wise step can solve."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = conv(3, 4), head(4)

    def forward(self, x):
        y = self.conv(x)
        tokens = y.flatten(2)
        mixed = torch.matmul(tokens, tokens.transpose(1, 2))
        kernel = self.conv.weight[:, :1] * 2
        return self.head(F.conv2d(y, kernel + mixed.mean(), padding=1, groups=4))


def test_products_and_computed_weights_are_listed():
    plan = plan_layers(trace(Product(), torch.zeros(1, 3, 8, 8)), Recipe())
    assert list(plan.layers) == ["conv", "head.2"]
    assert sorted("matmul" in s.reason for s in plan.skipped) == [False, True]
    assert all(s.reason.startswith("left in float") for s in plan.skipped)


# Sites


def sites(name, **fields):
    """Widths by operator that made the tensor (placeholders by name), in execution order."""
    graph = folded(name)
    plan = plan_layers(graph, Recipe(**{**W4A4, "ends": "alike", **fields}))
    return [(label(n), plan.sites[n.name]) for n in graph.graph.nodes if n.name in plan.sites]


def label(node):
    return node.op if node.op == "placeholder" else node.target._schema.name.removeprefix("aten::")


def test_input_and_chain():
    assert sites("chain") == [("placeholder", (8, 4)), ("relu", (4,)), ("relu", (8,)), ("adaptive_avg_pool2d", (4,))]


def test_operands_of_a_residual_sum_are_wide():
    assert sites("residual") == [
        ("placeholder", (8, 4)),
        ("relu", (8, 4)), ("relu", (4,)), ("conv2d", (8,)),  # the first sum adds the stem and the body's last layer
        ("relu", (8, 4)), ("relu", (4,)), ("conv2d", (8,)),
        ("relu", (8,)), ("adaptive_avg_pool2d", (4,)),
    ]  # fmt: skip


def test_operands_of_a_concatenation_are_wide():
    assert sites("concat") == [
        ("placeholder", (8, 4)),
        ("relu", (8, 4)), ("relu", (8,)), ("cat", (8, 4)), ("relu", (8,)), ("cat", (4,)),
        ("relu", (8,)), ("adaptive_avg_pool2d", (4,)),
    ]  # fmt: skip


def test_pooled_tensors_are_wide():
    assert sites("pools") == [
        ("placeholder", (8, 4)),
        ("relu", (8,)), ("avg_pool2d", (4,)),
        ("relu", (8, 4)),  # maximum pooling makes no new value: one tensor, pooled at 8 bits, read at 4
        ("relu", (8,)), ("adaptive_avg_pool2d", (4,)),
    ]  # fmt: skip


def test_every_input_is_a_site():
    assert [s for s in sites("two inputs") if s[0] == "placeholder"] == [("placeholder", (8, 4))] * 2


def test_eight_bits_everywhere_is_one_width_everywhere():
    assert {w for _, w in sites("residual", activations={"bits": 8})} == {(8,)}


def test_float_activations_have_no_sites():
    assert sites("residual", activations={"bits": None}) == []


def test_a_vector_as_sum_operand_is_no_tensor_of_the_network():
    """x - offset: the offset is a constant, so nothing is summed."""
    assert [label for label, w in sites("constant tensors", ends="alike")].count("placeholder") == 1
    plan = plan_layers(folded("constant tensors"), Recipe())
    assert not [n for n in plan.sites if g.node_of(folded("constant tensors"), n).op == "get_attr"]


# Roots


def input_of(name, layer):
    graph = folded(name)
    return g.node_of(graph, g.layers(graph)[layer].node).args[0]


@pytest.mark.parametrize(
    "name, layer, passed, made_by",
    [
        ("linear after flatten", "3", ["flatten", "max_pool2d"], "relu"),
        ("pools", "4.conv", ["max_pool2d"], "relu"),
        ("chain", "2.2", ["flatten"], "adaptive_avg_pool2d"),
        ("concat", "3.conv", [], "cat"),
    ],
)
def test_root_goes_through_what_only_moves_values(name, layer, passed, made_by):
    node, seen = input_of(name, layer), []
    while label(node) != made_by:
        seen.append(label(node))
        node = node.args[0]
    assert seen == passed
    assert root(input_of(name, layer)) is node is root(node)


def test_root_of_a_part_is_the_whole():
    """chunk, getitem: both halves of the stem have its grid."""
    part = input_of("channel shuffle and split", "body.0.conv")
    assert label(root(part)) == "relu"
    assert root(part) is root(part.args[0])


def test_root_stops_at_a_sum():
    node = next(n for n in folded("residual").graph.nodes if n.target is torch.ops.aten.add.Tensor)
    assert root(node) is node
