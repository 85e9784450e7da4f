"""How much a walk through a graph holds."""

from __future__ import annotations

import math

from torch import fx

from datafree.graph.annotations import shape


def numbers_held(graph: fx.GraphModule) -> tuple[int, int]:
    """Of all values for one image: the most that are there at a time, and all that are computed, together."""
    last = {read: node for node in graph.graph.nodes for read in node.all_input_nodes}
    there: dict[fx.Node, int] = {}
    widest = computed = 0
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "call_function"):
            there[node] = math.prod(shape(node)[1:]) if shape(node) else 0
            computed += there[node] if node.op == "call_function" else 0
            widest = max(widest, sum(there.values()))
        for read in {n for n in node.all_input_nodes if last[n] is node}:
            there.pop(read, None)
    return widest, computed
