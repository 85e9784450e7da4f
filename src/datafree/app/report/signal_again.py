"""A few of the inputs that layers were solved on, made again from what a run holds."""

from __future__ import annotations

from torch import Tensor

from datafree.recipe import Loader, Propagated
from datafree.run import Run
from datafree.signals import Signal, make_signal, signal_kind

NUM_IMAGES = 16


def signal_again(run: Run, shared: tuple[Tensor, ...] = ()) -> tuple[Signal, str]:
    """The signal, of at most 16 images, and what they are.

    Images that a run kept are taken; those made in a second are made again; of others, given or not kept, procedural
    ones take the place.

    Args:
        shared: images of another run, on which several are compared.
    """
    recipe, said = run.recipe.signal, "of the kind that layers were solved on"
    images = shared or run.images
    if images:
        said = "some of those that were made for it"
    elif isinstance(recipe, Loader) or signal_kind(recipe).keeps_images:
        recipe, said = Propagated(), "procedural: those that layers were solved on were given, and are not kept"
    given = tuple(x[:NUM_IMAGES] for x in images) or None
    few = recipe.model_copy(update={"images": NUM_IMAGES})
    seed, chosen = run.summary.seed, run.input_range
    signal = make_signal(run.teacher, run.stats, few, seed=seed, input_range=chosen, images=given)
    return signal, f"{signal.num_images} images, {said}"
