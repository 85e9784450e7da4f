"""The layer-wise step: jobs made while the signal flows through the teacher, each solved by a pure function."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import give_back_memory, one_thread, out_of_memory
from datafree.graph import chunks, positions, row_size
from datafree.quantization import dequantize, fake_quantize
from datafree.records import Layer, LayerResult, Moments, MomentsError, QParams, decibel
from datafree.signals import LayerDraws, Signal, closed_form, layer_draws, walk_teacher
from datafree.solve.activation_grids import tensor_grid
from datafree.solve.compensation import compensated
from datafree.solve.jobs import LayerError, LayerJob
from datafree.solve.mending import channel_db, floor_db, remedies
from datafree.solve.pending import Gathering, PendingJob
from datafree.solve.plan import LayerPlan, quantized_at
from datafree.solve.problem import Grids, Problem
from datafree.solve.pruning import pruned
from datafree.solve.rounding import rounding_method
from datafree.solve.weight_grids import row_power, solve_on_best_grid

NUM_ROWS = {"diagonal": 4096, "covariance": 16384}
LOOKED_AT = 1024  # output positions, for what rounding a layer's input loses
LOOKED_BYTES = 2**25  # of inputs unfolded for that at once
WIDE_TAPS = 2000  # of a layer, whose H takes 32 MB: more than malloc finds room for in what is free
ROWS_BYTES = 2**28  # of inputs drawn ahead for one layer


def layer_jobs(problem: Problem, grids: Grids, *, split_halves: bool = False) -> Iterator[LayerJob]:
    """One job for each layer whose weights are solved, as its input comes by; fills `grids` on the way.

    With `split_halves`, moments of both halves of the images come with it.
    """
    return (pending.job() for pending in pending_jobs(problem, grids, split_halves=split_halves))


def pending_jobs(problem: Problem, grids: Grids, *, split_halves: bool = False) -> Iterator[PendingJob]:
    """The same, moments still to be gathered: to be made jobs of before the next is asked for, or anywhere."""
    teacher, plan, signal = problem.teacher, problem.plan, problem.signal
    by_name = g.nodes_by_name(teacher)
    readers: dict[fx.Node, list[LayerPlan]] = {}
    for item in plan.layers.values():
        readers.setdefault(g.operand(by_name[item.layer.node]), []).append(item)
    for node, value in walk_teacher(teacher, signal):
        for bits in plan.activation_bits.get(node.name, ()):
            at_width = tuple(item.layer for item in readers.get(node, ()) if item.input_bits == bits)
            grids[node.name, bits] = tensor_grid(
                teacher, node, value, bits, signal, readers=at_width, target=plan.target
            )
        for item in readers.get(node, ()):
            if item.weights is not None:
                student_x = value if split_halves else None
                yield pending_job(problem, item, node, value, grids, student_x=student_x)


def pending_job(
    problem: Problem, item: LayerPlan, node: fx.Node, x: Tensor, grids: Grids, *, student_x: Tensor | None = None
) -> PendingJob:
    """One layer's problem, from the value `x` of its input node, and the student's where that is another.

    Raises:
        LayerError: a formula gives moments that are not finite.
    """
    assert item.weights is not None, "there is something to solve"
    layer, row, signal = item.layer, rounding_method(problem.method), problem.signal
    qparams = grids[quantized_at(node).name, item.input_bits] if item.input_bits else None
    seen = _LayerInput(node, x, student_x, qparams, signal, signal.seed ^ zlib.crc32(layer.name.encode()))
    draws = seen.draws(layer)
    wanted = row.num_rows(problem.method) if row.num_rows else 0
    job = partial(
        LayerJob,
        name=layer.name,
        weight=g.grouped(g.weight(problem.teacher, layer), layer.groups),
        bias=g.bias(problem.teacher, layer),
        spec=item.weights,
        method=problem.method,
        seed=seen.seed,
        rows=_drawn_rows(layer, seen, wanted) if wanted and draws is None else None,
        draws=draws if wanted else None,
        input_scale=float(qparams.scale) if qparams else None,
        input_db=_input_db(problem, layer, seen),
        kernel_size=layer.kernel_size,
    )
    try:
        return PendingJob(layer.name, job, _gathering(layer, seen, draws, row.moments))
    except MomentsError as error:
        raise LayerError(f"{layer.name}: {error}") from None


@dataclass(frozen=True)
class _LayerInput:
    """What reaches one layer: of the teacher, and in the student so far; None = the same."""

    node: fx.Node
    x: Tensor
    student_x: Tensor | None
    qparams: QParams | None  # grid of the layer's input; None = float
    signal: Signal
    seed: int

    def draws(self, layer: Layer) -> LayerDraws | None:
        """How to draw it anew, where pooling is ignored and nothing lies between that hinders."""
        if self.signal.pooling != "ignored" or self.student_x is not None:
            return None
        return layer_draws(layer, self.node, self.signal.drawn, self.qparams)


def _gathering(layer: Layer, seen: _LayerInput, draws: LayerDraws | None, need: str) -> Gathering | Moments:
    """How to gather the moments of the layer's input; the moments, where a formula gives them."""
    x = seen.x
    if seen.signal.draws and seen.student_x is None:
        moments = closed_form(layer, seen.node, seen.signal.drawn, x.shape[2:])
        if moments is not None:
            return _with_rounding(moments, seen.qparams)
    if draws is not None:
        x, layer = draws.patches(NUM_ROWS[need], torch.Generator().manual_seed(seen.seed)), draws.on_patches
    at = positions(x.shape, layer, NUM_ROWS[need], seen.seed)
    full = need == "covariance" or seen.student_x is not None
    return Gathering(x, layer, at, seen.qparams, full, seen.student_x)


def _with_rounding(moments: Moments, qparams: QParams | None) -> Moments:
    """Closed-form moments of the quantized input: rounding adds the variance of one step, scale^2 / 12."""
    if qparams is None:
        return moments
    noise = float(qparams.scale) ** 2 / 12
    return replace(moments, cov=moments.cov + noise * torch.eye(moments.cov.shape[-1]))


def _input_db(problem: Problem, layer: Layer, seen: _LayerInput) -> float:
    """What rounding its input leaves of each of the layer's output channels, decibel, as `channel_db`."""
    if seen.qparams is None:
        return math.inf
    x = seen.x  # the student's is rounded already, where layers are solved in sequence
    at = positions(x.shape, layer, LOOKED_AT, seen.seed)
    rows = g.grouped(g.weight(problem.teacher, layer), layer.groups).transpose(1, 2)  # (g, n, o)
    at_once = max(1, LOOKED_BYTES // (4 * len(at) * rows.shape[1]))  # groups
    parts = x.split(at_once * (x.shape[1] // layer.groups), 1) if layer.groups > 1 else (x,)
    variances = []
    for own, part in zip(rows.split(at_once), parts, strict=True):
        u = g.unfold(part, replace(layer, groups=len(own)), at).permute(1, 0, 2)  # (g, r, n)
        off, wanted = (fake_quantize(u, seen.qparams) - u) @ own, u @ own
        variances.append((off.var(1, correction=0), wanted.var(1, correction=0)))
    off, wanted = (torch.cat(of_groups) for of_groups in zip(*variances, strict=True))
    return channel_db(off, wanted)


def _drawn_rows(layer: Layer, seen: _LayerInput, wanted: int) -> Tensor:
    """Inputs (r, g, n) for a method that trains, as many as it wants where memory allows."""
    x = seen.x if seen.student_x is None else seen.student_x
    at = positions(x.shape, layer, min(wanted, ROWS_BYTES // (4 * row_size(x.shape, layer))), seen.seed + 1)
    at = at[torch.randperm(len(at), generator=torch.Generator().manual_seed(seen.seed))]
    rows = torch.cat(list(chunks(x, layer, at)))
    return rows if seen.qparams is None else fake_quantize(rows, seen.qparams)


def solve_packed(packed: PendingJob | LayerJob) -> LayerResult:
    """Gather what is not gathered, and solve, on one thread so that every pool gives the same bits."""
    with one_thread():
        return compress_layer(packed.job() if isinstance(packed, PendingJob) else packed)


def compress_layer(job: LayerJob) -> LayerResult:
    """Solve one layer, and look at what came out: where channels are lost, the first remedy that holds is taken.

    A pure function of the job, run on one thread so that every pool gives the same bits.

    Raises:
        LayerError: the weights are not finite, or the solver failed; names layer, method and shapes.
    """
    if not bool(torch.isfinite(job.weight).all() and torch.isfinite(job.bias).all()):
        raise LayerError(f"{job.name}: the weights are not finite; load a checkpoint without NaN or infinity")
    start = time.perf_counter()
    if job.weight.shape[2] > WIDE_TAPS:
        give_back_memory()  # what gathering moments has left free
    result = as_asked = _solve_once(job, job.weight)
    for remedy, other in remedies(job) if job.method.mend else ():
        if result.channel_db >= floor_db(job.spec.bits):
            break
        tried = (*result.tried, result.remedy) if result.remedy else ()
        found = _solve_once(other, job.weight)
        result = replace(found, remedy=remedy, tried=tried, as_asked_db=as_asked.channel_db)
    return replace(result, seconds=time.perf_counter() - start)


def _solve_once(job: LayerJob, wanted: Tensor) -> LayerResult:
    """Which weights are zero, their grid, integers, the bias.

        b' = b + W mu - W' mu'                                                      (exact bias correction)

    A step is kept only where the predicted error falls: compensation on the other half of the images, the correction
    where it is larger than the noise of the mean it is made from (ours).

    Args:
        wanted: weights whose mean output the bias keeps.
    """
    with solver_context(job):
        job, share = compensated(job)
        target, job = job.weight, pruned(job)
        stored, qparams, new = solved(job)
        shift = torch.einsum("gon,gn->go", wanted, job.moments.mean)
        shift = shift - torch.einsum("gon,gn->go", new, job.moments.student_mean)
        noise, power = row_power(target - new, job.moments), row_power(target, job.moments)
        error = float(noise.sum())
        asked = rounding_method(job.method).corrects_bias(job.method)
        known = float(shift.square().sum()) > error / job.moments.num_rows  # else it is the mean's own noise
        dropped = ("compensation",) * (job.moment_halves is not None and not share and bool(job.method.compensation))
        return LayerResult(
            name=job.name,
            weight=stored,
            weight_qparams=qparams,
            bias=job.bias + shift.flatten() if asked and known else job.bias,
            error_db=decibel(float(power.sum()), error),
            channel_db=channel_db(noise, power) if job.keep is None else math.inf,
            input_db=job.input_db,
            bits=job.spec.bits or 32,
            method=job.method.method,
            compensation=share,
            sparsity=0.0 if job.keep is None else float((~job.keep).double().mean()),
            dropped=dropped + ("bias correction",) * (asked and not known),
            seconds=0.0,
        )


@contextmanager
def solver_context(job: LayerJob) -> Iterator[None]:
    """On one thread, so that every pool gives the same bits; what fails names the layer, the method and the shapes."""
    try:
        with one_thread(), torch.no_grad():
            yield
    except (torch.linalg.LinAlgError, RuntimeError) as error:
        if starved := out_of_memory(error):
            raise MemoryError(f"{job.name}: {starved}") from error
        shapes = f"weight {tuple(job.weight.shape)} (groups, rows, taps), {job.moments.num_rows} input rows"
        advice = "try solve.method=nearest for this layer, or leave it out with layers: {NAME: keep}"
        raise LayerError(f"{job.name}: {job.method.method} failed on {shapes}: {error}; {advice}") from error


def solved(job: LayerJob) -> tuple[Tensor, QParams | None, Tensor]:
    """What is stored, (C_out, n) integers or float weights; its grid, None = float; and the weights it stands for."""
    if job.spec.bits is not None:
        q, qparams = solve_on_best_grid(job)
        return q.flatten(0, 1).to(torch.int16), qparams, dequantize(q.flatten(0, 1), qparams).view_as(job.weight)
    train = rounding_method(job.method).train_float
    new = job.weight if train is None else train(job)
    return new.flatten(0, 1).contiguous(), None, new
