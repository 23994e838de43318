"""The check of a device runs whole at small sizes, and an error or a lack of time in one part leaves the others."""

import json
import re
import time

import jax
import jax.numpy as jnp
import pytest

from tools import gpu_check
from tools.measuring import timing


@pytest.fixture
def check(tmp_path):
  """A check at small sizes with plenty of time."""
  return gpu_check.Check(tmp_path, gpu_check.SMALL, minutes=60.0)


def written(check):
  """Parts as they are in the file."""
  return json.loads((check.out / "gpu_check.json").read_text())["parts"]


def ran(capsys, *arguments):
  """Runs the command, and returns the parts that it prints."""
  gpu_check.main([*arguments])
  return json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]


def check_agreement(parts):
  """Asserts that figures of golden, attention and permute are sane."""
  # Float32 at the highest precision: 1e-5 was measured. A wrong split or weight moves z by more than 1e-2.
  assert len(parts["golden"]["rows"]) == 3
  assert all(value < 1e-4 for row in parts["golden"]["rows"] for name, value in row.items() if name != "file")
  rows = {(row["implementation"], row["dtype"]): row for row in parts["attention"]["rows"]}
  assert {key for key, row in rows.items() if "rejected" in row} == {
    (name, dtype) for name in ("cudnn", "splash") for dtype in ("float32", "bfloat16")
  }
  for (name, dtype), row in rows.items():
    if name in ("xla", "einsum"):
      # bfloat16 keeps 8 bits: relative steps of 2**-8 = 0.004 in weights and results. Another scale of the scores or
      # another layout is an error of order one.
      limit = 2e-2 if dtype == "bfloat16" else 1e-5
      assert max(row["output_relative"], row["gradient_relative"]) < limit, (name, dtype)
  assert parts["permute"]["same_numbers"] is True
  assert [row["way"] for row in parts["permute"]["rows"]] == ["by_products"] * 2 + ["by_gathers"] * 2
  assert all(row["microseconds"] > 0 for row in parts["permute"]["rows"])


def test_the_parts_that_compare_numbers_agree_on_a_cpu(capsys, tmp_path):
  parts = ran(capsys, f"--out={tmp_path}", "--parts=permute,attention,device,golden")
  assert list(parts) == ["device", "golden", "attention", "permute"]
  assert all(part["status"] == "done" for part in parts.values())
  assert (parts["device"]["platform"], parts["device"]["jax"]) == ("cpu", jax.__version__)
  check_agreement(parts)


@pytest.mark.slow
@pytest.mark.process
def test_all_parts_run_on_a_cpu_and_their_figures_are_sane(capsys, tmp_path):
  parts = ran(capsys, f"--out={tmp_path}")
  assert list(parts) == [name for name, _ in gpu_check.PARTS]
  assert {name: part.get("error") for name, part in parts.items()} == dict.fromkeys(parts)
  assert all(part["status"] == "done" for part in parts.values())
  check_agreement(parts)
  for name, rows in (("train", 5), ("official", 2), ("sample", 2)):
    assert len(parts[name]["rows"]) == rows
    assert all(min(row["images_per_second"], row["mfu"], row["peak_bytes"]) > 0 for row in parts[name]["rows"])
  train, official = parts["train"], parts["official"]
  assert train["best_images_per_second"] == max(
    row["images_per_second"] for row in train["rows"] if "dtype=bfloat16" in row["setting"]
  )
  best, plain = official["rows"]
  assert best["setting"] == train["best"]
  assert plain["setting"] == f"dtype=float32,attention=xla,remat=full,batch_size={best['batch_size']}"
  assert official["speedup"] == pytest.approx(best["images_per_second"] / plain["images_per_second"])
  assert [row["what"] for row in parts["sample"]["rows"]] == ["eval", "sample"]
  # Twenty steps change the loss by 0.2 bits/dim; the dtypes differ by a rounding of 8 bits in that.
  assert all(row["last"] < row["first"] - 0.1 for row in parts["learning"]["rows"])
  assert abs(parts["learning"]["difference"]) < 0.02
  determinism = parts["determinism"]
  assert (determinism["resumed_from"], determinism["steps"]) == (3, 6)
  assert determinism["repeat_bitwise"] is determinism["resume_bitwise"] is True
  assert determinism["arrays"] > 10
  text = (tmp_path / "gpu_check.md").read_text()
  assert all(f"## {name}\n" in text for name in parts)


def test_an_error_is_recorded_with_the_figures_before_it_and_the_next_part_runs(check):
  def broken(check, result):
    result["before"] = 1
    raise RuntimeError("two\nlines")

  gpu_check.run_parts(check, [("broken", broken), ("next", lambda check, result: result.update(figure=2))])
  parts = written(check)
  assert (parts["broken"]["status"], parts["broken"]["before"]) == ("failed", 1)
  assert parts["broken"]["error"] == "RuntimeError: two lines"
  assert (parts["next"]["status"], parts["next"]["figure"]) == ("done", 2)
  assert "RuntimeError: two lines" in (check.out / "gpu_check.md").read_text()


def test_a_failed_part_gives_a_status_and_one_line(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(gpu_check, "PARTS", (("broken", lambda check, result: 1 / 0),))
  with pytest.raises(SystemExit, match="^error: broken failed; .*gpu_check.json has the reasons$"):
    gpu_check.main([f"--out={tmp_path}"])
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]["broken"]["status"] == "failed"


def test_a_run_that_is_cut_off_leaves_the_parts_before_and_the_name_of_the_one_under_way(check):
  def cut_off(check, result):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    gpu_check.run_parts(check, [("one", lambda check, result: result.update(figure=2)), ("two", cut_off)])
  parts = written(check)
  assert (parts["one"]["status"], parts["one"]["figure"], parts["two"]["status"]) == ("done", 2, "running")
  assert list(check.out.glob("*.tmp")) == []


def test_a_part_is_skipped_when_the_time_is_used_up(check):
  def slow(check, result):
    check.began -= 2 * 60 * check.minutes

  gpu_check.run_parts(check, [("slow", slow), ("late", lambda check, result: pytest.fail("it ran"))])
  parts = written(check)
  assert parts["slow"]["status"] == "done"
  assert parts["late"] == {"status": "skipped", "reason": "the 60 minutes are used up; give more --minutes"}


def test_training_leaves_time_to_the_other_parts(check, monkeypatch):
  def measured_until_half_is_used_up(check, setting):
    check.began = time.monotonic() - 0.6 * 60 * check.minutes
    return {"images_per_second": 1.0}

  monkeypatch.setattr(gpu_check, "train_row", measured_until_half_is_used_up)
  gpu_check.train(check, check.parts.setdefault("train", {}))
  first, *rest = written(check)["train"]["rows"]
  assert first["images_per_second"] == 1.0
  assert rest
  assert all(row["skipped"].startswith("50% of the 60 minutes are used up") for row in rest)


def test_the_most_worthy_settings_come_first(check):
  check.sizes = gpu_check.FULL
  settings = gpu_check.train_settings(check)
  assert settings[:2] == [f"dtype=bfloat16,attention=auto,remat=auto,batch_size={batch}" for batch in (256, 64)]
  assert settings[2] == "dtype=float32,attention=auto,remat=auto,batch_size=256"
  assert len(settings) == len(set(settings)) == 4 + 2 * 3 * 2  # batches x remat x (xla, einsum)


def test_a_step_that_fails_on_the_device_does_not_spoil_the_next_one(check, monkeypatch):
  def prepare(what, setting):
    def call():
      if "batch_size=16" in setting:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")
      return jnp.zeros(1)

    if "float32" in setting:
      raise ValueError("it needs 90 GiB")
    return timing.Program(what, setting, call, 1.0, 1, 8, 1, 1, "")

  monkeypatch.setattr(check, "prepare", prepare)
  states = check.states
  result = {}
  gpu_check.train(check, result)
  chosen, exhausted, float32, *grid = result["rows"]
  assert chosen["images_per_second"] > 0
  assert exhausted["error"] == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"
  assert check.states is not states, "the failed step may have deleted its state, which was donated"
  assert float32["error"] == "ValueError: it needs 90 GiB"
  assert all(row["images_per_second"] > 0 for row in grid)
  assert list(check.compiled) == [row["setting"] for row in grid]


def test_wrong_arguments_are_rejected_in_one_line(tmp_path, capsys):
  (tmp_path / "file").touch()
  for arguments, message in (
    (["--parts=golden,fast"], "--parts has 'fast'; use some of device,golden,"),
    (["--minutes=0"], "--minutes=0 must be positive"),
    (["--minutes=nan"], "--minutes=nan must be positive"),
    ([f"--out={tmp_path / 'file'}"], "file cannot be made .File exists.; give a folder"),
  ):
    with pytest.raises(SystemExit) as end:
      gpu_check.main([f"--out={tmp_path / 'out'}", *arguments])
    assert end.value.code == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
