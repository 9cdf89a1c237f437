# ruff: noqa: E501
"""The tests that hold each row of the tables in docs/guarantees.md, by the first cell of the row."""

SITUATIONS: dict[str, list[str]] = {
    "weights are set in `on_train_start`, `on_train_epoch_start` or `on_train_batch_start`, by the module or by another callback, or in Fabric between `start()` and the first update": [
        "test_weights_set_before_the_first_update_are_the_weights_of_step_0",
        "test_weights_set_after_start_are_the_weights_of_step_0_in_fabric",
    ],
    "one callback, and another Trainer or another module, or with a learning rate finder, a batch size finder, a Tuner, a checkpoint saved in `on_fit_start`, or a resumption that failed": [
        "test_a_second_trainer_never_gets_the_record_of_the_first",
        "test_a_tuner_leaves_no_trace_in_the_record",
        "test_a_checkpoint_before_the_first_step_holds_no_earlier_training",
        "test_a_resume_that_fails_leaves_nothing_to_the_next_trainer",
    ],
    "a checkpoint whose record was saved at another step than the one where the training starts": [
        "test_a_state_of_another_step_is_refused_by_name",
        "test_a_fabric_that_loads_an_earlier_state_goes_back",
    ],
    "a resumed training whose weights are not those of the checkpoint, or are set by a hook of the resumed fit": [
        "test_a_training_that_goes_on_with_other_weights_has_no_pair_across",
    ],
    "a checkpoint saved with another module in the Trainer, or the checkpoint of another training, restored in mid-run, or a callback in a second Trainer while the first one is fitting": [
        "test_a_checkpoint_of_another_module_has_no_record",
        "test_the_checkpoint_of_another_training_ends_the_record_that_is_under_way",
        "test_a_callback_of_a_training_that_is_under_way_is_refused_in_another",
    ],
    "a resumed training": [
        "test_the_record_of_an_interrupted_training_has_the_same_bits",
        "test_a_checkpoint_after_the_end_goes_on_without_losing_a_pair",
        "test_snapshots_beyond_the_host_memory_are_missed_aloud",
    ],
    "a resumed training with a `ResponseMonitor` or `InherentStructures`": [
        "test_the_response_goes_on_in_a_resumed_training",
        "test_a_training_that_goes_back_ends_the_clones",
        "test_a_resumed_training_has_the_same_values_to_the_bit",
    ],
    "several fits of one Trainer and module": [
        "test_ten_fits_of_one_trainer_measure_like_a_single_one",
        "test_weights_that_change_between_two_fits_start_a_new_record",
    ],
    "a training that goes back in mid-run (a guard against divergence restores weights and steps)": [
        "test_a_training_that_goes_back_leaves_no_pair_of_the_abandoned_branch",
        "test_files_and_tables_lose_the_abandoned_branch",
        "test_a_checkpoint_right_after_going_back_has_no_abandoned_row",
        "test_going_back_at_the_end_cuts_the_record",
        "test_a_tracker_goes_back_when_it_is_told",
    ],
    "a search for a learning rate in the middle of a fit": [
        "test_a_search_in_the_middle_of_a_fit_loses_no_step",
    ],
    "averaged weights take the place of the trained ones at the end (SWA, EMA)": [
        "test_no_pair_compares_trained_weights_with_averaged_ones",
        "test_no_measurement_has_the_loss_of_averaged_weights",
        "test_nothing_goes_on_from_averaged_weights",
    ],
    "two branches of one interrupted training in one directory, one after the other or at once": [
        "test_each_branch_of_an_interrupted_run_keeps_its_own_file",
        "test_the_file_of_a_completed_run_of_measurements_stays",
        "test_two_branches_at_once_never_overwrite_each_other",
    ],
    "steps that were no updates, because `training_step` returned `None` or the gradient scaler of 16-bit precision skipped them": [
        "test_steps_that_are_no_updates_are_counted",
    ],
    "manual optimisation in which `global_step` stands still (a raw optimiser, an optimiser of your own, a step in `on_train_batch_end`)": [
        "test_weights_that_move_while_the_step_stands_still_are_named",
        "test_a_fabric_whose_steps_are_not_counted_says_so",
    ],
    "accumulated gradients, two optimisers": [
        "test_manual_accumulation_is_measured_without_a_warning",
    ],
    "a measurement along the run that takes more than its share of the time (`max_share`, 5 %, after five free seconds, fifteen in a run of at most 1,000 steps)": [
        "test_a_measurement_that_takes_too_large_a_share_leaves_steps_out_and_says_so",
        "test_time_for_the_last_step_is_kept",
    ],
    "tied weights, of any shape and under any number of names": [
        "test_weights_that_are_tied_through_their_memory_count_once",
    ],
    "parameters that overlap in a part of their memory, or that have no memory of their own (quantised wrappers, lazy conjugates)": [
        "test_an_odd_parameter_is_refused_by_name_and_can_be_left_out",
    ],
    "another default device or default dtype": [
        "test_a_default_device_or_dtype_of_the_user_changes_nothing",
    ],
    "the package `pytorch_lightning` in place of `lightning`": [
        "test_all_callbacks_measure_the_same_and_leave_no_trace_with_either_package",
    ],
    "a sampler, or a training that sees only some batches (`SubsetRandomSampler`, `WeightedRandomSampler`, `overfit_batches`, `limit_train_batches`)": [
        "test_samples_are_those_that_the_sampler_draws",
        "test_losses_are_those_of_a_split_by_samplers",
        "test_batches_that_the_training_never_sees_are_left_out",
        "test_a_sampler_that_cannot_be_copied_is_refused",
    ],
    "hooks and data sets that ask whether the Trainer trains": [
        "test_validation_inside_a_measurement_is_not_augmented",
        "test_the_trainer_says_what_a_measurement_is",
    ],
    "a setting that changes during the run, such as the number of accumulated batches": [
        "test_the_temperature_has_the_settings_at_the_time_of_the_measurement",
    ],
    "a loss or a change of mode that writes weights (momentum encoders, merged adapters)": [
        "test_weights_that_the_loss_or_the_mode_writes_are_those_of_the_training",
    ],
    "averages of your own in lists, dictionaries, counters, metrics and objects": [
        "test_epoch_averages_of_any_shape_are_those_of_the_training",
    ],
    "data sets and modules with random numbers of their own": [
        "test_data_with_random_numbers_of_their_own_are_those_of_the_training",
    ],
    "a loss that updates weights by an optimiser, or reads an iterator": [
        "test_an_update_by_the_loss_is_refused_before_it_happens",
        "test_an_iterator_that_cannot_be_put_back_is_refused",
    ],
    "a run directory from somebody else, with links, pipes or devices in the places of our files": [
        "test_a_report_replaces_what_a_stranger_has_put_in_its_place",
        "test_a_report_goes_into_no_directory_behind_a_link_that_its_user_did_not_name",
    ],
    "a directory of another file system (`s3://`, `memory://`, any address of fsspec), or `file://`": [
        "test_a_remote_directory_has_the_complete_files_and_nothing_else",
        "test_a_remote_file_system_that_fails_costs_one_warning",
        "test_an_address_of_a_local_directory_is_local",
    ],
    "a training that changes the working directory": [
        "test_a_training_that_changes_the_working_directory_leaves_one_record",
    ],
    "a logger with a prefix": [
        "test_the_prefix_of_a_logger_is_in_all_that_it_gets",
    ],
    "a full disk with room again, a damaged event file": [
        "test_after_a_full_disk_the_tab_has_every_row",
        "test_a_gap_is_told_until_it_is_filled",
        "test_a_flipped_bit_in_an_event_file_is_never_a_number",
        "test_no_flipped_bit_of_a_part_changes_a_record",
    ],
    "a clock that was set back before a resumption": [
        "test_a_resumed_run_is_one_run_whatever_the_clock_says",
    ],
}

FAULTS: dict[str, list[str]] = {
    "`kill -9`, at any moment": [
        "test_a_run_killed_at_any_moment_leaves_the_rows_of_an_undisturbed_one",
        "test_a_killed_run_keeps_what_it_had",
    ],
    "`kill -9`, and a training resumed from its last checkpoint": [
        "test_twenty_kills_at_random_moments_change_no_bit",
    ],
    "`kill -9` while the record is written": [
        "test_a_run_killed_in_the_middle_of_a_write_leaves_the_record_before_it",
    ],
    "`kill -9` while a checkpoint is written": [
        "test_a_run_killed_while_a_checkpoint_is_written_leaves_its_record",
    ],
    "a full disk, a quota, a directory that is read-only or cannot be made": [
        "test_a_full_or_read_only_disk_costs_warnings_and_the_files_are_whole_before_and_after",
        "test_a_failing_disk_costs_one_warning",
    ],
    "a standard output that takes no more": [
        "test_an_output_that_takes_no_more_ends_no_training",
    ],
    "a logger that raises at every call": [
        "test_loggers_that_raise_whatever_is_asked_cost_a_warning_each",
        "test_a_failing_logger_costs_one_warning",
    ],
    "a loss or a gradient that cannot be computed at some step, in one of several processes or all": [
        "test_a_failure_costs_a_warning_and_no_training",
        "test_two_processes_measure_what_one_does",
    ],
    "a checkpoint that a signal handler saves in the middle of a measurement": [
        "test_a_checkpoint_in_the_middle_of_a_measurement_is_that_of_before",
    ],
    "a logger that cannot name the directory of its files": [
        "test_a_logger_without_a_place_moves_the_files_to_that_of_the_trainer",
    ],
    "weights that become NaN or infinite": [
        "test_weights_that_are_not_finite_are_in_the_record_and_the_rows_before_are_right",
        "test_a_record_with_weights_that_are_not_finite_has_a_report",
    ],
    "parameters that are unfrozen": [
        "test_finetuning_measures_what_was_trained_at_the_start_and_says_what_was_unfrozen",
        "test_unfreezing_is_said_once",
    ],
    "a parameter that is removed, replaced or reshaped": [
        "test_a_parameter_that_is_removed_ends_the_record_not_the_training",
        "test_parameters_that_are_no_longer_the_same_end_the_record",
    ],
    "at a resume: a model, a sample or thresholds that have changed": [
        "test_what_has_changed_is_named_and_a_new_record_starts",
        "test_what_is_no_state_is_refused",
    ],
    "at a resume: the file of a snapshot that is missing or damaged": [
        "test_a_lost_snapshot_costs_its_own_curve",
    ],
    "no room for snapshots beside a checkpoint": [
        "test_a_full_disk_costs_the_snapshots_of_a_checkpoint_not_the_checkpoint",
    ],
    "one of several processes that cannot measure its shard": [
        "test_sharded_weights_are_measured_resumed_and_never_waited_for",
    ],
    "no memory for a snapshot": [
        "test_running_out_of_memory_ends_the_record_not_the_training",
    ],
    "an error in your module, or of the device": [
        "test_an_error_in_the_module_is_the_one_seen_and_all_that_was_measured_is_kept",
        "test_a_device_that_fails_does_not_hide_the_error",
    ],
    "an error in another callback": [
        "test_an_error_in_another_callback_is_the_one_seen_and_all_that_was_measured_is_kept",
        "test_a_callback_that_fails_while_an_error_is_handled_costs_what_was_not_written_yet",
    ],
    "`should_stop`, early stopping, `max_time`": [
        "test_a_training_that_ends_early_has_all_until_there",
    ],
    "Ctrl-C, SIGTERM": [
        "test_a_signal_leaves_the_record",
        "test_an_interruption_keeps_what_was_measured",
        "test_ctrl_c_in_the_middle_of_our_work_leaves_a_whole_record",
    ],
    "a signal that nobody handles, as SIGUSR1 without SLURM": [
        "test_a_signal_leaves_the_record",
    ],
    "a job that SLURM requeues": [
        "test_a_job_that_slurm_requeues_keeps_its_record_and_goes_on",
    ],
}
