"""What all tests share: one number of threads, and nets that are exported once.

TEST_THREADS=4 make test                                    on four threads
TEST_ONEDNN=off make test                                   without oneDNN, which torch calls mkldnn
python -m pytest -n 2 --random-order-bucket=global          in another order each time
"""

from __future__ import annotations

import gc
import os
from collections import Counter

import jaxtyping
import pytest

from checked import checked

jaxtyping.jaxtyped = checked  # which the import hook of --jaxtyping-packages asks for by this name
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that wait in a loop take minutes
gc.disable()  # until all is imported, which stays: a full look takes a second, and there were ten

SAMPLED = {  # of these many cases `make test` runs every so-manieth, `make test-all` all
    "test_preservation.py::test_equalization_keeps_the_function_and_changes_ranges": 4,
    "test_preservation.py::test_depthwise_balance_keeps_the_function_and_brings_inputs_to_one_range": 3,
    "test_preservation.py::test_folding_keeps_the_function_and_leaves_no_batchnorm": 3,
    "models/test_onnx_file.py::test_operator_means_what_it_means_there": 3,
    "models/test_onnx_file.py::test_every_way_to_resize": 4,
    "models/test_onnx_file.py::test_recurrent_layers": 3,
    "export/test_onnx.py::test_operators_mean_in_onnx_what_they_mean_in_torch": 5,
    "export/test_onnx.py::test_nothing_is_left_in_float": 3,
    "export/test_packed.py::test_a_reader_of_numpy_alone_finds_the_same_weights": 4,
    "export/test_pad_channels.py::test_depthwise_layers_between_convolutions_are_filled_up": 3,
    "graph/test_operators.py::test_a_row_is_compressed_and_written": 8,
    "graph/test_operators.py::test_a_row_is_captured_by_its_name_and_equalized": 6,
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
    "solve/test_schedule.py::test_sequence_runs_on_every_net": 4,
    "signals/test_answers.py::test_images_move_towards_random_classes": 4,
    "teacher/test_slim.py::test_function_stays_and_statistics_follow": 4,
    "app/test_inspect.py::test_every_layer_is_told_with_what_feeds_it": 4,
    "app/test_inspect.py::test_compress_does_what_was_said": 3,
    "student/test_distill.py::test_every_kind_of_image_runs": 3,
    "student/test_tie_free_scales.py::test_float64_stores_the_same_integers": 3,
    "test_targets.py::test_the_file_keeps_the_rules_and_is_the_student": 8,
    "test_targets.py::test_files_as_they_always_were_keep_their_rules": 3,
    "export/test_conv_pads.py::test_other_paddings_stay": 3,
    "graph/test_channel_groups.py::test_written_sizes_follow": 3,
    "test_pipeline.py::test_every_preset_runs_on_a_depthwise_net": 3,
    "student/test_qat.py::test_it_starts_at_the_student": 3,
    "student/test_qat.py::test_it_learns_and_comes_back": 3,
    "student/test_qat.py::test_frozen_at_once_it_is_the_student": 3,
    "allocation/test_channel_pruning.py::test_the_student_is_smaller_and_the_teacher_is_not": 2,
    "allocation/test_zeros_of_layers.py::test_zeros_move_and_their_sum_stays": 2,
    "models/test_plain.py::test_wrappers_come_off": 2,
    "models/test_plain.py::test_answers_in_records_are_captured_and_saved": 2,
    "models/test_float_nodes.py::test_layers_on_both_sides_are_quantized_and_the_node_stays": 3,
    "models/test_float_nodes.py::test_the_function_stays": 3,
    "models/test_onnx_file.py::test_what_is_written_is_read": 3,
    "models/test_onnx_file.py::test_old_and_new_forms": 2,
    "export/test_pad_channels.py::test_other_layers_keep_their_shapes": 3,
    "export/test_write_back.py::test_every_net_is_written_back": 2,
    "export/test_write_back.py::test_the_file_gives_what_the_student_gives": 2,
    "export/test_space_to_depth.py::test_others_stay": 3,
    "export/test_onnx.py::test_the_file_gives_what_the_student_gives": 3,
    "export/test_onnx.py::test_parameters_are_integers_under_the_users_names": 4,
    "export/test_onnx.py::test_any_batch_size_runs": 2,
    "export/test_packed.py::test_every_recipe_comes_back_bit_for_bit": 2,
    "app/test_inspect.py::test_producers_are_found_through_other_operators": 3,
    "run/test_expected.py::test_phases_are_told_before_and_nearly_what_is_spent": 3,
    "run/test_record.py::test_what_was_saved_is_loaded_bit_for_bit": 3,
    "graph/test_layer_types.py::test_errors_fall_by_six_decibels_a_bit": 2,
    "graph/test_layer_types.py::test_files_are_the_student": 2,
    "graph/test_channel_groups.py::test_every_output_channel_is_in_one_group_or_has_a_reason": 3,
    "solve/test_rounding.py::test_adaround_beats_nearest_at_any_width_and_size_of_its_inputs": 4,
    "solve/test_rounding.py::test_sgd_is_never_worse_than_its_start_on_rows_it_has_not_seen": 3,
    "solve/test_rounding.py::test_sgd_lowers_the_error_on_its_rows": 2,
    "solve/test_rounding.py::test_error_db_is_the_output_error_and_falls_with_fewer_bits": 2,
    "solve/test_rounding.py::test_polish_never_raises_a_row_s_error_and_lowers_some": 3,
    "solve/test_pruning.py::test_swaps_never_raise_the_error_and_keep_count_and_pattern": 2,
    "solve/test_pruning.py::test_a_pruning_job_is_only_read_and_solved_the_same_on_any_number_of_threads": 3,
    "student/test_assemble.py::test_weights_are_int8_biases_int32_and_scales_positive": 3,
    "student/test_tie_free_scales.py::test_float64_stores_the_same_integers_of_sums_that_a_layer_is_computed_with": 3,
    "student/test_tie_free_scales.py::test_integers_stay_and_scales_hardly_move": 2,
    "signals/test_draws.py::test_draws_are_those_of_executed_maps": 3,
    "bench/test_paper_rows.py::test_every_point_is_a_recipe_or_a_baseline": 4,
    "bench/test_baselines.py::test_eight_bits_change_little": 3,
    "test_job_progress.py::test_the_share_of_a_compression_never_falls": 2,
    "test_targets.py::test_a_file_is_written_back_for_its_target": 2,
    "allocation/test_budget.py::test_other_budgets_need_no_scipy": 2,
    "models/test_onnx_file.py::test_same_student_as_from_python": 2,
    "graph/test_layer_types.py::test_a_linear_layer_called_as_a_1x1_convolution_keeps_its_name": 2,
    "student/test_assemble.py::test_the_student_can_be_exported_again": 2,
    "student/test_assemble.py::test_four_bits_at_layers_eight_at_sums_concatenations_and_pools": 2,
    "export/test_conv_pads.py::test_zeros_before_convolutions_go_into_them": 2,
    "export/test_packed.py::test_every_network_comes_back_bit_for_bit": 2,
    "bench/test_scripts.py::test_help_shows_the_command": 4,
    "test_memory.py::test_students_agree": 4,
}
NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))


def pytest_sessionstart(session):
    if session.config.getoption("dist", "no") != "no":
        gc.enable()
        return  # the process that hands out tests collects and runs none, and needs no torch
    import torch

    torch.set_num_threads(NUM_THREADS)
    if os.environ.get("TEST_ONEDNN") == "off":
        torch.backends.mkldnn.set_flags(False)


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


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def same_threads():
    """A test may set another number: the next one finds what all of them start with."""
    import torch

    yield
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True, scope="session")
def no_lines_of_progress():
    """On a busy machine a line would come between those that a test reads; tests of these lines ask for their own."""
    from datafree import progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY", 1e9)
        yield


@pytest.fixture(autouse=True, scope="session")
def exported_once():
    """Half of the suite's time went into exporting nets that were exported before, equal but for their weights."""
    from datafree.graph import capture  # not above: shapes are checked in what is imported after pytest has begun
    from exported import exported_once

    export, known = capture._export, {}
    capture._export = exported_once(export, known)
    yield known
    capture._export = export
