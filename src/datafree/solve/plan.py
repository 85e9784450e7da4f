"""What will be done to every layer and every tensor between them, decided before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import argument, operator_of
from datafree.recipe import Activations, LayerRule, Prune, Recipe, RecipeError, Weights
from datafree.records import Layer, PruneSpec, Skipped, WeightSpec
from datafree.solve.rounding import rounding_method

WIDE = 8  # bits of sums, concatenations, pooling and the network's input, at least

COSTLY = ("conv", "matmul", "bmm", "linear", "addmm", "attention", "lstm")


@dataclass(frozen=True)
class LayerPlan:
    """One layer: what becomes of its weights and how wide its input is; None = float."""

    layer: Layer
    weights: WeightSpec | None
    input_bits: int | None


@dataclass(frozen=True)
class Plan:
    """All layers by name; the widths each tensor is quantized to, by node name, widest first; what is left out."""

    layers: dict[str, LayerPlan]
    activation_bits: dict[str, tuple[int, ...]]
    skipped: tuple[Skipped, ...]


def plan_layers(teacher: fx.GraphModule, recipe: Recipe) -> Plan:
    """Decide bits for every layer and find the tensors to quantize.

    Below 8 bits the first and the last layer keep 8 (unless the recipe's `first_last` is "same"). The network's input
    and operands of sums, concatenations and pooling are quantized at 8 bits, or `activations.bits` where that is wider.

    Raises:
        RecipeError: a layer pattern matches nothing; lists the layers. There is no such rounding method.
    """
    rounding_method(recipe.solve)  # there is one
    layers = g.layers(teacher)
    rules = _rules(recipe, list(layers))
    skipped = [Skipped(name, "kept in float: the recipe says so") for name, rule in rules.items() if rule == "keep"]
    skipped += [
        Skipped(n.name, f"left in float: {n.target} is not a layer of its own weights") for n in _costly(teacher)
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
    return Plan(plans, _activation_bits(teacher, plans, recipe.activations.bits), tuple(skipped))


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
    spec = WeightSpec(width, weights.per == "channel", weights.symmetric or width == 8, pruning)
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


def wide_operands(teacher: fx.GraphModule) -> Iterator[fx.Node]:
    """Tensors that are summed, concatenated or pooled, and the network's inputs."""
    for node in teacher.graph.nodes:
        if node.op == "placeholder":
            yield node
        elif operator_of(node).pools:
            yield g.operand(node)
        elif (channels := operator_of(node).channels) in ("unites", "joins"):
            operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
            if len(operands) > 1 or channels == "joins":
                yield from operands


def _activation_bits(
    teacher: fx.GraphModule, plans: dict[str, LayerPlan], bits: int | None
) -> dict[str, tuple[int, ...]]:
    widths: dict[str, set[int]] = {}
    by_name = g.nodes_by_name(teacher)
    for plan in plans.values():
        if plan.input_bits:
            widths.setdefault(quantized_at(g.operand(by_name[plan.layer.node])).name, set()).add(plan.input_bits)
    if bits:
        for node in wide_operands(teacher):
            if len(g.shape(node)) > 1:
                widths.setdefault(quantized_at(node).name, set()).add(max(WIDE, bits))
    return {name: tuple(sorted(w, reverse=True)) for name, w in widths.items()}


def _costly(teacher: fx.GraphModule) -> list[fx.Node]:
    """Convolutions and products that are not layers this package compresses."""
    return [
        n
        for n in teacher.graph.nodes
        if n.op == "call_function" and not g.note(n).layer and any(word in str(n.target) for word in COSTLY)
    ]
