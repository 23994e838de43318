"""A run that starts from another one starts with its flow, on its own images, and nothing else of it."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_runs
from configs.digits import get_config
from flows import randomize
from jet_jax import config as config_lib
from jet_jax import likelihood
from jet_jax.devices import sharding
from jet_jax.flow import splits
from jet_jax.jet import Jet
from jet_jax.train import Run, prepare, train
from jet_jax.training import fitted_front, transfer
from jet_jax.workdir.checkpoint import identity, saved_steps
from jet_jax.workdir.trained import load_run
from tools import import_big_vision


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """Makes a config of a second, on smooth random images of 8x8, or of another `size`."""
  folder = tmp_path_factory.mktemp("images")

  def make(size=8, **settings):
    path = folder / f"{size}.npz"
    if not path.exists():
      rng = np.random.default_rng(0)
      pixels = rng.integers(64, 192, (24, 1, 1, 3)) + rng.integers(0, 8, (24, size, size, 3))
      np.savez(path, train_images=pixels[:16].astype(np.uint8), validation_images=pixels[16:].astype(np.uint8))
    shrunk = {
      "data.source": f"npz:{path}", "levels": 256, "front": "none", "optimizer": "adam",
      "coupling_transform": "affine", "couplings": 5, "block_depth": 1, "width": 8, "heads": 2,
      "kinds": ("channels", "spatial"), "batch_size": 8, "total_steps": 4, "lr": 1e-2, "warmup_steps": 1, "wd": 2e-5,
      "log_steps": 1, "eval_steps": 2, "sample_steps": 0, "checkpoint_steps": 2,
    }  # fmt: skip
    return config_lib.override(get_config(), shrunk | settings)

  return make


@pytest.fixture(scope="module")
def make_source(tmp_path_factory, small):
  """Makes the work directory of a short run; once for the same settings."""
  done = {}

  def make(**settings):
    if (name := str(settings)) not in done:
      done[name] = tmp_path_factory.mktemp("source") / "run"
      train(prepare(small(**settings), done[name]))
    return done[name]

  return make


def begin(config, workdir):
  """The state that a run begins with."""
  job = prepare(config, workdir)
  fit = functools.partial(fitted_front, job.run.model, job.run.config.levels, job.training)
  return job.run, transfer.start(job.run, job.workdir, fit)


def assert_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("weights", ["params", "ema"])
def test_parameters_and_permutations_are_taken_and_nothing_else(weights, make_source, small, tmp_path):
  source = make_source(ema_decay=0.5)
  settings = {"seed": 7, "init_from": str(source), "init_ema": weights == "ema", "ema_decay": 0.9}
  run, state = begin(small(**settings), tmp_path / "run")
  there = {name: load_run(source, weights=name).variables for name in ("params", "ema")}
  assert_equal(state.params, there[weights]["params"])
  assert_equal(state.permutations, there[weights]["permutations"])
  assert_equal(state.ema, state.params)
  assert_equal(state.opt_state, run.optimizer.init(state.params))
  assert int(state.step) == 0
  other = next(name for name in there if name != weights)
  differ = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, there[other]["params"])
  assert any(jax.tree.leaves(differ)), "the test would not see a mix-up"


def test_frozen_parts_stay_what_they_were_in_the_source(make_source, small, tmp_path):
  source = make_source()
  state = train(prepare(small(init_from=str(source), part_rates=("block=0",)), tmp_path / "run"))
  there, here = (variables["couplings"]["vit"] for variables in (load_run(source).variables["params"], state.params))
  for name in there:
    same = jax.tree.map(np.array_equal, there[name], here[name])
    assert all(jax.tree.leaves(same)) == name.startswith("block"), name


def test_its_first_step_has_the_loss_of_the_source(make_source, small, tmp_path):
  """With the same seed it sees the batch and noise of the source's first step, and knows more than that did."""
  source = make_source()
  train(prepare(small(init_from=str(source)), tmp_path / "run"))
  fresh, after = (
    json.loads((path / "metrics.jsonl").read_text().splitlines()[0]) for path in (source, tmp_path / "run")
  )
  assert after["train/bits_per_dim"] < fresh["train/bits_per_dim"] - 0.1
  trained = load_run(source)
  config = trained.config
  batch = prepare(config, source).batches[0]
  _, noise_key = jax.random.split(jax.random.key(config.seed))
  keys = likelihood.example_keys(jax.random.fold_in(noise_key, 0), jnp.arange(config.batch_size))
  bits = likelihood.bits_of_images(trained.model, trained.variables, batch["image"], keys, config.levels)
  np.testing.assert_allclose(after["train/bits_per_dim"], bits.mean(), rtol=1e-5)


def test_what_was_taken_is_on_record(make_source, small, tmp_path):
  source = make_source()
  run, _ = begin(small(init_from=f"{source}@2"), tmp_path / "run")
  record = json.loads((tmp_path / "run" / "init_from.json").read_text())
  assert record == {
    "source": str(source), "step": 2, "weights": "params", "sha256": identity(source, 2), "changed": [],
  }  # fmt: skip
  assert identity(source, 2) != identity(source, 4)
  assert config_lib.load(tmp_path / "run").init_from == run.config.init_from == f"{source}@2"


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"width": 16}, ["model.width=8 there and 16 here", "couplings/vit/embed/kernel (5, 6, 8) there and (5, 6, 16)"]),
    ({"block_depth": 2}, ["couplings/vit/block1_mlp/up/kernel missing there and (5, 8, 32) here"]),
    ({"couplings": 4}, ["model.couplings=5 there and 4 here"]),
    ({"kinds": ("channels",)}, ["model.kinds=('channels', 'spatial', "]),
    ({"spatial": ("hstripes",)}, ["model.spatial=('checkerboard', 'checkerboard-inv') there and ('hstripes', "]),
    ({"scale_bound": 3.0}, ["model.scale_bound=2.0 there and 3.0 here; set the values of the source"]),
    ({"layers": ("actnorm",)}, ["model.layers=() there and ('actnorm',) here", "actnorm/bias missing there"]),
    ({"scale_floor": 0.1}, ["model.scale_floor=0.0 there and 0.1 here"]),
    ({"width": 16, "size": 16}, ["position_embedding (5, 16, 8) there and (5, 16, 16) here"]),
    ({"data.source": "digits", "data.size": 0, "patch_size": 2, "levels": 17}, ["channels=3 there and 1 here"]),
    ({"init_ema": True}, ["no averaged weights"]),
    ({"coupling_transform": "additive"}, ["model.coupling_transform='affine' there and 'additive' here"]),
    ({"coupling_transform": "mixture"}, ["head/kernel (5, 8, 12) there and (5, 8, 156) here"]),
    ({"masking": True}, ["model.masking=False there and True here", "coupling/hidden missing there and (5, 12) here"]),
    ({"kinds": ("channels",), "resolutions": 2}, ["model.resolutions=1 there and 2 here"]),
    ({"dequantizer_couplings": 1}, ["model.dequantizer_couplings=0 there and 1 here", "dequantizer/couplings/"]),
  ],
)  # fmt: skip
def test_another_flow_is_refused_with_all_that_differs(settings, words, make_source, small, tmp_path):
  with pytest.raises(ValueError) as refusal:
    prepare(small(init_from=str(make_source()), **settings), tmp_path / "run")
  for word in words:
    assert word in str(refusal.value)
  assert not (tmp_path / "run").exists()


def test_the_same_splits_may_be_written_otherwise(make_source, small, tmp_path):
  kinds = ("channels", "spatial") * 2 + ("channels",)
  run = prepare(small(init_from=str(make_source()), kinds=kinds), tmp_path / "run").run
  assert run.config.init_from == f"{make_source()}@4"


@pytest.mark.parametrize("text", ["nowhere", "{source}@3", "{source}@best@4", "{source}/checkpoints"])
def test_a_source_that_is_not_there_is_refused(text, make_source, small, tmp_path):
  with pytest.raises(ValueError, match="no config.json|step 3 is not there"):
    prepare(small(init_from=text.format(source=make_source())), tmp_path / "run")


def test_the_best_step_can_be_asked_for_and_a_path_may_have_an_at(make_source, small, tmp_path, monkeypatch):
  source = tmp_path / "name@4"
  shutil.copytree(make_source(keep_best=True), source)
  best = json.loads((source / "checkpoints/4/digests/metadata").read_text())["notes"]["step"]
  monkeypatch.chdir(tmp_path)
  found = {
    text: prepare(small(init_from=f"{start}{text}"), tmp_path / "run").run.config.init_from
    for start, text in (("name@4", ""), (source, "@best"), ("x/../name@4", "@2"))
  }
  assert found == {"": f"{source}@4", "@best": f"{source}@{best}", "@2": f"{source}@2"}


@pytest.mark.slow
def test_a_run_needs_its_source_no_more_once_it_has_started(make_source, small, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(make_source(), source)
  config = lambda **more: small(**{"init_from": str(source), "total_steps": 2} | more)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Run, "is_due", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed in its first step
    with pytest.raises(KeyboardInterrupt):
      train(prepare(config(), tmp_path / "run"))
  assert saved_steps(tmp_path / "run") == [0]
  shutil.rmtree(source)
  (tmp_path / "run" / "config.json").unlink()  # the record knows better
  train(prepare(config(), tmp_path / "run"))
  straight = train(prepare(config(init_from=str(make_source())), tmp_path / "straight"))
  assert identity(tmp_path / "run", 2) == identity(tmp_path / "straight", 2)
  assert int(straight.step) == 2
  for wrong in ({"init_from": f"{source}@2"}, {"init_from": ""}, {"init_from": str(tmp_path)}, {"init_ema": True}):
    with pytest.raises(ValueError, match=f"holds a run that started from {source}@4, and this one has init_from="):
      prepare(config(**wrong), tmp_path / "run")


def test_a_run_from_scratch_cannot_get_a_source_later(make_source, small, tmp_path):
  train(prepare(small(total_steps=1), tmp_path / "run"))
  with pytest.raises(ValueError, match="holds a run that started from scratch, and this one has init_from="):
    prepare(small(init_from=str(make_source())), tmp_path / "run")


def test_a_start_that_was_never_saved_does_not_count_as_the_source_of_a_later_run(make_source, small, tmp_path):
  begin(small(init_from=str(make_source())), tmp_path / "run")  # and its first save failed
  for _ in ("from scratch", "resumed"):
    train(prepare(small(total_steps=1), tmp_path / "run"))


def test_a_source_that_moved_is_recognized_by_its_checkpoint(make_source, small, tmp_path):
  shutil.copytree(make_source(), tmp_path / "source")
  begin(small(init_from=str(tmp_path / "source")), tmp_path / "run")
  small_runs.pretend_saved(tmp_path / "run", 0)
  (tmp_path / "source").rename(tmp_path / "moved")
  moved = small(init_from=str(tmp_path / "moved"))
  assert prepare(moved, tmp_path / "run").run.config.init_from == f"{tmp_path}/source@4"
  (tmp_path / "moved/checkpoints/4/digests/metadata").write_text("{}")
  with pytest.raises(ValueError, match="holds a run that started from .*/source@4, and this one has init_from="):
    prepare(moved, tmp_path / "run")


def test_a_run_that_had_not_started_chooses_again(make_source, small, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(make_source(), source)
  config = lambda: small(init_from=str(source))
  assert prepare(config(), tmp_path / "run").run.config.init_from == f"{source}@4"  # and was killed in its compilation
  train(prepare(small(total_steps=6, checkpoint_keep=1), source))
  run, _ = begin(config(), tmp_path / "run")
  assert run.config.init_from == f"{source}@6"


def test_a_damaged_source_is_an_error_and_another_step_may_be_given(make_source, small, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(make_source(), source)
  for path in (source / "checkpoints/4/model").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match="checkpoints/4 is damaged"):
    begin(small(init_from=str(source)), tmp_path / "run")
  begin(small(init_from=f"{source}@2"), tmp_path / "run")


def test_imported_official_weights_are_a_start(small, tmp_path):
  model = Jet(couplings=5, block_depth=1, width=8, heads=2, patch_size=2, kinds=("channels", "spatial"))
  variables = model.init(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
  variables["params"] = randomize(variables["params"], jax.random.key(4))
  import_big_vision.export_npz(model, variables, (8, 8, 3), tmp_path / "official.npz")
  import_big_vision.main(f"--npz={tmp_path}/official.npz --image_shape=8,8,3 --workdir={tmp_path}/official".split())
  _, state = begin(small(init_from=f"{tmp_path}/official"), tmp_path / "run")
  assert_equal(state.variables(), variables)


@pytest.mark.parametrize("size", [16, pytest.param(4, marks=pytest.mark.slow)])
def test_another_grid_moves_the_splits_and_resamples_positions(size, make_source, small, tmp_path):
  source = make_source()
  trained = load_run(source)
  run, state = begin(small(init_from=str(source), size=size), tmp_path / "run")
  like = run.model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, state.variables())

  grid = (size // 2, size // 2)
  there, here = (jax.tree.map(np.asarray, of["permutations"]) for of in (trained.variables, state.variables()))
  for name in ("channels", "spatial"):
    np.testing.assert_array_equal(there[name], here[name])
  assert list(here["spatial"]) == [kind == "spatial" for kind in ["channels", "spatial"] * 2 + ["channels"]]
  for old, new, is_spatial in zip(there["tokens"], here["tokens"], here["spatial"], strict=True):
    if is_spatial:
      (name,) = splits.patterns_of(old, (4, 4))
      assert name in splits.patterns_of(new, grid)
    else:
      np.testing.assert_array_equal(new, np.arange(new.size))

  before, after = (params["couplings"]["vit"] for params in (trained.variables["params"], state.params))
  assert_equal({**before, "position_embedding": 0}, {**after, "position_embedding": 0})
  images = jax.random.randint(jax.random.key(0), (2, size, size, 3), 0, 256).astype("uint8")
  x = likelihood.dequantize(images, jax.random.split(jax.random.key(1), 2))
  z, logdet = run.model.apply(state.variables(), x)
  back, logdet_back = run.model.apply(state.variables(), z, method="inverse")
  np.testing.assert_allclose(back, x, atol=1e-4)  # float32, scales down to 0.1 in five couplings
  np.testing.assert_allclose(logdet, -logdet_back, rtol=1e-5)
  assert [line.split()[0] for line in json.loads((tmp_path / "run" / transfer.RECORD).read_text())["changed"]] == [
    "params/couplings/vit/position_embedding", "permutations/tokens",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("settings", "there", "here"),
  [
    ({"resolutions": 2}, (8, 8), (16, 16)),
    ({"resolutions": 2, "masking": True}, (16, 8), (8, 16)),
    ({"dequantizer_couplings": 2}, (8, 8), (4, 8)),
    ({"resolutions": 2, "masking": True, "predictor": "cnn", "dequantizer_couplings": 1}, (8, 8), (16, 16)),
    ({"classes": 3}, (8, 8), (16, 16)),
    ({"completes": True, "masking": True, "classes": 2}, (8, 8), (16, 8)),
    ({"noise": (0.1, 0.2)}, (8, 8), (4, 8)),
  ],
  ids=str,
)
def test_every_part_of_a_flow_moves_to_another_grid(tiny_flow, settings, there, here):
  model, variables = tiny_flow((*there, 2), kinds=("channels", "spatial"), **settings)
  moved, changed = transfer.move(variables, model, (*there, 2), (*here, 2))
  like = model.abstract_variables((*here, 2))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), moved) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
  images = np.random.default_rng(0).integers(0, 256, (2, *here, 2), np.uint8)

  @jax.jit
  def round_trip(images):
    keys = jax.random.split(jax.random.key(1), 2)
    x, log_q = likelihood.dequantize_by(model, moved, images, keys, 256)
    z, logdet = model.apply(moved, x)
    return x, z, log_q, logdet, *model.apply(moved, z, method="inverse")

  x, z, log_q, logdet, back, logdet_back = round_trip(images)
  np.testing.assert_allclose(back, x, atol=1e-4)  # float32, as for one resolution
  np.testing.assert_allclose(logdet, -logdet_back, rtol=1e-5)
  assert jnp.isfinite(log_q).all()
  assert jnp.abs(z - x).max() > 0.1
  positions = [line for line in changed if "position_embedding" in line]
  assert len(positions) == (0 if settings.get("predictor") == "cnn" else model.resolutions)
  assert ("dequantizer moved as well" in changed) == ("dequantizer_couplings" in settings)


def test_a_run_with_a_cnn_and_learned_noise_starts_on_images_of_another_size(small, tmp_path):
  """The positions of the dequantizer, which is a ViT, are resampled; those of a predictor of the user's own are not."""
  settings = {"predictor": "cnn", "masking": True, "dequantizer_couplings": 1, "heads": 2}
  source, config = small(**settings), small(size=16, init_from="source", **settings)
  source.image_shape, config.image_shape = (8, 8, 3), (16, 16, 3)
  transfer._check(config, source)


def test_a_front_is_taken_along_or_fitted_to_the_new_images(make_source, small, tmp_path):
  source = make_source(front="stationary")
  there = load_run(source).variables["permutations"]["front"]
  start = functools.partial(small, front="stationary", init_from=str(source))
  other = tmp_path / "other.npz"
  images = np.random.default_rng(1).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
  np.savez(other, train_images=images, validation_images=images)
  new_images = {"data.source": f"npz:{other}"}
  _, state = begin(start(**new_images), tmp_path / "taken")
  assert_equal(state.permutations["front"], there)
  for name, settings in (("own", new_images | {"init_front": False}), ("larger", {"size": 16})):
    run, state = begin(start(**settings), tmp_path / name)
    record = json.loads((tmp_path / name / "init_from.json").read_text())
    assert "permutations/front fitted to the new images" in record["changed"]
    training = prepare(start(**settings), tmp_path / name).training
    expected = fitted_front(run.model, 256, training)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), state.permutations["front"], expected)
    assert state.permutations["front"]["log_scale"].shape[0] == run.config.image_shape[0] ** 2
  with pytest.raises(ValueError, match="model.front='stationary' there and 'none' here"):
    prepare(small(init_from=str(source)), tmp_path / "plain")


def test_positions_are_interpolated_along_rows_and_columns():
  """A linear function stays linear on a finer grid and keeps its mean; a coarser grid has averages."""
  row, column = np.indices((4, 6))
  position = np.stack([row, column, np.full_like(row, 5)], -1).reshape(1, 24, 3).astype(np.float32)
  fine = np.asarray(transfer._resample(position, (4, 6), (8, 12))).reshape(8, 12, 3)
  np.testing.assert_allclose(fine[1:-1, 3, 0], (np.arange(1, 7) + 0.5) / 2 - 0.5, atol=1e-6)
  np.testing.assert_allclose(fine[3, 1:-1, 1], (np.arange(1, 11) + 0.5) / 2 - 0.5, atol=1e-6)
  np.testing.assert_allclose(fine[..., 2], 5, atol=1e-6)
  coarse = np.asarray(transfer._resample(position, (4, 6), (2, 3))).reshape(2, 3, 3)
  np.testing.assert_allclose(coarse.mean((0, 1)), [1.5, 2.5, 5], atol=1e-5)
  rows = np.where(np.isin(np.arange(8) % 4, (1, 2)), 1, -1).astype(np.float32)
  averages = np.asarray(transfer._resample(rows.repeat(4).reshape(1, 32, 1), (8, 4), (2, 1)))
  assert np.abs(averages).max() < 0.2, "without averaging they would be 1"


def one_spatial(order):
  return splits.Splits(order[None], np.arange(4)[None], np.array([True]))


def test_a_split_without_a_name_cannot_be_moved():
  order = splits.spatial_order("checkerboard", (4, 4))
  order[[0, 1]] = order[[1, 0]]
  with pytest.raises(ValueError, match="the split of 4x4 patches by coupling 0 has no known pattern"):
    splits.move_splits(one_spatial(order), (4, 4), (8, 8))


def test_a_split_with_two_names_is_moved_only_where_they_mean_the_same():
  """On a grid one patch high vertical stripes are a checkerboard."""
  of_one = one_spatial(splits.spatial_order("vstripes", (1, 4)))
  with pytest.raises(ValueError, match="coupling 0 fits checkerboard and vstripes"):
    splits.move_splits(of_one, (1, 4), (2, 4))
  moved = splits.move_splits(of_one, (1, 4), (1, 8))
  np.testing.assert_array_equal(moved.tokens[0], splits.spatial_order("vstripes", (1, 8)))


def test_the_state_lies_where_the_mesh_wants_it(make_source, small, tmp_path):
  run, state = begin(small(init_from=str(make_source())), tmp_path / "run")
  shardings = sharding.state(state, run.mesh)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, where: x.sharding == where, state, shardings)))
