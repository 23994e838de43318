"""A reading process that dies or stalls ends the reading with a reason; nothing waits for ever."""

import errno
import multiprocessing
import os
import pickle
import signal
import time

import grain
import numpy as np
import pytest

from jet_jax import data
from jet_jax.data import ReaderDied, reading


class Images:
  """A source of many bytes, whose reading may harm the process that reads."""

  def __init__(self, sign=None, bytes_held=0):
    self.sign, self.held = sign, bytes(bytes_held)

  def __len__(self):
    return 64

  def __getitem__(self, index):
    if self.sign and index % 7 == 3 and multiprocessing.parent_process():
      os.kill(os.getpid(), self.sign)
    return {"image": np.zeros((2, 2, 1), np.uint8), "index": np.int32(index)}


def test_little_goes_through_the_pipe_that_a_process_is_started_with():
  batches = reading.handed(grain.MapDataset.source(Images(bytes_held=10**6)), workers=1)
  assert len(pickle.dumps(batches)) < 4096  # of the 64 KiB that a pipe holds
  assert batches[5]["index"] == 5


@pytest.mark.process
@pytest.mark.parametrize(("sign", "fix"), [(signal.SIGKILL, "memory is short"), (signal.SIGBUS, "/dev/shm is full")])
def test_a_reading_process_that_dies_is_told_with_its_reason(sign, fix):
  reader = data.Reader(data.train_batches(Images(sign), 8, seed=0), workers=1)
  with pytest.raises(ReaderDied, match=rf"exit code -{int(sign)}, {sign.name}.*{fix}.*data\.workers"):
    next(reader)
  reader.close()


@pytest.mark.process
def test_reading_processes_that_stall_do_not_hold_up_a_run_that_is_asked_to_end():
  asked = []
  reader = data.Reader(data.train_batches(Images(signal.SIGSTOP), 8, seed=0), 0, 1, 0, lambda: bool(asked))
  asked.append(True)
  assert list(reader) == []
  began = time.monotonic()
  reader.close()
  assert time.monotonic() - began < 3 * reading.CLOSING
  assert not [process for process in multiprocessing.active_children() if process.name.startswith("grain")]


def test_shared_memory_without_room_for_a_queue_is_told():
  def no_room():
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(ReaderDied, match=r"/dev/shm is full; enlarge it .* or set data\.workers=0"):
    reading.Watched(no_room, lambda: False)


def test_a_status_of_a_process_is_explained():
  assert "`if __name__ == '__main__':`" in reading._reason(1)
  assert "SIGSEGV; set data.workers=0" in reading._reason(-signal.SIGSEGV)
