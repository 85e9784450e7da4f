"""Where a layer's inputs come from: one file a kind."""

from datafree.signals.adversarial import Adversary, Generator, new_adversary
from datafree.signals.draws import LayerDraws, layer_draws
from datafree.signals.gaussian import closed_form
from datafree.signals.make import make_signal, num_images
from datafree.signals.matching import Rival, in_range
from datafree.signals.probes import dead_leaves
from datafree.signals.source import Source, flow, mirrored

__all__ = [
    "Adversary",
    "Generator",
    "LayerDraws",
    "Rival",
    "Source",
    "closed_form",
    "dead_leaves",
    "flow",
    "in_range",
    "layer_draws",
    "make_signal",
    "mirrored",
    "new_adversary",
    "num_images",
]
