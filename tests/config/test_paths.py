"""Paths as users write them: the home directory, addresses, and characters that break a work directory."""

import pathlib

import pytest

from jet_jax import config as config_lib
from jet_jax.config import paths
from jet_jax.data import sources
from jet_jax.training import transfer
from jet_jax.workdir import load_run

ADDRESSES = (
  "gs://bucket/run", "gs:/bucket/run", "gs:bucket", "s3://bucket/a b", "hdfs://host/x", "file:///tmp/x",
  "https://host/x.zip", "memory://x",
)  # fmt: skip
# Each but the last takes a path and opens, or would open, what is there.
ENTRIES = {
  "local": paths.local,
  "work directory": paths.of_run,
  "output": paths.check_output,
  "config file": config_lib.from_file,
  "config of a run": config_lib.load,
  "trained run": load_run,
  "init_from": transfer.path_and_step,
  "folder": lambda path: sources.open_all(f"folder:{path}", 8),
  "archive": lambda path: sources.absolute(f"archive:{path}"),
  "npz": lambda path: sources.open_all(f"npz:{path}", 0),
  "tfds": lambda path: sources.open_all(f"tfds:{path}", 0),
  "data_dir": sources.absolute_data_dir,
  "source": sources.absolute,
}
OF_RUNS = ("work directory", "config of a run", "trained run", "init_from")  # which may be in a bucket


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_no_path(address):
  with pytest.raises(paths.BadPath, match="is an address, .* mount the bucket"):
    paths.local(address)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_path_is_checked(entry, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for address in ("s3://bucket/x", "gs:/bucket/x") + (() if entry in OF_RUNS else ("gs://bucket/x",)):
    with pytest.raises(ValueError, match=f"{address} is an address, .* as gs://BUCKET/FOLDER"):
      ENTRIES[entry](address)
  assert not list(tmp_path.iterdir())


def test_a_work_directory_may_be_in_a_bucket():
  assert str(paths.of_run("gs://bucket/runs/a b/")) == "gs://bucket/runs/a b"
  with pytest.raises(paths.BadPath, match="gs://bucket is no folder of a bucket; give it as gs://BUCKET/FOLDER"):
    paths.of_run("gs://bucket")
  with pytest.raises(paths.BadPath, match="could not be read; rename that folder"):
    paths.of_run("gs://bucket/a*")


@pytest.mark.parametrize("path", ["a:b", "runs/a:b/c", "/x/y z", "a,b", "100%", "#1", "größe", "a@3", "C", "x/gs://y"])
def test_other_names_stay_as_they_are(path):
  assert paths.local(path) == pathlib.Path(path)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert paths.local("~/run") == tmp_path / "run"
  assert paths.of_run("~/run/") == tmp_path / "run"
  assert paths.local("a~/~b") == pathlib.Path("a~/~b")
  assert sources.absolute("npz:~/a.npz") == f"npz:{tmp_path}/a.npz"
  assert sources.absolute("folder:~/{split}") == f"folder:{tmp_path}/{{split}}"
  assert sources.absolute_data_dir("~/DATA") == f"{tmp_path}/DATA"
  assert transfer.path_and_step("~/run@3") == (f"{tmp_path}/run", "3")
  (tmp_path / "my.py").write_text("import configs.digits\nget_config = configs.digits.get_config\n")
  assert config_lib.from_file("~/my.py:lr=0.5").lr == 0.5


def test_an_unknown_home_directory_is_rejected():
  with pytest.raises(paths.BadPath, match="home directory ~nobody-like-this is not known; give the full path"):
    paths.local("~nobody-like-this/run")


@pytest.mark.parametrize("name", ["a[b]", "a[", "a*", "what?", "a\\b"])
def test_a_work_directory_whose_checkpoints_could_not_be_read_is_rejected(name, tmp_path, tiny_config):
  from jet_jax import train  # noqa: PLC0415  it imports much

  for use in (config_lib.of_run, config_lib.load, load_run, lambda path: train.prepare(tiny_config(), path)):
    with pytest.raises(ValueError, match="could not be read; rename that folder"):
      use(tmp_path / name / "run")
  assert not list(tmp_path.iterdir())


def test_outputs_are_checked_and_nothing_is_written(tmp_path):
  assert paths.check_output(tmp_path / "new/folder/a.PNG", ".png") == tmp_path / "new/folder/a.PNG"
  (tmp_path / "folder.png").mkdir()
  (tmp_path / "file").touch()
  for path, message in (
    ("a.jpg", r"a\.jpg must end in \.png"),
    ("a", r"a must end in \.png"),
    ("folder.png", "is a folder; give the path of a file"),
    ("file/a.png", "a.png cannot be written .*another folder"),
    ("/proc/none/a.png", "a.png cannot be written .*another folder"),
  ):
    with pytest.raises(paths.BadPath, match=message):
      paths.check_output(tmp_path / path, ".png")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
  with pytest.raises(paths.BadPath, match="the path is empty"):
    paths.check_output("")
