"""Printing never ends a run: not if the pipe is closed, the disk is full or the locale knows few characters."""

import io
import os
import subprocess
import sys

import pytest

from jet_jax.devices import processes, streams


class Gone(io.StringIO):
  """A stream that fails as a closed pipe does."""

  def write(self, text):
    raise BrokenPipeError(32, "Broken pipe")


def test_a_stream_that_is_gone_is_told_once_on_the_other(monkeypatch):
  errors = io.StringIO()
  monkeypatch.setattr(sys, "stdout", streams._Lasting(Gone(), "standard output", "stderr"))
  monkeypatch.setattr(sys, "stderr", errors)
  for _ in range(3):
    processes.say("step 1")
  assert errors.getvalue().count("standard output is gone ([Errno 32] Broken pipe); the run goes on") == 1


def test_names_that_are_no_unicode_are_escaped(monkeypatch):
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8", errors="strict"))
  processes.say("skipped caf\udce9.png of été")
  assert raw.getvalue().decode() == "skipped caf\\udce9.png of été\n"


def test_characters_that_the_locale_cannot_write_are_replaced():
  raw = io.BytesIO()
  stream = streams._Lasting(io.TextIOWrapper(raw, encoding="ascii"), "standard output", "stderr")
  print("3.1 ± 0.1", file=stream, flush=True)
  assert raw.getvalue() == b"3.1 ? 0.1\n"


@pytest.mark.process
@pytest.mark.parametrize("closed", ["pipe", "descriptor"])
def test_a_process_whose_output_is_gone_ends_with_its_own_status(closed):
  script = """
import sys
from jet_jax.devices import streams
streams.outlive()
for _ in range(3):
  print("x" * 9000, flush=True)
print("alive", file=sys.stderr)
sys.exit(7)
"""
  reader, writer = os.pipe()
  os.close(reader)
  command = ["sh", "-c", 'exec "$@" >&-' if closed == "descriptor" else 'exec "$@"', "sh", sys.executable, "-c", script]
  result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
  os.close(writer)
  assert result.returncode == 7
  assert result.stderr.splitlines()[-1] == "alive"
  assert result.stderr.count("standard output is gone") == (closed == "pipe")
  assert "Exception" not in result.stderr
