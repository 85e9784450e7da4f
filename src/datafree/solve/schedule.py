"""All layers: each by itself, in any order and anywhere (the paper), or in sequence on what the student really sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import ON_CPU, SOLVING, Execution, Parts, give_back_memory
from datafree.quantization import dequantize, fake_quantize
from datafree.records import LayerResult
from datafree.signals import walk_both
from datafree.solve.activation_grids import tensor_grid
from datafree.solve.jobs import LayerJob
from datafree.solve.pending import PendingJob
from datafree.solve.plan import WIDE, LayerPlan, quantized_at
from datafree.solve.problem import Grids, Problem, Solution
from datafree.solve.solve_layer import compress_layer, pending_job, pending_jobs, solve_packed

Pool = Callable[[Callable[[Any], LayerResult], Iterable[PendingJob | LayerJob]], Iterator[LayerResult]]


def solve_layers(
    problem: Problem, pool: Pool, on_done: Callable[[LayerResult], None], work: Execution = ON_CPU
) -> Solution:
    """Solve every planned layer: one walk of the signal, one job a layer, anywhere the pool puts it.

    Each result is kept as it comes; layers that are kept already are not solved again.
    """
    plan, grids, results, checkpoints = problem.plan, {}, {}, work.checkpoints
    num_layers = sum(item.weights is not None for item in plan.layers.values())
    work.on_step(SOLVING, 0, num_layers)
    is_large = g.is_large(problem.teacher)
    known = {name: result for name in plan.layers if (result := checkpoints.read_layer(name)) is not None}
    if problem.method.sequential:
        solved = in_sequence(problem, grids, known)
    else:
        jobs = (job.packed() for job in pending_jobs(problem, grids) if job.name not in known)
        solved = chain(pool(solve_packed, jobs), known.values())
    for result in solved:
        results[result.name] = result
        if result.name not in known:
            checkpoints.write_layer(result)
        if is_large:
            give_back_memory()
        on_done(result)
        work.on_step(SOLVING, len(results), num_layers)
    return Solution(problem.teacher, plan, {name: results[name] for name in plan.layers if name in results}, grids)


def in_sequence(problem: Problem, grids: Grids, known: Mapping[str, LayerResult]) -> Iterator[LayerResult]:
    """Solve layer after layer on what reaches it in the student so far; its target stays the teacher's output.

    Gives up the independence of layers (the paper's) so that each layer makes up for the errors before it. Layers
    are solved one at a time, in this process; those `known` are taken as they are.
    """
    teacher, plan, source = problem.teacher, problem.plan, problem.signal
    grid_names = {node: quantized_at(node).name for node in teacher.graph.nodes}
    by_name = g.nodes_by_name(teacher)
    items = {by_name[item.layer.node]: item for item in plan.layers.values()}
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in items:
        readers.setdefault(g.operand(node), []).append(node)
    kept_inputs = {g.operand(node) for node, item in items.items() if item.input_bits is None}
    floats: dict[fx.Node, Tensor] = {}  # inputs of layers that read no integers
    solved: dict[fx.Node, LayerResult] = {}
    parts = Parts(source.room, source.num_images)
    for node, value, change, own in walk_both(teacher, source):
        if node in items:
            read = g.operand(node)
            x = floats[read] if items[node].input_bits is None and read in floats else own[read]
            output = partial(_output, teacher, items[node], node, solved.get(node), grids, grid_names[read])
            gives = math.prod(g.shape(node)[1:])
            own[node] = parts.apply(output, x, gives=gives) if parts.is_batch(x) else parts.keep(output(x))
        if change is not None:
            own[node] = parts.apply(lambda x, change=change: x * change[0] + change[1], own[node])
        widths = plan.activation_bits.get(node.name, ())
        for bits in widths:
            at_width = tuple(items[r].layer for r in readers.get(node, ()) if items[r].input_bits == bits)
            grids[node.name, bits] = tensor_grid(
                teacher, node, own[node], bits, source, readers=at_width, target=plan.target
            )
        if node in kept_inputs:
            floats[node] = own[node]
        if widths and widths[0] >= WIDE:  # what everything but a narrower layer input and a kept layer reads
            own[node] = parts.apply(partial(fake_quantize, qparams=grids[node.name, widths[0]]), own[node])
        for reader in readers.get(node, ()):
            item = items[reader]
            if item.weights is not None:
                result = known.get(item.layer.name)
                if result is None:
                    pending = pending_job(problem, item, node, value, grids, student_x=own[node])
                    result = compress_layer(pending.job())
                solved[reader] = result
                yield result


def _output(
    teacher: fx.GraphModule,
    item: LayerPlan,
    node: fx.Node,
    result: LayerResult | None,
    grids: Grids,
    source: str,
    x: Tensor,
) -> Tensor:
    """What the student's layer puts out: quantized input, solved weights (or its float ones, where it is kept)."""
    weight, bias = g.weight(teacher, item.layer), g.bias(teacher, item.layer)
    if item.input_bits:
        x = fake_quantize(x, grids[source, item.input_bits])
    if result is not None:
        weight = result.weight.float().view(weight.shape)
        weight = weight if result.weight_qparams is None else dequantize(weight, result.weight_qparams)
        bias = result.bias
    return g.run_layer(node, x, weight, bias)
