"""The faults of docs/reliability.md, by their numbers: what happens, and the tests of what is done about it.

A test is named by its file and a part of its name, "kills::at_random" for one in test_kills.py.
"""

FAULTS = {
  1: ("killed at random times", "kills::killed_at_random_times kills::killed_many_times"),
  2: ("killed in each phase of a save", "kills::while_a_checkpoint kills::between_two kills::anywhere_in_a_save"),
  3: ("SIGTERM, Ctrl-C", "stopping::asked_to_end_saves stopping::workers_too"),
  4: ("the same during compilation, evaluation, save; twice", "stopping::while_something_else stopping::asked_twice"),
  5: ("SIGTERM to one of several processes", "stopping::several_processes"),
  6: ("one of several processes dies or stops", "failures::dies_or_stops"),
  7: ("no room for a checkpoint", "kills::finds_no_room"),
  8: ("a file of a checkpoint truncated", "damage::every_file damage::no_good damage::goes_on_from"),
  9: (
    "a bit flipped in a checkpoint",
    "damage::every_file damage::orbax_alone damage::a_digest_depends damage::processes_agree",
  ),
  10: ("a file of a checkpoint deleted", "damage::every_file"),
  11: ("a checkpoint of another flow", "damage::another_flow bad_input::another_run"),
  12: ("resumed on other devices", "devices::moves_between devices::eight_devices"),
  13: ("resumed by another number of processes", "devices::moves_between data::parts_of_a_batch"),
  14: ("other workers, seed or data set", "resume::number_of_workers bad_input::another resume::has_grown"),
  15: (
    "an image that cannot be read",
    "images::broken_and_hostile data::unreadable failures::unreadable resume::broken_image",
  ),
  16: ("a truncated shard", "prepare_data::broken_shards"),
  17: (
    "images of other kinds and sizes",
    "images::gray images::transparent images::palettes images::cmyk images::bits images::sizes files::several_shapes",
  ),
  18: ("no data, or less than a batch", "bad_input::empty data::larger_than_the_data_set"),
  19: ("a decompression bomb", "images::nothing_is_allocated images::too_long"),
  20: ("a loss or gradient that is not finite", "halting::"),
  21: ("the same at evaluation", "workdir::not_finite_are_counted_told"),
  22: (
    "saturated scales, odd latents",
    "invertibility::keep_the_promise invertibility::floor_bounds workdir::samples_that_are_not_finite",
  ),
  23: ("a wrong name or value in the config", "config::refused bad_input::command_line_names"),
  24: (
    "sizes that do not divide",
    "bad_input::do_not_fit bad_input::odd_channels bad_input::cannot_share sharding::cannot_share",
  ),
  25: ("a work directory that cannot be written", "bad_input::in_the_place_of bad_input::read_only"),
  26: ("two runs in one work directory", "lock::"),
  27: (
    "hostile npz, archives, configs",
    "npz::refused files::climb_and_links prepare_data::wants_to_run prepare_data::too_long bad_input::broken_config",
  ),
  28: ("an evaluation that does not fit", "estimate::does_not_fit"),
  29: ("soak: saved every step, killed again and again", "kills::hours_of_saving"),
  30: ("clock set back, newest checkpoint deleted", "resume::whatever_the_clock"),
  31: ("torn metrics or config", "resume::torn_and_later bad_input::broken_config"),
}


def names_test(pattern: str, file: str, name: str) -> bool:
  """Whether a pattern of `FAULTS` means the test `name` of a file."""
  stem, _, part = pattern.partition("::")
  return file.endswith(f"test_{stem}.py") and part in name


def faults_of(file: str, name: str) -> list[int]:
  """Numbers of the faults that a test is about."""
  return [
    number
    for number, (_, patterns) in FAULTS.items()
    if any(names_test(pattern, file, name) for pattern in patterns.split())
  ]
