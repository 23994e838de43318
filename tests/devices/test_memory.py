"""The memory limit of a container or job is found, in both versions of cgroups; runs that exceed it are rejected."""

import jax
import pytest

from jet_jax.devices import compile as compile_lib
from jet_jax.devices import memory

GIB = 2**30
UNLIMITED = 9223372036854771712  # version 1's way to say that there is no limit


def limit(folder, own, files):
  """`of_container` for the text of /proc/self/cgroup, and files below the mount."""
  (folder / "own").write_text(own)
  for name, text in files.items():
    (folder / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "mount" / name).write_text(f"{text}\n")
  return memory.of_container(folder / "own", folder / "mount")


@pytest.mark.parametrize(
  ("own", "files", "expected"),
  [
    ("0::/a/b", {"a/b/memory.max": GIB}, GIB),
    ("0::/a/b", {"a/memory.max": GIB, "a/b/memory.max": "max"}, GIB),  # around it, as a job around its step
    ("0::/a/b", {"a/memory.max": GIB, "a/b/memory.max": GIB // 2}, GIB // 2),
    ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "max"}, None),
    ("0::/", {"memory.max": GIB}, GIB),  # a container that sees its own cgroup as the root
    ("0::/../elsewhere", {"memory.max": GIB}, GIB),
    ("12:cpu,cpuacct:/a\n9:memory:/a/b\n0::/", {"memory/a/b/memory.limit_in_bytes": GIB}, GIB),
    ("9:memory:/docker/7", {"memory/memory.limit_in_bytes": GIB}, GIB),
    ("9:memory:/a", {"memory/a/memory.limit_in_bytes": UNLIMITED, "memory/memory.limit_in_bytes": UNLIMITED}, None),
    ("9:cpu,memory:/a", {"cpu,memory/a/memory.limit_in_bytes": GIB}, GIB),
    ("0::/a", {"unified/a/memory.max": GIB}, GIB),
    ("9:cpu:/a", {"memory/a/memory.limit_in_bytes": GIB}, None),
    ("0::/a", {}, None),
  ],
)
def test_the_smallest_limit_of_all_cgroups_counts(tmp_path, monkeypatch, own, files, expected):
  monkeypatch.setattr(memory, "of_machine", lambda: 16 * GIB)
  assert limit(tmp_path, own, files) == expected


def test_a_limit_above_the_machine_is_none(tmp_path):
  assert limit(tmp_path, "0::/", {"memory.max": 2**60}) is None


def test_without_cgroups_there_is_no_limit(tmp_path):
  assert memory.of_container(tmp_path / "missing", tmp_path) is None


def test_cpu_devices_share_what_the_container_has_beside_python_and_jax(monkeypatch):
  monkeypatch.setattr(memory, "of_container", lambda: 2 * GIB)
  devices = jax.local_devices()
  assert compile_lib.memory_limit(devices * 2) == (2 * GIB - compile_lib.OWN) // (2 * len(devices))
  monkeypatch.setattr(memory, "of_container", lambda: GIB // 4)
  assert compile_lib.memory_limit(devices) == 0


def test_what_does_not_fit_a_container_is_rejected_with_its_limit(monkeypatch):
  monkeypatch.setattr(memory, "of_container", lambda: GIB)
  with pytest.raises(ValueError, match=r"needs 0\.90 GiB .* raise the memory limit of this container, 1\.00 GiB$"):
    compile_lib.check_fits("training", int(0.9 * GIB), compile_lib.memory_limit(jax.local_devices()))
  monkeypatch.setattr(memory, "of_container", lambda: None)
  with pytest.raises(ValueError, match="train a smaller model$"):
    compile_lib.check_fits("training", 2 * GIB, GIB)
