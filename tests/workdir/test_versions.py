"""A run records what each of its starts ran on, and a resumed one prints what has changed."""

import json
import subprocess

import jax
import pytest

from jet_jax import train
from jet_jax.workdir import versions


def lines(workdir):
  return [json.loads(line) for line in (workdir / versions.NAME).read_text().splitlines()]


def test_each_start_is_recorded_and_a_change_is_told_in_one_line(tiny_config, tmp_path, capsys, monkeypatch):
  found = versions.versions()
  monkeypatch.setattr(versions, "versions", lambda: found)  # the clone may change during the test
  train.train(train.prepare(tiny_config(total_steps=2), tmp_path))
  assert "changed since" not in capsys.readouterr().out
  monkeypatch.setattr(versions, "versions", lambda: found | {"jax": "99.0", "cores": 400})
  train.train(train.prepare(tiny_config(total_steps=4), tmp_path))
  told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since the last start: ")]
  assert told == [
    f"changed since the last start: jax {jax.__version__} to 99.0, cores {found['cores']} to 400; "
    "results may differ in the last digits"
  ]
  first, second = lines(tmp_path)
  assert (first["step"], second["step"]) == (0, 2)
  assert {"jet_jax", "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain"} <= set(first)
  assert first["device"] == jax.devices()[0].device_kind
  assert first["devices"] == jax.device_count()
  assert second["jax"] == "99.0"


def test_a_torn_record_is_skipped(tmp_path, capsys):
  (tmp_path / versions.NAME).write_text('{"jax": "0.9.0"}\n{"jax": "0.1\0')
  versions.record(tmp_path, 0)
  assert "jax 0.9.0 to" in capsys.readouterr().out
  assert versions.last_line((tmp_path / versions.NAME).read_text())["jax"] == jax.__version__
  assert versions.last_line("") == {}


def test_a_record_that_cannot_be_read_or_written_is_no_reason_to_end(tmp_path, capsys):
  (tmp_path / versions.NAME).mkdir()
  (tmp_path / "file").touch()
  for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path, "Is a directory")):
    versions.record(folder, 0)
    assert f"versions.jsonl cannot be read and written ({reason}); training goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("before", "now", "expected"),
  [
    ({}, {"jax": "1"}, ""),
    ({"jax": "1", "step": 3, "time": "a"}, {"jax": "1", "step": 9, "time": "b"}, ""),
    (
      {"commit": "a", "xla_flags": ""},
      {"commit": "b-dirty", "xla_flags": "-x"},
      "commit a to b-dirty, xla_flags none to -x",
    ),
    ({"jax": "1", "libtpu": "7"}, {"jax": "1"}, "libtpu 7 to none"),
  ],
)
def test_changes_are_listed_by_name(before, now, expected):
  assert versions.describe_changes(before, now) == expected


@pytest.mark.process
def test_the_commit_is_that_of_the_clone_and_of_no_repository_around_it(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    return subprocess.run(["git", *identity, "-C", tmp_path, *arguments], check=True, capture_output=True, text=True)

  monkeypatch.setenv("GIT_DIR", "/elsewhere/.git")  # as in a hook of another repository
  assert versions.commit(tmp_path) is None
  monkeypatch.delenv("GIT_DIR")
  git("init", "--quiet")
  (tmp_path / "file").write_text("1")
  git("add", ".")
  git("commit", "--quiet", "--message=x")
  git("tag", "v1", "--annotate", "--message=x")
  monkeypatch.setenv("GIT_DIR", "/elsewhere/.git")
  head = versions.commit(tmp_path)
  monkeypatch.delenv("GIT_DIR")
  assert git("rev-parse", "HEAD").stdout.startswith(head)
  (tmp_path / "file").write_text("2")
  assert versions.commit(tmp_path) == f"{head}-dirty"
  (tmp_path / "below").mkdir()
  assert versions.commit(tmp_path / "below") is None
