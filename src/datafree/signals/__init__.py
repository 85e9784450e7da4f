"""Where a layer's inputs come from: one file a kind, one table of them."""

from datafree.signals.adversarial import Adversary, Generator, new_adversary
from datafree.signals.draws import LayerDraws, layer_draws
from datafree.signals.gaussian import closed_form
from datafree.signals.job import Competitor, SignalJob
from datafree.signals.make import images_asked, input_range_of, made, make_signal, num_images, signal_job
from datafree.signals.matching import moving_seconds
from datafree.signals.measured import measured_stats
from datafree.signals.more_rows import takes_probes, with_probes, without_probes
from datafree.signals.moving import BACKWARD, images_at_once
from datafree.signals.probes import dead_leaves
from datafree.signals.propagated import propagated
from datafree.signals.scale import in_range
from datafree.signals.source import GIVEN, Signal, walk_both, walk_teacher
from datafree.signals.table import SIGNALS, SignalKind, signal_kind

__all__ = [
    "BACKWARD",
    "GIVEN",
    "SIGNALS",
    "Adversary",
    "Competitor",
    "Generator",
    "LayerDraws",
    "Signal",
    "SignalJob",
    "SignalKind",
    "closed_form",
    "dead_leaves",
    "images_asked",
    "images_at_once",
    "in_range",
    "input_range_of",
    "layer_draws",
    "made",
    "make_signal",
    "measured_stats",
    "moving_seconds",
    "new_adversary",
    "num_images",
    "propagated",
    "signal_job",
    "signal_kind",
    "takes_probes",
    "walk_both",
    "walk_teacher",
    "with_probes",
    "without_probes",
]
