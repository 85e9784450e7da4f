"""How work is run: in processes, resumed after a kill, written whole, counted in multiply-adds."""

from datafree.execution.atomic import written_whole
from datafree.execution.mac_counter import counted, counting, spend, spend_on_layer
from datafree.execution.memory import peak_memory
from datafree.execution.pools import one_thread, processes, serial
from datafree.execution.resume import (
    EVERY,
    HERE,
    NOTHING_KEPT,
    Checkpoints,
    OnStep,
    Work,
    adam_state,
    ignore_steps,
    layer_from_tensors,
    layer_to_tensors,
    open_checkpoints,
    restore_adam,
    under,
)

__all__ = [
    "EVERY",
    "HERE",
    "NOTHING_KEPT",
    "Checkpoints",
    "OnStep",
    "Work",
    "adam_state",
    "counted",
    "counting",
    "ignore_steps",
    "layer_from_tensors",
    "layer_to_tensors",
    "one_thread",
    "open_checkpoints",
    "peak_memory",
    "processes",
    "restore_adam",
    "serial",
    "spend",
    "spend_on_layer",
    "under",
    "written_whole",
]
