"""What all tests share: one number of threads, and nets that are exported once.

TEST_THREADS=4 make test                                    on four threads
python -m pytest -n 2 --random-order-bucket=global          in another order each time
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import warnings
from collections import Counter, OrderedDict
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that wait in a loop take minutes

import torch

SAMPLED = {  # of these many cases `make test` runs every so-manieth, `make test-all` all
    "test_preservation.py::test_equalization_keeps_the_function_and_changes_ranges": 4,
    "test_preservation.py::test_depthwise_balance_keeps_the_function_and_brings_inputs_to_one_range": 3,
    "test_preservation.py::test_folding_keeps_the_function_and_leaves_no_batchnorm": 3,
    "models/test_onnx_file.py::test_operator_means_what_it_means_there": 2,
    "models/test_onnx_file.py::test_every_way_to_resize": 4,
    "models/test_onnx_file.py::test_recurrent_layers": 3,
    "export/test_onnx.py::test_operators_mean_in_onnx_what_they_mean_in_torch": 3,
    "export/test_onnx.py::test_nothing_is_left_in_float": 3,
    "export/test_packed.py::test_a_reader_of_numpy_alone_finds_the_same_weights": 4,
    "export/test_pad_channels.py::test_depthwise_layers_between_convolutions_are_filled_up": 3,
    "graph/test_operators.py::test_a_row_is_compressed_and_written": 4,
    "graph/test_operators.py::test_a_row_is_captured_by_its_name_and_equalized": 3,
    "graph/test_channel_groups.py::test_removing_is_zeroing_what_is_read": 3,
    "solve/test_rounding.py::test_squant_equals_the_paper": 4,
    "solve/test_rounding.py::test_result_is_on_its_grid_and_keeps_the_mean_output": 4,
    "solve/test_rounding.py::test_without_polish_it_is_gptq_as_published": 4,
    "solve/test_rounding.py::test_adaround_is_never_worse_than_nearest_in_any_channel": 4,
    "solve/test_rounding.py::test_best_grid_is_the_best_of_those_tried_one_by_one": 3,
    "solve/test_rounding.py::test_blocks_of_a_block_diagonal_h_change_nothing": 3,
    "solve/test_moments.py::test_input_that_is_not_finite_is_refused": 4,
    "solve/test_moments.py::test_chunks_change_nothing": 3,
    "solve/test_pruning.py::test_integers_are_zero_points_where_weights_are_gone": 4,
    "solve/test_schedule.py::test_sequence_runs_on_every_net": 2,
    "signals/test_answers.py::test_images_move_towards_random_classes": 4,
    "teacher/test_slim.py::test_function_stays_and_statistics_follow": 4,
    "app/test_inspect.py::test_every_layer_is_told_with_what_feeds_it": 4,
    "app/test_inspect.py::test_compress_does_what_was_said": 3,
    "student/test_distill.py::test_every_kind_of_image_runs": 3,
    "student/test_tie_free_scales.py::test_float64_stores_the_same_integers": 3,
    "test_targets.py::test_the_file_keeps_the_rules_and_is_the_student": 4,
    "test_targets.py::test_files_as_they_always_were_keep_their_rules": 3,
    "export/test_conv_pads.py::test_other_paddings_stay": 3,
    "graph/test_channel_groups.py::test_written_sizes_follow": 3,
    "test_pipeline.py::test_every_preset_runs_on_a_depthwise_net": 3,
    "bench/test_scripts.py::test_help_shows_the_command": 4,
}
NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))


def pytest_sessionstart():
    torch.set_num_threads(NUM_THREADS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    counts = Counter()
    for item in sorted(items, key=lambda item: item.nodeid):
        if item.get_closest_marker("slow"):
            continue
        name = item.nodeid.partition("[")[0].removeprefix("tests/")
        if counts[name] % SAMPLED.get(name, 1):
            item.add_marker(pytest.mark.slow)
        counts[name] += 1


@pytest.fixture(autouse=True)
def same_threads():
    """A test may set another number: the next one finds what all of them start with."""
    yield
    torch.set_num_threads(NUM_THREADS)


class ByStructure(pickle.Pickler):
    """A module as bytes that depend on its class and structure, and on the values of tensors that are no weights of it.

    Torch's own hold addresses; and an export reads no weights.
    """

    def __init__(self, file, weights):
        super().__init__(file)
        self.weights = {id(x) for x in weights}
        self.seen = {}  # a tensor that is held twice is another net than two equal ones

    def persistent_id(self, x):
        if not isinstance(x, torch.Tensor):
            return None
        number = self.seen.setdefault(id(x), len(self.seen))
        values = b"" if id(x) in self.weights else x.detach().contiguous().numpy().tobytes()
        return number, type(x), x.dtype, tuple(x.shape), x.requires_grad, values

    def reducer_override(self, x):
        """Hooks without their numbers, which torch counts on in a process; a file's network without the file's place."""
        if type(x) is OrderedDict and any(isinstance(key, int) for key in x):
            return tuple, ([*x.values()],)
        if isinstance(x, Path):
            return Path, ()
        return NotImplemented


def weights_of(model):
    """Parameters and buffers by all of their names."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: x for name, x in named if x is not None}


class Exported:
    """What is asked of an exported program: a graph of its own with the weights of the model that was given."""

    def __init__(self, graph, model):
        self.graph, self.weights = graph, weights_of(model)

    def module(self):
        own = weights_of(self.graph)
        given = {id(x): self.weights[name] for name, x in own.items() if name in self.weights}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own classes warn when they are copied
            return copy.deepcopy(self.graph, given)


@pytest.fixture(autouse=True, scope="session")
def exported_once():
    """Half of the suite's time went into exporting nets that were exported before, equal but for their weights."""
    from datafree.graph import capture  # not above: shapes are checked in what is imported after pytest has begun

    export, known = capture._export, {}

    def remembered(model, args, kwargs):
        given = [(name, tuple(x.shape), x.dtype) for name, x in [*enumerate(args), *kwargs.items()]]
        try:
            ByStructure(stream := io.BytesIO(), weights_of(model).values()).dump((model, given))
        except (pickle.PicklingError, AttributeError, TypeError):  # a class or function of a test's own
            return export(model, args, kwargs)
        key = hashlib.sha256(stream.getvalue()).digest()
        if key not in known:
            known[key] = export(model, args, kwargs).module()
        return Exported(known[key], model)

    capture._export = remembered
    yield known
    capture._export = export
