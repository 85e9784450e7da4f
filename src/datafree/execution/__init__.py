"""How work is run: in processes, resumed after a kill, written whole, counted in multiply-adds."""

from datafree.execution.atomic import atomic_write
from datafree.execution.limits import CHECKSUM, check_whole, checksum, inflated, most_bytes
from datafree.execution.mac_counter import add_layer_macs, add_macs, count_macs, counting_pool, uncounted
from datafree.execution.memory import peak_memory
from datafree.execution.phases import (
    CHOOSING,
    DISTILLING,
    MAKING_IMAGES,
    SOLVING,
    ExpectedWork,
    OnPlan,
    OnStep,
    ignore_plan,
    ignore_steps,
)
from datafree.execution.pools import one_thread, processes, serial
from datafree.execution.resume import (
    EVERY,
    NO_CHECKPOINTS,
    ON_CPU,
    CheckpointError,
    Checkpoints,
    Execution,
    adam_state,
    layer_from_tensors,
    layer_to_tensors,
    open_checkpoints,
    restore_adam,
    under,
)
from datafree.execution.silence import silent

__all__ = [
    "CHECKSUM",
    "CHOOSING",
    "DISTILLING",
    "EVERY",
    "MAKING_IMAGES",
    "NO_CHECKPOINTS",
    "ON_CPU",
    "SOLVING",
    "CheckpointError",
    "Checkpoints",
    "Execution",
    "ExpectedWork",
    "OnPlan",
    "OnStep",
    "adam_state",
    "add_layer_macs",
    "add_macs",
    "atomic_write",
    "check_whole",
    "checksum",
    "count_macs",
    "counting_pool",
    "ignore_plan",
    "ignore_steps",
    "inflated",
    "layer_from_tensors",
    "layer_to_tensors",
    "most_bytes",
    "one_thread",
    "open_checkpoints",
    "peak_memory",
    "processes",
    "restore_adam",
    "serial",
    "silent",
    "uncounted",
    "under",
]
