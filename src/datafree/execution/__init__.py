"""How work is run: in processes, resumed after a kill, written whole, counted in multiply-adds."""

from datafree.execution.atomic import UnwritableError, UnwrittenError, atomic_write, check_writable
from datafree.execution.limits import inflated, most_bytes
from datafree.execution.mac_counter import add_layer_macs, add_macs, count_macs, counting_pool, uncounted
from datafree.execution.memory import give_back_memory, out_of_memory, peak_memory
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
from datafree.execution.ray_pool import RayPoolError, on_ray
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
from datafree.execution.room import ALL_IN_MEMORY, Parts, Room, in_turn, is_in_file, put_away
from datafree.execution.silence import silent
from datafree.execution.tensor_files import load_checked, save_checked, save_tensors
from datafree.execution.workers import Lost, WorkerError

__all__ = [
    "ALL_IN_MEMORY",
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
    "Lost",
    "OnPlan",
    "OnStep",
    "Parts",
    "RayPoolError",
    "Room",
    "UnwritableError",
    "UnwrittenError",
    "WorkerError",
    "adam_state",
    "add_layer_macs",
    "add_macs",
    "atomic_write",
    "check_writable",
    "count_macs",
    "counting_pool",
    "give_back_memory",
    "ignore_plan",
    "ignore_steps",
    "in_turn",
    "inflated",
    "is_in_file",
    "layer_from_tensors",
    "layer_to_tensors",
    "load_checked",
    "most_bytes",
    "on_ray",
    "one_thread",
    "open_checkpoints",
    "out_of_memory",
    "peak_memory",
    "processes",
    "put_away",
    "restore_adam",
    "save_checked",
    "save_tensors",
    "serial",
    "silent",
    "uncounted",
    "under",
]
