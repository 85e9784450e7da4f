"""What will be done to every layer and every tensor between them, decided before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import LAYER_TYPES, argument, operator_of, summands
from datafree.recipe import TARGETS, USUAL, Activations, LayerRule, Prune, Recipe, RecipeError, Target, Weights
from datafree.records import Layer, PruneSpec, Skipped, WeightSpec
from datafree.solve.rounding import rounding_method

WIDE = 8  # bits of sums, concatenations, pooling and the network's input, at least

COSTLY = ("conv", "matmul", "bmm", "linear", "addmm", "attention", "lstm")


class NoLayersError(ValueError):
    """A network in which there is nothing to compress."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer: what becomes of its weights and how wide its input is; None = float."""

    layer: Layer
    weights: WeightSpec | None
    input_bits: int | None


@dataclass(frozen=True)
class Plan:
    """All layers by name; the widths of each tensor, by node name, widest first; what is left out; for whom."""

    layers: dict[str, LayerPlan]
    activation_bits: dict[str, tuple[int, ...]]
    skipped: tuple[Skipped, ...]
    target: Target = TARGETS[USUAL]


def plan_layers(teacher: fx.GraphModule, recipe: Recipe) -> Plan:
    """Decide bits for every layer and find the tensors to quantize.

    Below 8 bits the first and the last layer keep 8 (unless the recipe's `first_last` is "same"). The network's input
    and operands of sums, concatenations and pooling are quantized at 8 bits, or `activations.bits` where that is wider.

    Raises:
        RecipeError: a layer pattern matches nothing; lists the layers. There is no such rounding method.
        NoLayersError: there is nothing to compress.
    """
    rounding_method(recipe.solve)  # there is one
    _check_layers(teacher)
    layers = g.layers(teacher)
    rules = _rules(recipe, list(layers))
    skipped = [Skipped(name, "kept in float: the recipe says so") for name, rule in rules.items() if rule == "keep"]
    skipped += [
        Skipped(n.name, f"left in float: {n.target} is not a layer of its own weights") for n in _costly(teacher)
    ]
    skipped += [
        Skipped(argument(n, "name"), "runs as it is, in float: an operator of the file that is not read")
        for n in teacher.graph.nodes
        if str(n.target).startswith("datafree.onnx_node")
    ]
    names = list(layers)
    ends = {*names[:1], *names[-1:]} if recipe.first_last == 8 else set()
    weights = {name: g.weight(teacher, layer) for name, layer in layers.items()}
    plans = {n: _layer_plan(layer, weights[n], recipe, rules[n], n in ends) for n, layer in layers.items()}
    skipped += [
        Skipped(n, f"not pruned: {recipe.prune.pattern} does not divide its {w.shape[1]} input channels a group")
        for n, w in weights.items()
        if recipe.prune and rules[n] != "keep" and not fits(w, recipe.prune)
    ]
    widths = _activation_bits(teacher, plans, recipe.activations.bits, recipe.runtime)
    return Plan(plans, widths, tuple(skipped), recipe.runtime)


def _check_layers(teacher: fx.GraphModule) -> None:
    """Refuse a network in which there is nothing to compress.

    Raises:
        NoLayersError: names the kinds of layers that are compressed, and what there is instead.
    """
    if g.layers(teacher):
        return
    calls = [str(n.target).removeprefix("aten.") for n in teacher.graph.nodes if n.op == "call_function"]
    there = ", ".join([*dict.fromkeys(call.partition(".")[0] for call in calls)][:5]) or "nothing"
    kinds = ", ".join(kind.name for kind in LAYER_TYPES.values())
    raise NoLayersError(
        f"the network has no layer that can be compressed ({kinds}), it computes {there}; give the part that has some, "
        "such as model.backbone"
    )


def _rules(recipe: Recipe, names: list[str]) -> dict[str, LayerRule | str | None]:
    """The last matching rule of every layer, None where there is none."""
    for pattern in recipe.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
            raise RecipeError(f"layers: pattern {pattern!r} matches no layer; layers are {shown}")
    return {n: next((r for p, r in reversed(recipe.layers.items()) if fnmatchcase(n, p)), None) for n in names}


def _layer_plan(layer: Layer, weight: Tensor, recipe: Recipe, rule: LayerRule | str | None, end: bool) -> LayerPlan:
    if rule == "keep":
        return LayerPlan(layer, None, None)
    given = rule.given() if isinstance(rule, LayerRule) else {}
    weights = Weights(**{**recipe.weights.model_dump(), **given.get("weights", {})})
    bits = Activations(**{**recipe.activations.model_dump(), **given.get("activations", {})}).bits
    width = weights.bits
    if end and "bits" not in given.get("weights", {}):
        width = width and max(width, 8)
    if end and "bits" not in given.get("activations", {}):
        bits = bits and max(bits, 8)
    if "prune" in given and (recipe.prune is None or recipe.prune.pattern != "unstructured"):
        why = f"the recipe prunes {recipe.prune.pattern!r}" if recipe.prune else "the recipe prunes nothing"
        raise RecipeError(
            f"layers: {layer.name} has a prune.sparsity of its own, but {why}; "
            "leave it out, or set prune: {sparsity: ...} for the others (0 = none)"
        )
    pruning = _prune_spec(layer, weight, recipe.prune, given.get("prune", {}))
    one_scale = layer.kind in recipe.runtime.one_scale
    per_channel = weights.per == "channel" and not one_scale
    spec = WeightSpec(width, per_channel, weights.symmetric or width == 8, pruning, one_scale)
    return LayerPlan(layer, spec if width or pruning else None, bits)


def _prune_spec(layer: Layer, weight: Tensor, prune: Prune | None, given: dict[str, float]) -> PruneSpec | None:
    """The recipe's share of one layer; `allocate` moves weights between layers where the scope is global."""
    if prune is None or prune.pattern == "channels" or not fits(weight, prune):
        return None
    cell = (*prune.cell, layer.kernel_size) if prune.cell else None
    sparsity = given.get("sparsity", prune.sparsity)
    count = round(sparsity * weight.numel()) if not cell else weight.numel() // cell[1] * (cell[1] - cell[0])
    free = prune.scope == "global" and cell is None and "sparsity" not in given
    return PruneSpec(count, prune.score, prune.steps, cell, free) if count else None


def fits(weight: Tensor, prune: Prune) -> bool:
    """Whether an n:m pattern divides the input channels of a layer's weight; anything else always does."""
    return prune.cell is None or weight.shape[1] % prune.cell[1] == 0


def quantized_at(node: fx.Node) -> fx.Node:
    """The node whose values `node` only moves around: where a tensor is quantized once for all that follows."""
    while operator_of(node).same_values and not _pads_with_value(node):
        node = g.operand(node)
    return node


def _pads_with_value(node: fx.Node) -> bool:
    return operator_of(node).channels == "pads" and bool(argument(node, "value"))


def wide_operands(teacher: fx.GraphModule, target: Target) -> Iterator[fx.Node]:
    """Tensors that are rounded whether or not a layer reads them.

    Those that are summed, concatenated or pooled, and the network's inputs; a runtime may want more, or fewer.
    """
    layers_only = target.rounded == "layers"
    for node in teacher.graph.nodes:
        row = operator_of(node)
        if target.rounded == "everything" and _is_result(teacher, node):
            yield node
        if node.op == "placeholder" and not layers_only:
            yield node
        elif row.pools and not layers_only:
            yield g.operand(node)
        elif row.channels == "unites" or (row.channels == "joins" and not layers_only):
            operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
            if len(operands) > 1 or row.channels == "joins":
                fused = fused_operand(node) if target.fuses_sums else None
                yield from (n for n in operands if n is not fused)


def fused_operand(node: fx.Node) -> fx.Node | None:
    """The layer that runtimes compute together with a sum of two tensors: the last one that nothing else reads."""
    alone = [n for n in summands(node) if len(n.users) == 1 and g.note(g.operand(n) if g.note(n).v_o else n).layer]
    return max(alone, default=None)


def _is_result(teacher: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operator gives a tensor that is not clipped, or multiplied by constants, before anything else."""
    if node.op != "call_function" or len(g.shape(node)) < 2 or quantized_at(node).op == "get_attr":
        return False
    goes_on = [g.clip_bounds(u) is not None or g.channel_multiplier(teacher, u) is not None for u in node.users]
    return not (goes_on and all(goes_on))


def _activation_bits(
    teacher: fx.GraphModule, plans: dict[str, LayerPlan], bits: int | None, target: Target
) -> dict[str, tuple[int, ...]]:
    widths: dict[str, set[int]] = {}
    by_name = g.nodes_by_name(teacher)
    for plan in plans.values():
        if plan.input_bits:
            widths.setdefault(quantized_at(g.operand(by_name[plan.layer.node])).name, set()).add(plan.input_bits)
    if bits:
        for node in wide_operands(teacher, target):
            if len(g.shape(node)) > 1 and quantized_at(node).op != "get_attr":  # no signal reaches a constant
                widths.setdefault(quantized_at(node).name, set()).add(max(WIDE, bits))
    return {name: tuple(sorted(w, reverse=True)) for name, w in widths.items()}


def _costly(teacher: fx.GraphModule) -> list[fx.Node]:
    """Convolutions and products that are not layers this package compresses."""
    return [
        n
        for n in teacher.graph.nodes
        if n.op == "call_function" and not g.note(n).layer and any(word in str(n.target) for word in COSTLY)
    ]
