"""A changed checkpoint never gives wrong numbers: it restores what was saved, or it is set aside."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import small_runs
from flows import new_state
from jet_jax import evaluate, train
from jet_jax.devices import sharding
from jet_jax.jet import Jet
from jet_jax.training.step import TrainState
from jet_jax.workdir import fingerprint, verify
from jet_jax.workdir.checkpoint import Checkpoints

MESH = sharding.make_mesh()


def make_state(step, width=8, couplings=2, block_depth=1):
  model = Jet(couplings=couplings, block_depth=block_depth, width=width, heads=2, patch_size=2)
  state = new_state(jax.random.key(step), model, optax.adam(1e-3, mu_dtype="bfloat16"), (4, 4, 2), True)
  return state.replace(step=jnp.int32(step))


def few_arrays(step):
  """A state of a few arrays, which is quick to restore."""
  rng = np.random.default_rng(step)
  params = {
    name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in (("a", (64, 32)), ("b", (5,)))
  }
  moments = jax.tree.map(lambda x: (x * x).astype(jnp.bfloat16), params)
  count = jnp.int32(step)
  return TrainState(count, count, count, params, {"table": jnp.arange(100) * step}, moments, params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A work directory with checkpoints 1 and 2, and the fingerprints of each."""
  workdir = tmp_path_factory.mktemp("saved")
  states = {step: few_arrays(step) for step in (1, 2)}
  with Checkpoints(workdir, keep=2) as checkpoints:
    for state in states.values():
      checkpoints.save(state.items())
  return workdir, {step: fingerprint.fingerprints(state) for step, state in states.items()}


@pytest.fixture
def restore(saved, tmp_path, capsys):
  """Makes a function that changes a copy of a file of checkpoint 2, restores the newest good one and tells the outcome.

  "harmless": what was saved is there all the same. "detected": checkpoint 2 was set aside, with a word, and 1 is used.
  """
  workdir, saved_prints = saved

  def after(change, name) -> str:
    copy = tmp_path / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workdir, copy)
    change(copy / "checkpoints" / "2" / name)
    with Checkpoints(copy, keep=2) as checkpoints:
      items = checkpoints.restore_latest(sharding.place_like(few_arrays(0), MESH).items())
    assert items is not None
    state = TrainState.from_items(items)
    said = capsys.readouterr().out
    assert fingerprint.fingerprints(state) == saved_prints[int(state.step)]
    if int(state.step) == 2:
      assert not said
      return "harmless"
    assert "checkpoints/2" in said
    assert not (copy / "checkpoints" / "2").exists()
    if "is damaged" in said:
      assert (copy / "damaged" / "2").is_dir()
    else:
      assert name == "commit_success.txt"  # without which a step was never finished
    return "detected"

  return after


def files_of(step):
  return sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())


def flip(position, bit):
  """A function that flips one bit of a file, at a share of its length."""

  def change(path):
    content = bytearray(path.read_bytes())
    if content:
      content[int(position * len(content))] ^= 1 << bit
      path.write_bytes(content)

  return change


def garble(path):
  """Changes a bit of every fourth byte, so that no number is what it was."""
  content = np.frombuffer(path.read_bytes(), np.uint8).copy()
  content[::4] ^= 1
  path.write_bytes(content.tobytes())


def truncate(share):
  return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def largest(step, item):
  """The file with most of an item's numbers."""
  names = [name for name in files_of(step) if name.startswith(f"{item}/") and "/d/" in name]
  return max(names, key=lambda name: (step / name).stat().st_size)


@pytest.mark.fault(8, 9, 10)
@pytest.mark.process
def test_every_file_flipped_truncated_and_deleted_is_detected_or_harmless(saved, restore, record_property):
  rng = np.random.default_rng(0)
  step = saved[0] / "checkpoints" / "2"
  names = files_of(step)
  assert len(names) > 20
  outcomes = {}
  for name in names:
    changes = flip(rng.random(), rng.integers(8)), truncate(0.5), pathlib.Path.unlink
    outcomes[name] = [restore(change, name) for change in changes]
  record_property("flips", len(names))
  assert outcomes["digests/metadata"] == ["detected"] * 3
  for name in (largest(step, "model"), largest(step, "training")):
    assert outcomes[name][1:] == ["detected"] * 2, name


@pytest.mark.slow
@pytest.mark.fault(8, 9, 10)
def test_every_file_flipped_and_truncated_in_many_places_is_detected_or_harmless(saved, restore, record_property):
  rng = np.random.default_rng(1)
  names, detected = files_of(saved[0] / "checkpoints" / "2"), 0
  for name in names:
    for position in np.linspace(0, 0.999, 8):
      detected += restore(flip(position, rng.integers(8)), name) == "detected"
    for share in (0, 0.1, 0.9, 0.999):
      restore(truncate(share), name)
  record_property("flips", 8 * len(names))
  assert detected > len(names)


@pytest.mark.fault(9)
def test_orbax_alone_restores_a_flipped_weight_as_a_wrong_number(saved, tmp_path, record_property):
  """The control: without the digests it would go unnoticed."""
  workdir, _ = saved
  state = sharding.place_like(few_arrays(0), MESH)
  like = {"params": state.params, "permutations": state.permutations, "ema": state.ema}
  step, wrong = workdir / "checkpoints" / "2", 0
  for position in np.linspace(0.1, 0.9, 9):
    copy = tmp_path / str(position)
    shutil.copytree(step, copy)
    flip(position, 1)(copy / largest(step, "model"))
    try:
      restored = ocp.StandardCheckpointer().restore(copy / "model", like)
    except ValueError:
      continue  # it met its own tables, which have checksums
    wrong += not np.array_equal(restored["ema"]["a"], few_arrays(2).ema["a"])
    wrong += not np.array_equal(restored["params"]["a"], few_arrays(2).params["a"])
  record_property("flips", 9)
  assert wrong


@pytest.mark.fault(8)
def test_no_good_checkpoint_at_all_is_an_error_and_not_a_fresh_start(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "run")
  step = tmp_path / "run" / "checkpoints"
  for number in (1, 2):
    truncate(0.5)(step / str(number) / largest(step / str(number), "model"))
  for _ in range(2):  # nor is it one the next time
    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
      with pytest.raises(
        ValueError, match=r"no checkpoint can be used.*checkpoints/2 is damaged.*checkpoints/1 is damaged"
      ):
        checkpoints.restore_latest(sharding.place_like(few_arrays(0), MESH).items())
      assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
  "trouble",
  [
    OSError(5, "Input/output error"),
    OSError(116, "Stale file handle"),
    MemoryError(),
    ValueError("INTERNAL: CUDA error"),
  ],
)
def test_an_error_of_the_system_marks_no_checkpoint_as_damaged(saved, tmp_path, monkeypatch, trouble):
  shutil.copytree(saved[0], tmp_path / "run")

  def restore(*arguments, **settings):
    raise trouble

  with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    with pytest.raises(type(trouble)):
      checkpoints.restore_latest(sharding.place_like(few_arrays(0), MESH).items())
    assert checkpoints.steps() == [1, 2]


def test_a_list_of_digests_that_was_changed_is_noticed_by_its_own_digest(saved, restore):
  def change(path):
    written = json.loads(path.read_text())
    written["arrays"]["model/params/a"]["digest"] = "0" * 16
    path.write_text(json.dumps(written))

  assert restore(change, "digests/metadata") == "detected"
  with pytest.raises(ValueError, match="does not have its own digest"):
    fingerprint.from_json({"arrays": {}, "notes": {}, "sha256": "0"})


def test_a_step_that_is_set_aside_again_has_a_place_of_its_own(saved, tmp_path):
  workdir, names = tmp_path / "run", []
  for taken in ([], ["2"], ["2.1", "20"], ["2"]):
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(saved[0], workdir)
    for name in taken:
      (workdir / "damaged" / name / "x").mkdir(parents=True)
    with Checkpoints(workdir, keep=2) as checkpoints:
      names.append(verify.set_aside(checkpoints.directory / "2").name)
  assert names == ["2", "2.1", "2", "2.1"]


@pytest.mark.fault(8)
@pytest.mark.process
def test_training_goes_on_from_the_step_before_and_evaluation_uses_it(tiny_config, tmp_path, capsys):
  config = tiny_config(total_steps=6, checkpoint_steps=2, checkpoint_keep=3)
  whole = train.train(train.prepare(config, tmp_path))
  step = tmp_path / "checkpoints" / "6"
  before = (tmp_path / "metrics.jsonl").read_text()
  garble(step / largest(step, "model"))
  evaluate.main([f"--workdir={tmp_path}"])
  printed = capsys.readouterr()
  assert '"step": 4' in printed.out.splitlines()[-1]
  assert "checkpoints/6 is damaged" in printed.err
  assert step.exists()  # reading moves nothing
  with pytest.raises(SystemExit, match="checkpoints/6 is damaged"):
    evaluate.main([f"--workdir={tmp_path}", "--step=6"])
  again = train.train(train.prepare(config, tmp_path))
  assert "resuming from step 4" in capsys.readouterr().out
  assert fingerprint.fingerprints(again) == fingerprint.fingerprints(whole)
  assert (tmp_path / "metrics.jsonl").read_text().count("\n") == before.count("\n")


@pytest.mark.fault(11)
@pytest.mark.parametrize(
  ("wanted", "key"),
  [({"width": 16}, "model.width"), ({"couplings": 3}, "model.couplings"), ({"block_depth": 2}, "model.block_depth")],
)
def test_a_checkpoint_of_another_flow_is_refused_by_name_and_stays(tmp_path, wanted, key):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(make_state(2).items())
    checkpoints.wait()
    with pytest.raises(ValueError, match=rf"checkpoints/2 has .*this run needs .*{key} above all") as error:
      checkpoints.restore_latest(sharding.place_like(make_state(0, **wanted), MESH).items())
    assert "model/params/couplings/" in str(error.value)
    assert checkpoints.latest_step() == 2


@pytest.mark.fault(9)
def test_a_digest_depends_on_every_bit_and_on_the_place_of_every_number():
  array = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 7)), jnp.float32)

  def digest(x):
    return fingerprint.fingerprints({"x": jnp.asarray(x)})["x"].digest

  seen = {digest(array)}
  words = np.asarray(array).view(np.uint32)
  for bit in range(23):  # of the mantissa: it stays finite
    changed = words.copy()
    changed[1, 2, 3] ^= 1 << bit
    seen.add(digest(changed.view(np.float32)))
  swapped = np.asarray(array).copy()
  swapped[0, 0, 0], swapped[2, 4, 6] = swapped[2, 4, 6], swapped[0, 0, 0]
  seen |= {digest(swapped), digest(-array), digest(array.reshape(5, 3, 7).astype(jnp.bfloat16)), digest(array * 0)}
  assert len(seen) == 1 + 23 + 4


@pytest.mark.fault(9)
@pytest.mark.slow
@pytest.mark.parametrize("change", [garble, truncate(0.5)], ids=["garbled", "truncated"])
def test_processes_agree_that_a_checkpoint_is_damaged(tmp_path, cache, change):
  settings = {"total_steps": 15, "eval_steps": 0, "sample_steps": 0, "checkpoint_steps": 5, "mesh.fsdp": 2, "width": 32}
  small_runs.finish_all(small_runs.start_several(tmp_path, cache, 2, **settings))
  whole = small_runs.digests(tmp_path, 15)
  step = tmp_path / "checkpoints" / "15"
  # What the second process has written.
  names = [name for name in files_of(step) if name.startswith("model/ocdbt.process_1/d/")]
  change(step / max(names, key=lambda name: (step / name).stat().st_size))
  said = small_runs.finish_all(small_runs.start_several(tmp_path, cache, 2, **settings), timeout=100)
  assert "checkpoints/15 is damaged" in said[0]
  assert "resuming from step 10" in said[0]
  assert small_runs.digests(tmp_path, 15) == whole
