"""The table of runs is right for runs in any state, and reading it disturbs none."""

import datetime
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

import small_runs
from jet_jax import config as config_lib
from jet_jax import train
from jet_jax.workdir import lock
from tools import progress

DAMAGED = [
  "{",
  "[]",
  '{"image_shape": [8, 8, 1]',
  '{"image_shape": [8, 8, 1], "\\u001b[2J": 1}',
  '{"image_shape": "\\u001b]0;title\\u0007"}',
]


@pytest.fixture
def make_run(tiny_config):
  """Writes the files of a run of 100 steps of 16 images; lines of metrics are given."""

  def make(workdir, lines=(), **settings):
    config = tiny_config(**{"total_steps": 100} | settings)
    config.image_shape, config.data.num_examples = (8, 8, 1), 1597
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.save(config, workdir / "config.json")
    if lines:
      (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir

  return make


LINES = [
  {"step": 20, "train/bits_per_dim": 3.5, "train/images_per_second": 32.0, "train/skipped_steps": 0},
  {"step": 20, "val/bits_per_dim": 3.4, "val/bits_per_dim_stderr": 0.02},
  {"step": 40, "train/bits_per_dim": 3.3, "train/images_per_second": 64.0, "train/skipped_steps": 2},
  {"step": 40, "val/bits_per_dim": 3.6, "val/bits_per_dim_stderr": 0.03},
]


def shown(capsys, *arguments):
  """Lines of the table, and the rows of the JSON object by the names of their runs."""
  progress.main([str(argument) for argument in arguments])
  lines = capsys.readouterr().out.splitlines()
  return lines[:-1], {row["run"]: row for row in json.loads(lines[-1])["runs"]}


def contents(folder):
  return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_the_figures_are_those_of_the_last_lines(make_run, tmp_path, capsys):
  small_runs.pretend_saved(make_run(tmp_path / "a", LINES), 30)
  before = contents(tmp_path)
  (_, line), rows = shown(capsys, tmp_path)
  row = rows["a"]
  assert row.pop("seconds_since_line") < 60
  assert row == {
    "run": "a", "workdir": str(tmp_path / "a"), "status": "stopped", "step": 40, "total": 100, "seconds_left": None,
    "train_bits_per_dim": 3.3, "val_bits_per_dim": 3.6, "val_bits_per_dim_stderr": 0.03, "best_bits_per_dim": 3.4,
    "best_step": 20, "images_per_second": 64.0, "skipped_steps": 2, "checkpoint": 30, "note": "",
  }  # fmt: skip
  for cell in ("a", "stopped", "40/100", "40%", "3.3000", "3.6000 ± 0.0300", "3.4000 at 20", "64", "2", "30"):
    assert f"  {cell}  " in f"  {line}  ", cell
  assert contents(tmp_path) == before


@pytest.mark.process
def test_a_run_is_running_while_a_process_holds_it_and_dead_once_that_was_killed(make_run, tmp_path, capsys):
  held = make_run(tmp_path / "held", LINES)
  hold = "import pathlib, sys, time; from jet_jax.workdir import lock; lock.hold(pathlib.Path(sys.argv[1]))"
  script = f"{hold}; print('held', flush=True); time.sleep(100)"
  process = subprocess.Popen([sys.executable, "-c", script, held / "lock"], stdout=subprocess.PIPE, text=True)
  assert process.stdout and process.stdout.readline() == "held\n"
  assert shown(capsys, held)[1].popitem()[1]["status"] == "running"
  (held / "metrics.jsonl").rename(tmp_path / "kept")
  assert shown(capsys, held)[1].popitem()[1]["status"] == "starting"
  (tmp_path / "kept").rename(held / "metrics.jsonl")
  process.kill()
  process.wait()
  row = shown(capsys, tmp_path)[1]["held"]
  assert (row["status"], row["seconds_left"]) == ("dead", None)
  assert f"was process {process.pid} on {socket.gethostname()}" in row["note"]


@pytest.mark.process
def test_looking_at_a_run_of_this_process_leaves_it_its_lock(make_run, tmp_path, capsys):
  workdir = make_run(tmp_path / "mine", LINES)
  lock.hold(workdir / "lock")
  assert shown(capsys, workdir)[1].popitem()[1]["status"] == "running"
  look = "import pathlib, sys; from jet_jax.workdir import lock; print(lock.holder(pathlib.Path(sys.argv[1]))[0])"
  other = subprocess.run([sys.executable, "-c", look, workdir / "lock"], capture_output=True, text=True, check=True)
  assert other.stdout == "True\n"
  lock.release(workdir / "lock")
  assert shown(capsys, workdir)[1].popitem()[1]["status"] == "stopped"


def test_a_process_of_another_machine_is_unknown(make_run, tmp_path, capsys):
  workdir = make_run(tmp_path / "far", LINES)
  (workdir / "lock").write_text(json.dumps({"host": "else\x1bwhere", "pid": 7, "started": time.time() - 60}))
  lines, rows = shown(capsys, tmp_path)
  assert rows["far"]["status"] == "unknown"
  assert lines[-1].startswith("far: process 7 on else\\x1bwhere, started 6")


@pytest.mark.parametrize(
  ("settings", "lines", "status"),
  [
    ({"total_steps": 40}, LINES, "finished"),
    ({"patience": 1}, LINES, "finished"),
    ({"patience": 2}, LINES, "stopped"),
    ({}, [], "stopped"),
  ],
)
def test_a_run_is_finished_at_its_last_step_or_past_its_patience(make_run, tmp_path, capsys, settings, lines, status):
  make_run(tmp_path / "a", lines, **settings)
  assert shown(capsys, tmp_path)[1]["a"]["status"] == status


def test_the_time_left_is_that_of_the_steps_since_the_last_start(make_run, tmp_path, capsys):
  workdir = make_run(tmp_path / "a", LINES)
  lock.hold(workdir / "lock")
  at = time.time() - 50
  os.utime(workdir / "metrics.jsonl", (at, at))
  left = lambda: shown(capsys, workdir)[1].popitem()[1]["seconds_left"]
  assert left() == 0, "by the speed, 60 steps of 16 images at 64 a second, which are overdue"
  os.utime(workdir / "metrics.jsonl")
  assert left() == pytest.approx(15, abs=5)  # the seconds of the test itself
  started = [datetime.datetime.fromtimestamp(at - seconds, datetime.UTC).isoformat() for seconds in (5000, 300)]
  starts = [{"step": step, "time": began} for step, began in zip((0, 10), started, strict=True)]
  (workdir / "versions.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
  os.utime(workdir / "metrics.jsonl", (at, at))
  assert left() == pytest.approx(60 * 300 / 30 - 50, abs=5)
  lock.release(workdir / "lock")


def test_all_runs_of_a_folder_are_found_once_to_a_depth_of_three(make_run, tmp_path, capsys):
  for name in ("b", "x/a/seed0", "x/a/seed1", "x/y/z/too_deep"):
    make_run(tmp_path / name)
  export = make_run(tmp_path / "export")
  (export / "model.safetensors").touch()
  lines, rows = shown(capsys, tmp_path, tmp_path / "x")
  assert sorted(row["workdir"].removeprefix(f"{tmp_path}/") for row in rows.values()) == [
    "b",
    "x/a/seed0",
    "x/a/seed1",
    "x/y/z/too_deep",
  ]  # fmt: skip  the last one is within three folders of the second argument
  assert len(lines) == 1 + 4
  assert set(shown(capsys, tmp_path)[1]) == {"b", "x/a/seed0", "x/a/seed1"}


@pytest.mark.parametrize("config", DAMAGED)
def test_an_unreadable_run_is_named_and_the_others_shown(make_run, tmp_path, capsys, config):
  make_run(tmp_path / "good", LINES)
  make_run(tmp_path / "bad", LINES)
  (tmp_path / "bad" / "config.json").write_text(config)
  lines, rows = shown(capsys, tmp_path)
  assert rows["good"]["step"] == 40
  assert rows["bad"]["status"] == "unreadable"
  assert lines[-1].startswith("bad: ")
  assert "\x1b" not in "".join(lines)
  assert "\x07" not in "".join(lines)


@pytest.mark.parametrize(("field", "value"), [("total_epochs", 1e308), ("data.num_examples", None)])
def test_a_run_of_odd_settings_is_unreadable_and_the_others_shown(make_run, tmp_path, capsys, field, value):
  make_run(tmp_path / "good", LINES)
  config = config_lib.load(make_run(tmp_path / "bad", LINES))
  config.update_from_flattened_dict({"total_steps": None, "total_epochs": 2, field: value})
  config_lib.save(config, tmp_path / "bad" / "config.json")
  _, rows = shown(capsys, tmp_path)
  assert (rows["good"]["step"], rows["bad"]["status"]) == (40, "unreadable")


@pytest.mark.parametrize(
  "torn",
  [
    b'{"step": 60, "train',
    b"\0\0\0\n",
    b'{"step": 1e999, "train/bits_per_dim": 1}\n',
    b'{"step": 60, "val/bits_per_dim": NaN, "val/bits_per_dim_stderr": null}\n',
    b'{"step": 60, "val/bits_per_dim": "\\u001b[2J", "train/bits_per_dim": [1], "train/skipped_steps": {}}\n',
    b'{"step": 60, "train/images_per_second": 0, "val/bits_per_dim": 1e999}\n',
    b'{"step": 60, "val/bits_per_dim": true, "train/bits_per_dim": false}\n',
  ],
)
def test_torn_lines_and_wrong_values_stop_nothing(make_run, tmp_path, capsys, torn):
  workdir = make_run(tmp_path / "a", LINES)
  with (workdir / "metrics.jsonl").open("ab") as file:
    file.write(torn)
  lines, rows = shown(capsys, workdir)
  assert rows.popitem()[1]["best_bits_per_dim"] == 3.4
  assert "\x1b" not in "".join(lines)


def test_a_name_writes_no_escape_sequences(make_run, tmp_path, capsys):
  make_run(tmp_path / "evil\x1bc\n\u202ename", LINES)
  lines, rows = shown(capsys, tmp_path)
  assert len(lines) == 2
  assert lines[1].startswith("evil\\x1bc\\n\\u202ename  stopped")
  assert set(rows) == {"evil\x1bc\n\u202ename"}, "JSON has the name as it is"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["{}/nowhere"], "nowhere has no run: no config.json in it"),
    (["{}"], "has no run"),
    (["{}/*"], "has * in its path"),
    ([], "required: DIR"),
    (["{}", "--watch=0"], "0 must be a positive number of seconds"),
    (["{}", "--watch=nan"], "nan must be a positive number of seconds"),
    (["{}", "--watch=x"], "x must be a positive number of seconds"),
  ],
)
def test_wrong_arguments_are_rejected_in_one_line(tmp_path, capsys, arguments, message):
  with pytest.raises(SystemExit) as ended:
    progress.main([argument.format(tmp_path) for argument in arguments])
  assert ended.value.code == 2
  assert message in capsys.readouterr().err


def test_watching_prints_the_table_again_and_ends_with_ctrl_c(make_run, tmp_path, capsys, monkeypatch):
  workdir, slept = make_run(tmp_path / "a", LINES[:2]), []

  def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:
      raise KeyboardInterrupt
    make_run(workdir, LINES)

  monkeypatch.setattr(progress.time, "sleep", sleep)
  progress.main([str(tmp_path), "--watch=60"])
  printed = capsys.readouterr().out
  assert slept == [60, 60, 60]
  assert [line.split()[2] for line in printed.splitlines() if line.startswith("a ")] == ["20/100", "40/100", "40/100"]
  assert "{" not in printed
  assert "\x1b" not in printed, "it is no terminal"


def test_a_trained_run_is_shown_as_finished(tiny_config, tmp_path, capsys):
  train.train(train.prepare(tiny_config(eval_steps=0, sample_steps=0), tmp_path / "run"))
  row = shown(capsys, tmp_path)[1]["run"]
  assert (row["status"], row["step"], row["total"], row["checkpoint"], row["best_step"]) == ("finished", 6, 6, 6, None)
  assert row["images_per_second"] > 0
  shutil.copytree(tmp_path / "run", tmp_path / "copy")
  assert shown(capsys, tmp_path)[1]["copy"] | {"run": "run", "workdir": row["workdir"]} == row | {
    "seconds_since_line": pytest.approx(row["seconds_since_line"], abs=60)
  }


def test_a_checkpoint_that_a_run_removes_meanwhile_does_not_end_the_search(tmp_path, monkeypatch):
  gone, scan = tmp_path / "checkpoints" / "1", os.scandir
  gone.mkdir(parents=True)
  (tmp_path / "config.json").write_text("{}")

  def scan_too_late(path):
    if not isinstance(path, int) and pathlib.Path(path) == gone:
      shutil.rmtree(gone)
    return scan(path)

  monkeypatch.setattr(os, "scandir", scan_too_late)
  assert list(progress.find_runs(tmp_path).values()) == [tmp_path]
  assert not gone.exists()
