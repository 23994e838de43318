"""A sweep trains every run once, resumes, and writes a table with the figures of the runs' own files."""

import csv
import inspect
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from jet_jax import config as config_lib
from jet_jax.jet import Jet
from jet_jax.training.cost import train_flops
from tools import cost, sweep

SWEEP = """
TINY = ("configs/digits.py:coupling_transform=affine,couplings=2,block_depth=1,width=8,heads=2,batch_size=16,"
        "log_steps=5,eval_steps=5,sample_steps=0,checkpoint_steps=5,warmup_steps=1,total_steps=")


def get_sweep(length):
  return {
    "from_first/seed0": TINY + length + ",init_from={out}/first/seed1",  # comes before what it needs
    "first/seed0": TINY + length,
    "first/seed1": TINY + length + ",seed=1",
    "wrong": TINY + length + ",data.source=npz:/nowhere.npz",
  }
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "sweep.py"
  path.write_text(SWEEP)
  return path


def command(file, out, *more, length="10"):
  arguments = [f"--sweep={file}", f"--out={out}", "--define", f"length={length}", *more]
  return [sys.executable, "-m", "tools.sweep", *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.process
def test_all_runs_are_trained_and_tabulated(file, tmp_path):
  out = tmp_path / "out"
  result = subprocess.run(command(file, out, "--jobs=2"), capture_output=True, text=True, timeout=300, check=False)
  assert result.returncode == 1, result.stderr
  assert "error: 1 of the runs failed: wrong" in result.stderr
  assert re.search(r"wrong: error: .*/nowhere\.npz", result.stdout)
  printed = json.loads(result.stdout.splitlines()[-1])
  assert printed["failed"] == ["wrong"]

  rows = {row["run"]: row for row in csv.DictReader((out / "runs.csv").open())}
  assert list(rows) == ["first/seed0", "first/seed1", "from_first/seed0"]
  assert rows["from_first/seed0"]["init_from"] == f"{out}/first/seed1@10"
  metrics = [json.loads(line) for line in (out / "first/seed1/metrics.jsonl").read_text().splitlines()]
  figures = [line["val/bits_per_dim"] for line in metrics if "val/bits_per_dim" in line]
  row = rows["first/seed1"]
  assert (row["group"], row["seed"], row["steps"], row["of"]) == ("first", "1", "10", "10")
  assert float(row["bits_per_dim"]) == figures[-1]
  assert float(row["best"]) == min(figures)
  config = config_lib.load(out / "first/seed1")
  assert int(row["flops"]) == flops_of(config)

  groups = {group["group"]: group for group in printed["groups"]}
  pair = [float(rows[f"first/seed{seed}"]["bits_per_dim"]) for seed in (0, 1)]
  assert groups["first"]["runs"] == 2
  assert groups["first"]["bits_per_dim"] == pytest.approx(sum(pair) / 2)
  assert groups["first"]["bits_per_dim_std"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
  assert Image.open(out / "curves.png").size == (960, 600)


def flops_of(config):
  return train_flops(Jet(**config.model), (8, 8, 1)) * config.batch_size * 10


BASE = "configs/digits.py:total_steps=10"


@pytest.mark.process
def test_what_starts_from_a_run_that_failed_is_not_started(tmp_path, monkeypatch):
  runs = {"a": BASE, "b": BASE + ",init_from={out}/a", "c": BASE + ",init_from={out}/x/../b@best", "d": BASE}
  started = []

  def start(self, name, place, places):
    started.append(name)
    (self.out / f"{name}.log").write_text("some words")
    return subprocess.Popen(["false" if name == "a" else "true"])

  monkeypatch.setattr(sweep.Sweep, "start", start)
  monkeypatch.setattr(sweep, "POLL", 0)
  for jobs in (1, 3):
    started.clear()
    assert sweep.Sweep(runs, tmp_path).run(list(runs), jobs) == ["a", "b", "c"]
    assert sorted(started) == ["a", "d"]


def test_one_of_an_array_job_is_refused_until_its_source_is_finished(file, tmp_path):
  with pytest.raises(SystemExit, match=r"which is not finished; train first/seed1 first \(--index=2;"):
    sweep.main([f"--sweep={file}", f"--out={tmp_path / 'out'}", "--define", "length=3", "--index=0"])


@pytest.mark.parametrize(
  ("sources", "words"), [(("a",), "a needs a"), (("b", "a"), "a needs b needs a"), (("b", "c", "b"), "needs c needs b")]
)
def test_runs_that_wait_for_each_other_are_refused(sources, words, tmp_path):
  runs = {name: f"{BASE},init_from={{out}}/{source}" for name, source in zip("abc", sources, strict=False)}
  with pytest.raises(ValueError, match=words):
    sweep.Sweep(runs, tmp_path)


def test_a_comma_in_the_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match="must have no comma"):
    sweep.Sweep({"a": BASE}, tmp_path / "a,b")


def test_a_run_that_diverged_or_has_just_begun_is_in_the_table_as_it_is(tmp_path, capsys):
  """A last evaluation of NaN stands in the table beside a finite best one; nothing is omitted to look better."""
  lines = {
    "a/seed0": [("val", 5, 4.0), ("train", 10, None), ("val", 10, None)],
    "a/seed1": [("train", 10, 3.0), ("val", 10, 3.5)],
    "b/seed0": [],
  }
  for name, rows in lines.items():
    (tmp_path / name).mkdir(parents=True)
    config = config_lib.from_file(BASE)
    config.image_shape, config.data.num_examples = (8, 8, 1), 1597
    config_lib.save(config, tmp_path / name / "config.json")
    written = [
      json.dumps({"step": step, f"{what}/bits_per_dim": bits, f"{what}/bits_per_dim_stderr": 0.1})
      for what, step, bits in rows
    ]
    (tmp_path / name / "metrics.jsonl").write_text("\n".join(written))
  sweep.main([f"--out={tmp_path}", "--table"])
  rows = {row["run"]: row for row in csv.DictReader((tmp_path / "runs.csv").open())}
  assert [rows["a/seed0"][name] for name in ("bits_per_dim", "best", "best_step", "train")] == [
    "nan",
    "4.0",
    "5",
    "nan",
  ]
  assert rows["b/seed0"]["bits_per_dim"] == rows["b/seed0"]["train"] == ""
  groups = {group["group"]: group for group in json.loads(capsys.readouterr().out.splitlines()[-1])["groups"]}
  assert [(groups[name]["runs"], groups[name]["finished"]) for name in "ab"] == [(2, 2), (1, 0)]
  assert groups["a"]["bits_per_dim"] is None
  assert groups["a"]["best"] == 3.75
  assert groups["a"]["best_std"] == pytest.approx(0.5 / 2**0.5)
  assert "bits_per_dim" not in groups["b"]
  sweep.main([f"--out={tmp_path}", "--table", "--only=^b/"])
  chosen = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (chosen["runs"], chosen["groups"]) == (1, [groups["b"]])


@pytest.mark.slow
@pytest.mark.process
def test_a_sweep_that_is_asked_to_stop_saves_and_goes_on(file, tmp_path):
  out = tmp_path / "out"
  one = [*command(file, out, "--index=1", length="100000")]
  process = subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  metrics = out / "first/seed0/metrics.jsonl"
  until = time.monotonic() + 120
  while not (metrics.exists() and "val/" in metrics.read_text()):
    assert time.monotonic() < until
    assert process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 1
  assert "rerun the command to resume" in errors
  saved = max(int(path.parent.name) for path in out.glob("first/seed0/checkpoints/*/commit_success.txt"))
  config = json.loads((out / "first/seed0/config.json").read_text())
  assert config["total_steps"] == 100000
  shorter = [part.replace("length=100000", f"length={saved + 5}") for part in one]
  assert subprocess.run(shorter, check=False, timeout=300).returncode == 0
  assert f"resuming from step {saved}" in (out / "first/seed0.log").read_text()
  sweep.main([f"--out={out}", "--table"])
  assert (out / "groups.csv").read_text().splitlines()[1].startswith(f"first,1,1,{saved + 5},")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--define"], "needs --define length="),
    (["--define", "length=3", "more=4"], "needs --define length="),
    (["--define", "length=3", "--index=4"], "from 0 to 3"),
    (["--define", "length=3", "--jobs=0"], "at least 1"),
    (["--define", "length=3,widdth=4"], "did you mean 'model.width'"),
    (["--table"], "no such run in"),
    (["--table", "--only=("], "--only='.' is no regular expression"),
  ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(arguments, words, file, tmp_path):
  with pytest.raises(SystemExit, match=words):
    sweep.main([f"--sweep={file}", f"--out={tmp_path / 'out'}", *arguments])
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(pathlib.Path("configs/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_every_sweep_has_configs_that_can_be_read(path, tmp_path):
  module = sweep.load_module(str(path))
  definitions = dict.fromkeys(inspect.signature(module.get_sweep).parameters, "digits")
  runs = sweep.Sweep(sweep.load(str(path), definitions), tmp_path)
  assert runs.runs
  assert f"--sweep={path}" in module.__doc__


@pytest.mark.parametrize("name", ["architecture", "depth"])
def test_architectures_that_are_compared_take_the_same_operations(name):
  """The comparisons of docs/reference/experiments.md are at equal cost."""
  runs = sweep.load(f"configs/sweeps/{name}.py", {"images": "digits"})
  flops = []
  for argument in runs.values():
    config = config_lib.override(config_lib.from_file(argument), {"num_examples": 1000, "size": 32})
    flops.append(cost.cost(config)["flops"])
  assert max(flops) / min(flops) < 1.06
