"""TensorBoard shows training and validation in one chart, no constants, and the config; its files outlive a failure."""

import struct

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from jet_jax.workdir.tensorboard import TensorBoard, as_markdown


def events(folder):
  """Events of the files of a folder: (tag, step, value) of each, and the step of each start."""
  found, starts = [], []
  for path in sorted(folder.glob("events*")):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      event = Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.HasField("session_log"):
        starts.append(event.step)
      for value in event.summary.value:
        found.append((value.tag, event.step, value.histo if value.HasField("histo") else value.simple_value))
  return found, starts


def test_training_and_validation_share_charts_and_constants_have_none(tmp_path):
  board = TensorBoard(tmp_path, 4, as_markdown({"lr": 1e-3}))
  for step in (5, 6, 7):
    board.metrics(step, {"train/bits_per_dim": 4.0, "train/lr": 0.5, "train/skipped_steps": int(step > 6)})
    board.metrics(step, {"val/bits_per_dim": 4.5, "val/num_images": 200, "val/noise_samples": 1})
  board.picture(7, np.zeros((4, 4, 3), np.uint8))
  board.close()
  training, starts = events(tmp_path)
  assert starts == [5]
  assert [(step, value) for tag, step, value in training if tag == "bits_per_dim"] == [(5, 4), (6, 4), (7, 4)]
  assert [(step, value) for tag, step, value in training if tag == "skipped_steps"] == [(5, 0), (7, 1)]
  assert {tag for tag, *_ in training} == {"bits_per_dim", "lr", "skipped_steps", "samples", "config/text_summary"}
  validation, starts = events(tmp_path / "validation")
  assert starts == [5]
  assert validation == [("bits_per_dim", step, 4.5) for step in (5, 6, 7)]


def test_a_list_has_a_histogram_of_its_finite_numbers(tmp_path):
  board = TensorBoard(tmp_path, 0, "")
  board.metrics(1, {"val/scale_max_by_coupling": [1.0, 1.5, float("nan"), 1.0]})
  board.metrics(2, {"val/scale_max_by_coupling": [float("nan")]})
  board.metrics(3, {"val/scale_max_by_coupling": [0.0, 0.0]})
  board.close()
  found, _ = events(tmp_path / "validation")
  assert [(tag, step) for tag, step, _ in found] == [("scale_max_by_coupling", step) for step in (1, 3)]
  assert (found[0][2].num, found[0][2].min, found[0][2].max) == (3, 1, 1.5)


def test_a_failed_write_costs_its_event_and_begins_a_new_file(tmp_path, monkeypatch):
  board = TensorBoard(tmp_path, 0, "")
  board.metrics(1, {"train/bits_per_dim": 4.0})
  with monkeypatch.context() as patch:
    patch.setattr(EventsWriter, "write_event", lambda *_: (_ for _ in ()).throw(OSError(27, "File too large")))
    with pytest.raises(OSError, match="File too large"):
      board.metrics(2, {"train/bits_per_dim": 4.0})
  board.metrics(3, {"train/bits_per_dim": 4.0})
  board.close()
  found, starts = events(tmp_path)
  assert [step for tag, step, _ in found if tag == "bits_per_dim"] == [1, 3]
  assert starts == [1]  # a second one would drop the steps before it
  assert len(list(tmp_path.glob("events*"))) == 2
