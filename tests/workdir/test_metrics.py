"""Metrics outlive a full disk, and the log waits for no place."""

import json

import numpy as np
import pytest

from jet_jax.config import default_config
from jet_jax.workdir.metrics import JsonLines, MetricLog, Pictures, read_lines


class Full:
  """A file on a disk that takes a few bytes more, and then none."""

  def __init__(self, file, room):
    self.file, self.room = file, room

  def write(self, data):
    if not self.room:
      raise OSError(28, "No space left on device")
    count = self.file.write(data[: self.room])
    self.room -= count
    return count

  def __getattr__(self, name):
    return getattr(self.file, name)


def test_lines_that_find_no_room_are_written_whole_once_there_is_some(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = JsonLines(path, 0)
  lines.metrics(1, {"a": 1.0})
  whole = path.read_bytes()
  lines._file = Full(lines._file, room=5)
  for step in (2, 3):
    try:
      lines.metrics(step, {"a": float(step)})
    except OSError:
      assert path.read_bytes() == whole  # no torn line
    else:
      raise AssertionError("a full disk must be told")
  lines._file.room = 10_000
  lines.metrics(4, {"a": 4.0})
  lines.close()
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_log_whose_every_place_fails_raises_nothing_and_names_each_once(tmp_path, monkeypatch, capsys):
  (tmp_path / "samples").write_text("no folder")
  (tmp_path / "tensorboard").write_text("no folder")
  monkeypatch.setattr(JsonLines, "_write", lambda lines: (_ for _ in ()).throw(OSError(28, "No space left on device")))
  result = {"bits_per_dim": 3.0, "bits_per_dim_stderr": 0.1, "num_images": 4, "num_nonfinite": 0}
  with MetricLog(tmp_path, default_config(), 0, 4) as log:
    for step in (1, 2):
      log.train(step, {"bits_per_dim": 3.5})
      log.validation(step, result)
      log.samples(step, np.zeros((2, 4, 4, 1), np.uint8), 0)
      assert log.is_behind
  printed = capsys.readouterr()
  for name in ("metrics.jsonl", "samples", "tensorboard"):
    assert printed.err.count(f"{tmp_path / name}: ") == 1
  assert printed.out.count("train 3.5000 bits/dim") == 2


def test_diagnostics_are_written_whole_and_lost_pixels_printed(tmp_path, capsys):
  with MetricLog(tmp_path, default_config(), 0, 4) as log:
    log.diagnostics(1, {"reconstruction_pixels": 0.0, "scale_max_by_coupling": [1.5, float("nan")]})
    log.diagnostics(2, {"reconstruction_pixels": 0.25, "scale_max_by_coupling": [1.5, 2.0]})
  first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  assert first == {"step": 1, "val/reconstruction_pixels": 0.0, "val/scale_max_by_coupling": [1.5, None]}
  assert second["val/scale_max_by_coupling"] == [1.5, 2.0]
  (line,) = [line for line in capsys.readouterr().out.splitlines() if "levels" in line]
  assert "25.00% of the pixels come back as other levels" in line


def test_a_picture_is_there_before_a_checkpoint_may_be(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(Pictures, "picture", lambda pictures, step, grid: written.append(step))
  with MetricLog(tmp_path, default_config(), 0, 4) as log:
    log.samples(3, np.zeros((2, 4, 4, 1), np.uint8), 0)
    assert written == [3]


def test_a_line_that_no_run_writes_is_skipped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  broken = [b"[" * 100_000, b'{"step": 1e999}', b'{"step": "x"}', b'{"a": 1}', b"[1]", b"\0\0", b'{"step": 3, "a"']
  broken += [b'{"step": -1}', b'{"step": 99999999999999999999}']
  path.write_bytes(b"\n".join([b'{"step": 1, "a": 2}', *broken, b'{"step": 4}']))
  assert [values for _, values in read_lines(path)] == [{"step": 1, "a": 2}, {"step": 4}]


def test_a_folder_in_the_place_of_the_file_is_named_with_a_fix(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be read \(Is a directory\); .* move it away"):
    read_lines(tmp_path / "metrics.jsonl")
