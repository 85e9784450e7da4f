"""The plan: which layer gets how many bits, which tensors are quantized and where, and what is left out and why."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree import Recipe
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.recipe import RecipeError
from datafree.solve.plan import plan_layers, quantized_at
from datafree.teacher.batchnorm import fold_batchnorm_
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
    assert set(planned("residual", first_last="same").values()) == {(4, 4)}


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


def test_a_convolution_of_another_rank_is_listed_with_the_reason():
    model = nn.Sequential(nn.Unflatten(3, (16, 1)), nn.Conv3d(3, 4, 1), nn.Flatten(3), nn.Conv2d(4, 4, 1))
    plan = plan_layers(trace(model, torch.zeros(2, 3, 16, 16)), Recipe())
    (skip,) = plan.skipped
    assert "conv3d" in skip.reason and skip.reason.startswith("left in float")
    assert list(plan.layers) == ["3"]


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
    plan = plan_layers(graph, Recipe(**{**W4A4, "first_last": "same", **fields}))
    return [(label(n), plan.activation_bits[n.name]) for n in graph.graph.nodes if n.name in plan.activation_bits]


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
    assert [label for label, w in sites("constant tensors", first_last="same")].count("placeholder") == 1
    plan = plan_layers(folded("constant tensors"), Recipe())
    assert not [n for n in plan.activation_bits if g.node_of(folded("constant tensors"), n).op == "get_attr"]


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
    assert quantized_at(input_of(name, layer)) is node is quantized_at(node)


def test_root_of_a_part_is_the_whole():
    """chunk, getitem: both halves of the stem have its grid."""
    part = input_of("channel shuffle and split", "body.0.conv")
    assert label(quantized_at(part)) == "relu"
    assert quantized_at(part) is quantized_at(part.args[0])


def test_root_stops_at_a_sum():
    node = next(n for n in folded("residual").graph.nodes if n.target is torch.ops.aten.add.Tensor)
    assert quantized_at(node) is node


# Pruning


def pruning(plan):
    return {n: i.weights.prune for n, i in plan.layers.items() if i.weights and i.weights.prune}


def test_zeros_of_every_layer_are_counted():
    plan = plan_layers(folded("chain"), Recipe(**W4A4, prune={"sparsity": 0.3, "score": "magnitude", "steps": 5}))
    assert {n: p.count for n, p in pruning(plan).items()} == {"0.conv": 65, "1.conv": 173, "2.2": 12}
    assert {(p.score, p.steps, p.pattern, p.free) for p in pruning(plan).values()} == {("magnitude", 5, None, True)}
    assert widths(plan) == planned("chain"), "bits are as without pruning"


def test_float_weights_are_planned_where_they_are_pruned():
    plan = plan_layers(folded("chain"), Recipe(weights={"bits": None}, prune={}))
    assert {n: i.weights.bits for n, i in plan.layers.items()} == {"0.conv": None, "1.conv": None, "2.2": None}
    none = plan_layers(folded("chain"), Recipe(weights={"bits": None}, prune={"sparsity": 0}))
    assert not any(i.weights for i in none.layers.values())
    assert not pruning(plan_layers(folded("chain"), Recipe()))


def test_only_layers_without_a_share_of_their_own_are_free():
    rule = {"1.conv": {"prune": {"sparsity": 0.25}}, "0.conv": "keep"}
    found = pruning(plan_layers(folded("chain"), Recipe(prune={"sparsity": 0.5}, layers=rule)))
    assert {n: (p.count, p.free) for n, p in found.items()} == {"1.conv": (144, False), "2.2": (20, True)}
    alone = pruning(plan_layers(folded("chain"), Recipe(prune={"sparsity": 0.5, "scope": "layer"})))
    assert [p.free for p in alone.values()] == [False] * 3


def test_no_zeros_of_one_layer_is_a_share_too():
    rule = {"1.conv": {"prune": {"sparsity": 0}}}
    plan = plan_layers(folded("chain"), Recipe(prune={"sparsity": 0.5}, layers=rule))
    assert list(pruning(plan)) == ["0.conv", "2.2"] and plan.layers["1.conv"].weights.prune is None


def test_a_pattern_that_does_not_divide_the_channels_is_listed_and_bits_stay():
    plan = plan_layers(folded("grouped"), Recipe(**W4A4, prune={"pattern": "2:4"}))
    assert not pruning(plan)
    assert [(s.name, s.reason) for s in plan.skipped] == [
        ("0.conv", "not pruned: 2:4 does not divide its 3 input channels a group"),
        ("1.conv", "not pruned: 2:4 does not divide its 2 input channels a group"),
        ("2.conv", "not pruned: 2:4 does not divide its 6 input channels a group"),
        ("3.2", "not pruned: 2:4 does not divide its 6 input channels a group"),
    ]
    assert widths(plan) == planned("grouped")


def test_an_nm_pattern_counts_its_cells():
    found = pruning(plan_layers(folded("chain"), Recipe(prune={"pattern": "1:4"})))
    assert {n: (p.count, p.pattern, p.free) for n, p in found.items()} == {
        "1.conv": (432, (1, 4, 9), False), "2.2": (30, (1, 4, 1), False)
    }  # fmt: skip
    assert list(pruning(plan_layers(folded("grouped"), Recipe(prune={"pattern": "1:2"})))) == [
        "1.conv",
        "2.conv",
        "3.2",
    ]


def test_a_kept_layer_is_listed_once():
    plan = plan_layers(folded("chain"), Recipe(prune={"pattern": "2:4"}, layers={"0.conv": "keep"}))
    assert [(s.name, s.reason) for s in plan.skipped] == [("0.conv", "kept in float: the recipe says so")]


@pytest.mark.parametrize("prune", [None, {"pattern": "2:4"}], ids=["none", "n:m"])
def test_a_share_that_would_be_ignored_is_refused(prune):
    """Silence is an error: nothing is pruned without `prune`, and an n:m pattern has one share."""
    rule = {"1.conv": {"prune": {"sparsity": 0.2}}}
    with pytest.raises(RecipeError, match=r"layers: .*1\.conv.*prune"):
        plan_layers(folded("chain"), Recipe(prune=prune, layers=rule))
