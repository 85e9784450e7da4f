"""ZeroQ's distilled images (arXiv 2001.00281), and the extremes of all tensors on them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.graph.capture import batch_norms, trace
from datafree.models.load import input_range
from datafree.recipe import Propagated
from datafree.records import InputRange
from datafree.signals import make_signal
from datafree.signals.scale import in_range
from datafree.teacher.batchnorm import fold_batchnorm_

NUM_IMAGES, STEPS, EPS = 32, 500, 1e-6  # as in the published code, and so are these two
LEARNING_RATE, PATIENCE = 0.5, 100


def distill_images(model: nn.Module, example: Tensor, *, seed: int, steps: int = STEPS) -> Float[Tensor, "n c h w"]:
    """Move noise until every image has the statistics that BatchNorm remembers (ZeroQ, eq. 3):

        sum over BatchNorms of |m - running_mean|^2 + |d - running_std|^2,   and the same of the image with 0 and 1

    m and d are the mean and standard deviation of one image's input of the BatchNorm. Adam, its rate divided by ten
    whenever 100 steps did not help. "The image" is what the network sees in units of its input's standard deviation.
    """
    teacher, generator = trace(model, example), torch.Generator().manual_seed(seed)
    chosen = _input_range(model, teacher, seed)
    norms = {n: [g.get_tensor(teacher, a.target) for a in n.args[3:5]] for n in batch_norms(teacher)}
    shape = (NUM_IMAGES, *g.shape(g.placeholders(teacher)[0])[1:])
    unit = torch.randn(shape, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([unit], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-4, patience=PATIENCE)
    for _ in range(steps):
        with torch.enable_grad():
            loss = _distance(unit, torch.zeros(1), torch.ones(1))
            for node, values in g.walk(teacher, (in_range(unit, chosen),)):
                if node in norms:
                    mean, var = norms[node]
                    loss = loss + _distance(values[node.args[0]], mean, (var + EPS).sqrt())
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step(loss.item())
    return in_range(unit.detach(), chosen)


def _input_range(model: nn.Module, teacher: fx.GraphModule, seed: int) -> InputRange:
    folded = g.duplicate(teacher)
    stats, _ = fold_batchnorm_(folded)
    return make_signal(folded, stats, Propagated(), seed=seed, input_range=input_range(model)).input_range


def _distance(x: Float[Tensor, "n c ..."], mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> Float[Tensor, ""]:
    m, d = x.flatten(2).mean(2), (x.flatten(2).var(2) + EPS).sqrt()
    return ((m - mean).square().sum() + (d - std).square().sum()) / len(x)


@torch.no_grad()
def extremes(teacher: fx.GraphModule, images: Float[Tensor, "n c h w"]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every tensor on these images, by node name."""
    found = {}
    for node, values in g.walk(teacher, (images,)):
        if node not in values:
            values[node] = g.execute(node, values)
        if isinstance(values[node], Tensor):
            found[node.name] = float(values[node].min()), float(values[node].max())
    return found
