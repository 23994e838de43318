"""Places: a file is replaced as a whole or stays as it was, on a disk and in a bucket."""

import json
import os
import pathlib
import time

import pytest

import buckets
from jet_jax import places
from jet_jax.places import replacing, write_bytes, write_json

pytestmark = pytest.mark.process


server = buckets.server_with("places")


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
  """A folder of either kind."""
  if request.param == "disk":
    return tmp_path
  request.getfixturevalue("server")
  return places.as_path(f"gs://places/{tmp_path.name}")


def names(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.glob("*"))


def test_a_file_is_replaced_and_its_folder_is_made(folder):
  path = folder / "new" / "a.json"
  write_bytes(path, b"old")
  write_json(path, {"step": 3})
  assert json.loads(path.read_text()) == {"step": 3}
  assert names(path.parent) == ["a.json"]


def test_an_error_leaves_the_old_file_and_no_other(folder):
  path = folder / "a"
  write_bytes(path, b"old")
  with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
    temporary.write_bytes(b"half")
    raise KeyboardInterrupt
  assert path.read_bytes() == b"old"
  assert names(folder) == ["a"]


def test_folders_are_moved_removed_and_found(folder):
  for name in ("1/config.json", "1/deep/x", "2/deep/config.json", "2/deep/er/config.json", "2/other.json"):
    write_bytes(folder / name, name.encode())
  found = places.folders_with("config.json", folder, 2)
  assert sorted(str(path.relative_to(folder)) for path in found) == ["1", "2/deep"]
  places.move(folder / "1", folder / "damaged" / "1")
  assert not (folder / "1").exists()
  assert (folder / "damaged/1/deep/x").read_bytes() == b"1/deep/x"
  places.remove(folder / "2")
  assert names(folder) == ["damaged"]


def test_a_copy_on_this_machine_has_the_wanted_files(folder):
  for name in ("config.json", "samples/3.png", "samples/3.txt", "checkpoints/1/digests/metadata"):
    write_bytes(folder / name, name.encode())
  copy = places.local_copy(folder, ["*.json", "samples/*.png"])
  assert isinstance(copy, pathlib.Path)
  assert (copy / "samples/3.png").read_bytes() == b"samples/3.png"
  if places.in_bucket(folder):
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*.*")) == ["config.json", "samples/3.png"]
  else:
    assert copy == folder


def test_the_age_of_a_file_is_known_and_the_free_space_of_a_disk(folder):
  write_bytes(folder / "a", b"")
  assert abs(places.modified(folder / "a") - time.time()) < 10
  with pytest.raises(FileNotFoundError):
    places.modified(folder / "b")
  free = places.free_bytes(folder)
  assert free is None if places.in_bucket(folder) else free > 0
  assert places.resolved(folder / "a") == folder / "a"
  assert places.patience(folder, 20) == (60 if places.in_bucket(folder) else 20)


def test_a_mirror_is_the_file_itself_or_a_copy_of_it(folder):
  write_bytes(folder / "log", b"1\n")
  mirror = places.Mirror(folder / "log", interval=3600)
  mirror.fetch()
  with mirror.path.open("ab") as file:
    file.write(b"2\n")
  mirror.send()
  assert (folder / "log").read_bytes() == b"1\n2\n"
  with mirror.path.open("ab") as file:
    file.write(b"3\n")
  mirror.send(now=False)  # at most every few seconds
  assert (folder / "log").read_bytes() == (b"1\n2\n" if places.in_bucket(folder) else b"1\n2\n3\n")
  mirror._interval = 0
  mirror.send(now=False)
  assert (folder / "log").read_bytes() == b"1\n2\n3\n"
  missing = places.Mirror(folder / "missing", 0)
  missing.fetch()
  missing.send()
  assert not (folder / "missing").exists()


def test_of_a_folder_a_mirror_sends_what_has_changed(server, monkeypatch):
  folder = places.as_path("gs://places/events")
  mirror, written = places.Mirror(folder, 0), []
  (mirror.path / "validation").mkdir(parents=True)
  (mirror.path / "a").write_bytes(b"1")
  (mirror.path / "validation" / "b").write_bytes(b"1")
  mirror.send()
  kind = type(folder)
  write = kind.write_bytes
  monkeypatch.setattr(kind, "write_bytes", lambda path, content: written.append(path.name) or write(path, content))
  (mirror.path / "validation" / "b").write_bytes(b"12")
  mirror.send()
  assert written == ["b"]
  assert (folder / "validation" / "b").read_bytes() == b"12"
  assert (folder / "a").read_bytes() == b"1"


def test_a_mirror_that_was_not_sent_is_sent_the_next_time(server, monkeypatch):
  mirror = places.Mirror(places.as_path("gs://places/log"), 0)
  mirror.path.write_bytes(b"1")
  kind, write = type(mirror._target), type(mirror._target).write_bytes

  def away(*_):
    raise ConnectionError

  monkeypatch.setattr(kind, "write_bytes", away)
  with pytest.raises(ConnectionError):
    mirror.send()
  monkeypatch.setattr(kind, "write_bytes", write)
  mirror.send()
  assert places.as_path("gs://places/log").read_bytes() == b"1"


@pytest.mark.parametrize("text", ["gs://bucket/run", "gs://my-bucket.x_1/a b/größe/100%/;1/a@3", "gs://b12/a//b/"])
def test_a_folder_of_a_bucket_is_a_path(text):
  path = places.bucket_path(text)
  assert os.fspath(path) == text.replace("a//b/", "a/b")
  assert places.in_bucket(path)
  assert places.in_bucket(path / "config.json")
  assert not places.in_bucket("/gs://bucket/run")


@pytest.mark.parametrize(
  "text", ["gs://", "gs:///run", "gs://bucket", "gs://bucket/", "gs://Bucket/run", "gs://b/../run", "gs://bucket/./x"]
)
def test_other_addresses_are_rejected(text):
  with pytest.raises(ValueError, match="is no folder of a bucket; give it as gs://BUCKET/FOLDER.*3 characters"):
    places.bucket_path(text)


@pytest.mark.parametrize("text", ["gs://bucket/run#1", "gs://bucket/a?b", "gs://bucket/a\nb"])
def test_a_character_that_mixes_up_checkpoints_is_rejected(text):
  with pytest.raises(ValueError, match="where checkpoints would be mixed up; give another name"):
    places.bucket_path(text)


def test_what_must_not_be_written_is_not_sent(server):
  def lost():
    raise ValueError("taken")

  mirror = places.Mirror(places.as_path("gs://places/lost"), 0, lost)
  mirror.path.write_bytes(b"1")
  with pytest.raises(ValueError, match="taken"):
    mirror.send()
  assert not places.as_path("gs://places/lost").exists()


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"needs the package gcsfs; install it: pip install 'jet_jax\[gcs\]'"):
    places.bucket_path("gs://bucket/run")


def errors():
  import aiohttp  # noqa: PLC0415
  import google.api_core.exceptions as api  # noqa: PLC0415
  import google.auth.exceptions as auth  # noqa: PLC0415
  import requests  # noqa: PLC0415
  from fsspec.exceptions import FSTimeoutError  # noqa: PLC0415
  from gcsfs.retry import HttpError  # noqa: PLC0415

  return [
    (api.NotFound("bucket"), ValueError, "there is no such bucket; create it"),
    (api.Forbidden("no"), ValueError, "no permission .* roles Storage Object Admin"),
    (FileNotFoundError("b/bucket/o"), ValueError, "there is no such bucket"),
    (auth.RefreshError("Reauthentication is needed"), ValueError, "no valid credentials .*Reauthentication"),
    (OSError("Project was not passed and could not be determined"), ValueError, "set GOOGLE_CLOUD_PROJECT"),
    (FSTimeoutError(), places.Unreachable, "does not answer .FSTimeoutError"),
    (OSError("Forbidden: https://x\nno storage.objects.list"), ValueError, "no permission"),
    (api.Unauthorized("no"), ValueError, "no valid credentials .*gcloud auth application-default login"),
    (HttpError({"code": 401, "message": "Anonymous caller"}), ValueError, "no valid credentials"),
    (
      auth.DefaultCredentialsError("none were found"),
      ValueError,
      "no valid credentials .*GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (api.RetryError("late", None), places.Unreachable, "does not answer .*give the same command again"),
    (requests.ConnectionError("refused"), places.Unreachable, "does not answer"),
    (aiohttp.ClientError("refused"), places.Unreachable, "does not answer"),
    (HttpError({"code": 503, "message": "busy"}), places.Unreachable, "does not answer"),
  ]


@pytest.mark.parametrize("number", range(14))
def test_an_error_of_a_bucket_says_what_to_do(number):
  error, kind, message = errors()[number]
  with pytest.raises(kind, match=f"gs://bucket/run: .*{message}"), places.reaching("gs://bucket/run"):
    raise error
  with pytest.raises(type(error)), places.reaching("/tmp/run"):
    raise error
  for own in (ValueError("a value"), FileNotFoundError("a file")):
    with pytest.raises(type(own), match=str(own)), places.reaching("gs://bucket/run"):
      raise own
