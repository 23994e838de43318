"""Faults of docs/reference/reliability.md by number: a description, and the tests of each fault.

A test is named by its file and a part of its name, "kill::at_random" for one in test_kill.py.
"""

FAULTS = {
  1: ("killed at random times", "kill::killed_at_random_times kill::killed_many_times"),
  2: ("killed in each phase of a save", "kill::while_a_checkpoint kill::between_two kill::anywhere_in_a_save"),
  3: ("SIGTERM, Ctrl-C", "preemption::asked_to_end_saves preemption::workers_too"),
  4: (
    "the same during compilation, evaluation, save; twice",
    "preemption::while_something_else preemption::asked_twice",
  ),
  5: ("SIGTERM to one of several processes", "preemption::several_processes"),
  6: ("one of several processes dies or stops", "process_death::dies_or_stops"),
  7: ("no room for a checkpoint", "kill::finds_no_room"),
  8: ("a file of a checkpoint truncated", "corruption::every_file corruption::no_good corruption::goes_on_from"),
  9: (
    "a bit flipped in a checkpoint",
    "corruption::every_file corruption::orbax_alone corruption::a_digest_depends corruption::processes_agree",
  ),
  10: ("a file of a checkpoint deleted", "corruption::every_file"),
  11: ("a checkpoint of another flow", "corruption::another_flow bad_input::another_run"),
  12: ("resumed on other devices", "devices::moves_between devices::eight_devices"),
  13: ("resumed by another number of processes", "devices::moves_between batches::parts_of_a_batch"),
  14: ("other workers, seed or data set", "resume::number_of_workers bad_input::another resume::has_grown"),
  15: (
    "an image that cannot be read",
    "decode::broken_and_hostile batches::unreadable process_death::unreadable resume::broken_image",
  ),
  16: ("a truncated shard", "prepare_data::broken_shards"),
  17: (
    "images of other kinds and sizes",
    "decode::gray decode::transparent decode::palettes decode::cmyk decode::bits decode::sizes "
    "archives::several_shapes",
  ),
  18: ("no data, or less than a batch", "bad_input::empty batches::larger_than_the_data_set"),
  19: ("a decompression bomb", "decode::nothing_is_allocated decode::too_long"),
  20: ("a loss or gradient that is not finite", "nonfinite::"),
  21: ("the same at evaluation", "run::not_finite_are_counted_told"),
  22: (
    "saturated scales, odd latents",
    "invertibility::keep_the_promise invertibility::floor_bounds run::samples_that_are_not_finite",
  ),
  23: ("a wrong name or value in the config", "fields::refused bad_input::command_line_names"),
  24: (
    "sizes that do not divide",
    "bad_input::do_not_fit bad_input::odd_channels bad_input::cannot_share sharding::cannot_share",
  ),
  25: ("a work directory that cannot be written", "bad_input::in_the_place_of bad_input::read_only"),
  26: ("two runs in one work directory", "lock::"),
  27: (
    "hostile npz, archives, configs",
    "npz::refused archives::climb_and_links prepare_data::wants_to_run prepare_data::too_long bad_input::broken_config",
  ),
  28: ("an evaluation that does not fit", "cost::does_not_fit"),
  29: ("soak: saved every step, killed again and again", "kill::hours_of_saving"),
  30: ("clock set back, newest checkpoint deleted", "resume::whatever_the_clock"),
  31: ("torn metrics or config", "resume::torn_and_later bad_input::broken_config"),
}


def names_test(pattern: str, file: str, name: str) -> bool:
  """True if a pattern of `FAULTS` matches the test `name` of a file."""
  stem, _, part = pattern.partition("::")
  return file.endswith(f"test_{stem}.py") and part in name


def faults_of(file: str, name: str) -> list[int]:
  """Numbers of the faults that a test covers."""
  return [
    number
    for number, (_, patterns) in FAULTS.items()
    if any(names_test(pattern, file, name) for pattern in patterns.split())
  ]
