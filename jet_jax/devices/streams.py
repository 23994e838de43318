"""Standard output and standard error that outlive their pipe or terminal."""

import atexit
import contextlib
import os
import pathlib
import sys
from typing import Any, TextIO


class _Lasting:
  """A text stream that never raises. The first failure is told on the `other` stream; later writes are tried again."""

  def __init__(self, stream: TextIO, name: str, other: str):
    self._stream, self._name, self._other, self._told = stream, name, other, False
    with contextlib.suppress(AttributeError, ValueError):
      stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  # what the locale cannot write

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes a text, if the stream still can."""
    self._attempt(self._stream.write, text)
    return len(text)

  def flush(self) -> None:
    """Flushes what was written, if the stream still can."""
    self._attempt(self._stream.flush)

  def _attempt(self, call, *arguments) -> None:
    try:
      call(*arguments)
    except (OSError, ValueError) as error:  # a broken pipe, a full disk, a closed file
      if not self._told:
        self._told = True
        text = f"warning: {self._name} is gone ({error}); the run goes on, and its work directory has all figures"
        with contextlib.suppress(AttributeError):
          print(text, file=getattr(sys, self._other), flush=True)

  def silence(self) -> None:
    """Lets the interpreter's last flush of a broken stream succeed, which else would change the exit status."""
    try:
      self._stream.flush()
    except OSError:
      with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
    except ValueError:
      pass  # closed


def outlive() -> None:
  """Replaces both streams of this process, so that printing never raises: not if a pipe is closed or a terminal gone.

  Characters that the locale cannot write become question marks.
  """
  for name, long, other in (("stdout", "standard output", "stderr"), ("stderr", "standard error", "stdout")):
    stream = getattr(sys, name)
    if stream is None:  # closed from the start
      setattr(sys, name, pathlib.Path(os.devnull).open("w"))  # noqa: SIM115
    elif not isinstance(stream, _Lasting):
      lasting = _Lasting(stream, long, other)
      setattr(sys, name, lasting)
      atexit.register(lasting.silence)
