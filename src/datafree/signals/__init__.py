"""Where a layer's inputs come from: one file a kind."""

from datafree.signals.adversarial import Adversary, Generator, new_adversary
from datafree.signals.draws import LayerDraws, layer_draws
from datafree.signals.gaussian import closed_form
from datafree.signals.make import make_signal, num_images
from datafree.signals.matching import Competitor, in_range
from datafree.signals.probes import dead_leaves
from datafree.signals.source import Signal, walk_both, walk_teacher

__all__ = [
    "Adversary",
    "Competitor",
    "Generator",
    "LayerDraws",
    "Signal",
    "closed_form",
    "dead_leaves",
    "in_range",
    "layer_draws",
    "make_signal",
    "new_adversary",
    "num_images",
    "walk_both",
    "walk_teacher",
]
