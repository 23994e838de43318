"""A work directory is all that evaluation and sampling need, and holds what README says."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import jet_jax
from jet_jax import evaluate, likelihood, sample, train
from jet_jax.data import sources
from jet_jax.data.npz import NpzWriter
from jet_jax.devices import sharding
from jet_jax.sampling import sampler
from jet_jax.training import evaluator
from jet_jax.workdir import fingerprint, verify
from jet_jax.workdir.metrics import MetricLog
from jet_jax.workdir.trained import load_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  from configs.digits import get_config  # noqa: PLC0415

  path = tmp_path_factory.mktemp("run")
  config = get_config(
    "couplings=2,block_depth=1,width=8,heads=2,batch_size=16,total_steps=6,log_steps=2,eval_steps=3,"
    "sample_steps=3,sample_num=5,checkpoint_steps=3,ema_decay=0.5"
  )
  train.train(train.prepare(config, path))
  return path


def last_json(capsys):
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_leaves_what_the_readme_lists(workdir):
  assert json.loads((workdir / "config.json").read_text())["image_shape"] == [8, 8, 1]
  assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3", "6"}
  assert {path.name for path in (workdir / "samples").iterdir()} == {"3.png", "6.png"}
  assert list((workdir / "tensorboard").glob("events*"))
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "train/bits_per_dim" in line] == [1, 2, 4, 6]
  assert [line["step"] for line in lines if "val/bits_per_dim" in line] == [3, 6]
  assert {"train/grad_norm", "train/images_per_second"} <= lines[0].keys()


def test_evaluation_from_the_work_directory_repeats_the_figure_of_training(workdir, capsys):
  evaluate.main([f"--workdir={workdir}"])
  result = last_json(capsys)
  logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  assert result["bits_per_dim"] == logged["val/bits_per_dim"]
  assert (result["step"], result["num_images"], result["noise_samples"]) == (6, 200, 1)
  assert 0 < result["bits_per_dim_stderr"] < 0.1

  evaluate.main([f"--workdir={workdir}", "--step=3", "--split=train", "--noise_samples=3"])
  other = last_json(capsys)
  assert (other["step"], other["num_images"], other["noise_samples"]) == (3, 1597, 3)
  assert other["bits_per_dim"] != result["bits_per_dim"]


def test_evaluation_says_how_sure_it_is_and_what_it_measured(workdir, tmp_path, capsys):
  evaluate.main([f"--workdir={workdir}", "--noise_samples=3", f"--per_image={tmp_path}/bits.npz"])
  result, bits = last_json(capsys), np.load(tmp_path / "bits.npz")["bits_per_dim"]
  expected = scipy.stats.t.interval(0.95, 199, bits.mean(), scipy.stats.sem(bits))
  np.testing.assert_allclose(result["bits_per_dim_interval"], expected, rtol=1e-12)
  assert result["bits_per_dim"] - np.log2(3) / 64 < result["iw_bits_per_dim"] < result["bits_per_dim"]
  assert result["iw_bits_per_dim_interval"][0] < result["iw_bits_per_dim"] < result["iw_bits_per_dim_interval"][1]
  recorded = json.loads((workdir / "data.json").read_text())
  assert result["data"] == recorded["splits"]["validation"] | {
    "source": "digits", "release": None, "origin": "every ninth digit",
  }  # fmt: skip
  known = {"noise_seed": likelihood.NOISE_SEED, "levels": 17, "image_shape": [8, 8, 1], "device_batch": 16}
  assert {name: result[name] for name in known} == known

  saved = verify.read_record(workdir / "checkpoints" / "6")[0]
  kinds = {"ema": "model/ema/", "params": "model/params/"}
  digests = {
    kind: fingerprint.identity({
      name.replace(prefix, "params/").removeprefix("model/"): known
      for name, known in saved.items()
      if name.startswith((prefix, "model/permutations/"))
    })
    for kind, prefix in kinds.items()
  }  # fmt: skip
  assert (result["weights"], result["weights_sha256"]) == ("ema", digests["ema"])
  assert digests["ema"] != digests["params"]

  flow, images = (
    jet_jax.load(workdir),
    np.stack([one["image"] for one in sources.open_source("digits", 0, 17, "validation")]),
  )
  python = [flow.bits_per_dim(images, 3).mean(), flow.iw_bits_per_dim(images, 3).mean()]
  np.testing.assert_allclose(python, [result["bits_per_dim"], result["iw_bits_per_dim"]], rtol=1e-6)


@pytest.mark.fault(21)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_counted_told_and_never_averaged_away(
  workdir, tmp_path, monkeypatch, capsys, value
):
  def program(*_):
    return lambda variables, images, index, key, labels: np.where(np.isin(index, (3, 199)), value, 1.0)

  def refuse(token):
    raise AssertionError(f"{token} is no JSON")

  monkeypatch.setattr(evaluator, "eval_program", program)
  evaluate.main([f"--workdir={workdir}", "--noise_samples=2"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
  assert (result["bits_per_dim"], result["bits_per_dim_stderr"], result["num_nonfinite"]) == (None, None, 2)
  assert (result["bits_per_dim_interval"], result["iw_bits_per_dim"]) == ([None, None], None)

  config, model, variables, _, mesh = load_run(workdir)
  source = sources.open_source("digits", 0, 17, "validation")
  with MetricLog(tmp_path, config, start=0, total=3) as log:
    log.validation(3, evaluate.Evaluator(model, 17, source, 16, mesh)(variables))
  assert "2 of them NaN or infinite" in capsys.readouterr().out
  logged = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  assert (logged["val/bits_per_dim"], logged["val/num_nonfinite"]) == (None, 2)


def test_the_standard_error_of_one_image_is_unknown(workdir, tmp_path, capsys):
  config, model, variables, _, mesh = load_run(workdir)
  result = evaluate.Evaluator(model, 17, [sources.open_source("digits", 0, 17, "validation")[0]], 16, mesh)(variables)
  assert np.isnan(result["bits_per_dim_stderr"])
  with MetricLog(tmp_path, config, start=0, total=3) as log:
    log.validation(3, result)
  assert "± unknown bits/dim  1 images" in capsys.readouterr().out
  assert json.loads((tmp_path / "metrics.jsonl").read_text())["val/bits_per_dim_stderr"] is None


def test_the_figure_does_not_depend_on_the_batch_size(workdir):
  _, model, variables, _, mesh = load_run(workdir)
  source = sources.open_source("digits", 0, 17, "validation")
  figures = [evaluate.Evaluator(model, 17, source, size, mesh)(variables)["bits_per_dim"] for size in (1, 7, 64, 500)]
  fixed = [evaluate.Evaluator(model, 17, source, size, mesh, device_batch=64) for size in (1, 500)]
  assert [evaluator.batch_size for evaluator in fixed] == [64, 64]
  assert [evaluator(variables)["bits_per_dim"] for evaluator in fixed] == [figures[2]] * 2  # to the last digit
  # The same noise for each image; matrix products of another height may round differently in float32.
  np.testing.assert_allclose(figures, figures[0], rtol=1e-6)
  # Another noise moves it by about its standard error over 200 images, a thousand times more.
  assert abs(evaluate.Evaluator(model, 17, source, 64, mesh)(variables, 2)["bits_per_dim"] - figures[0]) > 1e-4


def test_sampling_writes_a_grid_and_an_array(workdir, tmp_path, capsys):
  out, npz = tmp_path / "new" / "grid.png", tmp_path / "images.npz"
  sample.main([f"--workdir={workdir}", "--num=5", f"--out={out}", f"--npz={npz}"])
  assert last_json(capsys)["step"] == 6
  images = np.load(npz)["images"]
  assert images.shape == (5, 8, 8, 1)
  assert images.dtype == np.uint8
  assert images.max() <= 16
  grid = np.asarray(Image.open(out))
  assert grid.shape == (2 * 50 + 2, 3 * 50 + 2, 3)  # 8 pixels, six times enlarged, and gaps of 2
  np.testing.assert_array_equal(grid[2:50:6, 52:100:6, 0], np.round(images[1, ..., 0] * (255 / 16)))


def test_a_folder_gets_a_file_of_each_image_and_no_others_among_them(workdir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sampler, "CHUNK", 4)
  out, npz = tmp_path / "new", tmp_path / "images.npz"
  command = [f"--workdir={workdir}", "--num=6", f"--npz={npz}"]
  for place in (f"{out}/", out):  # to be made, then there
    sample.main([*command, f"--out={place}"])
    assert last_json(capsys)["out"] == str(out)
  assert sorted(path.name for path in out.iterdir()) == [f"0000{i}.png" for i in range(6)]
  files = [np.asarray(Image.open(out / f"0000{i}.png")) for i in range(6)]
  np.testing.assert_array_equal(files, np.round(np.load(npz)["images"][..., 0] * (255 / 16)))
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(out / "000006.png")
  with pytest.raises(SystemExit, match=r"error: .*new has other PNG files, such as 000006\.png; remove them, or"):
    sample.main([*command, f"--out={out}"])
  (out / "000006.png").unlink()
  with pytest.raises(SystemExit, match=r"such as 00005\.png"):  # of an earlier and longer draw
    sample.main([f"--workdir={workdir}", "--num=5", f"--out={out}"])


def test_a_row_of_the_grid_is_a_temperature_and_a_column_a_latent(workdir, tmp_path, capsys):
  out, npz = tmp_path / "grid.png", tmp_path / "images.npz"
  draw = [f"--workdir={workdir}", f"--out={out}", f"--npz={npz}", "--num=3"]
  sample.main([*draw, "--temperature=0.5,1,2"])
  assert last_json(capsys)["temperatures"] == [0.5, 1, 2]
  images, grid = np.load(npz)["images"], np.asarray(Image.open(out))
  assert grid.shape == (3 * 50 + 2, 3 * 50 + 2, 3)
  cells = grid[2:, 2:, 0].reshape(3, 50, 3, 50)[:, :48:6, :, :48:6].transpose(0, 2, 1, 3)  # six times enlarged
  np.testing.assert_array_equal(cells.reshape(9, 8, 8), np.round(images[..., 0] * (255 / 16)))
  for row, temperature in enumerate(("0.5", "1", "2")):
    sample.main([*draw, f"--temperature={temperature}"])
    np.testing.assert_array_equal(np.load(npz)["images"], images[3 * row : 3 * row + 3])
  assert np.mean(images[:3] == images[6:]) < 0.9


@pytest.mark.fault(22)
def test_samples_that_are_not_finite_are_counted_and_told(workdir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sampler, "CHUNK", 4)
  command = [f"--workdir={workdir}", "--num=6", f"--out={tmp_path}/a.png"]
  sample.main(command)
  output = capsys.readouterr()
  assert json.loads(output.out.splitlines()[-1])["num_nonfinite"] == 0
  assert "warning" not in output.err
  monkeypatch.setattr(
    likelihood,
    "sample_prior",
    lambda keys, shape, *_: jax.vmap(
      lambda key: jax.random.normal(key, shape) * jnp.where(jax.random.bits(key) % 2, jnp.nan, 1)
    )(keys),
  )
  bad = [int(jax.random.bits(jax.random.fold_in(jax.random.key(0), i)) % 2) for i in range(6)]
  assert 0 < sum(bad) < 6
  sample.main(command)
  output = capsys.readouterr()
  assert json.loads(output.out.splitlines()[-1])["num_nonfinite"] == sum(bad)
  assert f"warning: {sum(bad)} of 6 images have NaN or infinite numbers" in output.err
  with pytest.warns(RuntimeWarning, match=f"{sum(bad)} of 6 images have NaN or infinite numbers, .*; lower the temp"):
    jet_jax.load(workdir).sample(6)


def test_no_image_and_no_draw_are_refused_in_python(workdir):
  flow = jet_jax.load(workdir)
  with pytest.raises(ValueError, match="num=0 must be at least 1"):
    flow.sample(0)
  with pytest.raises(ValueError, match="noise_samples=0 must be at least 1"):
    flow.bits_per_dim(np.zeros((2, 8, 8, 1), np.uint8), noise_samples=0)


@pytest.mark.fault(22)
def test_a_grid_of_samples_that_are_not_finite_is_told_in_the_metrics(tiny_config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(likelihood, "sample_prior", lambda keys, shape, *_: jnp.full((len(keys), *shape), jnp.inf))
  train.train(train.prepare(tiny_config(total_steps=1, eval_steps=0, sample_steps=1), tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["samples/num_nonfinite"] for line in lines if "samples/num_nonfinite" in line] == [4]
  assert "4 samples are NaN or infinite" in capsys.readouterr().out


def test_many_images_go_to_the_disk_as_they_come_and_the_grid_shows_the_first(workdir, tmp_path, monkeypatch):
  out, npz = tmp_path / "grid.png", tmp_path / "images.npz"
  monkeypatch.setattr(sampler, "CHUNK", 4)
  monkeypatch.setattr(sample, "GRID", 6)
  sizes = []
  write = sample.NpzWriter.write
  monkeypatch.setattr(sample.NpzWriter, "write", lambda self, part: sizes.append(len(part)) or write(self, part))
  sample.main([f"--workdir={workdir}", "--num=10", f"--out={out}", f"--npz={npz}"])
  assert sizes == [4, 4, 2]
  images = np.load(npz)["images"]
  assert (images.shape, images.dtype) == ((10, 8, 8, 1), np.uint8)
  assert np.asarray(Image.open(out)).shape == (2 * 50 + 2, 3 * 50 + 2, 3)
  config, model, variables, _, mesh = load_run(workdir)
  whole = sample.Sampler(model, config.image_shape, 17, 10, mesh, at_once=16)(variables)
  assert np.abs(whole.astype(int) - images).max() <= 1  # another batch size rounds differently
  np.testing.assert_array_equal(images, sample.Sampler(model, config.image_shape, 17, 10, mesh)(variables))


def test_a_draw_that_is_broken_off_leaves_the_old_file(tmp_path):
  path = tmp_path / "new" / "a.npz"
  with NpzWriter(path, "images", (2, 3)) as file:
    file.write(np.ones((2, 3), np.uint8))
  with pytest.raises(KeyboardInterrupt), NpzWriter(path, "images", (2, 3)) as file:
    file.write(np.zeros((1, 3), np.uint8))
    raise KeyboardInterrupt
  np.testing.assert_array_equal(np.load(path)["images"], np.ones((2, 3)))
  assert [one.name for one in path.parent.iterdir()] == ["a.npz"]


def test_a_sampler_of_no_images_is_rejected():
  with pytest.raises(ValueError, match="num=0 must be at least 1; give the number of images to draw"):
    sampler.Sampler(None, (8, 8, 1), 17, 0, sharding.make_mesh())


@pytest.mark.process
def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(workdir, tmp_path):
  limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14)); "
  draw = f"from jet_jax import sample; sample.main(['--workdir={workdir}', '--num=512', '--npz={tmp_path}/a.npz'])"
  command = [sys.executable, "-c", limited + draw]  # Python ignores the signal of too large a file
  result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith("error: [Errno 27] File too large")
  assert "Traceback" not in result.stderr
  assert not list(tmp_path.iterdir())


def test_samples_in_bfloat16_are_nearly_the_same(workdir, tmp_path, monkeypatch):
  files = [tmp_path / f"{name}.npz" for name in ("float32", "bfloat16")]
  dtypes = []
  make = sample.Sampler

  def noting(model, *rest, **constants):
    dtypes.append(model.dtype)
    return make(model, *rest, **constants)

  monkeypatch.setattr(sample, "Sampler", noting)
  for file in files:
    sample.main(
      [f"--workdir={workdir}", "--num=64", f"--dtype={file.stem}", f"--npz={file}", f"--out={tmp_path}/a.png"]
    )
  assert dtypes == ["float32", "bfloat16"]
  exact, coarse = (np.load(file)["images"].astype(int) for file in files)
  assert np.mean(exact != coarse) < 0.2  # a flow that was trained for 6 steps stretches little


def test_an_image_depends_on_the_seed_and_its_number_alone(workdir, monkeypatch):
  config, model, variables, _, mesh = load_run(workdir)

  def draw(num, seed=0):
    return sample.Sampler(model, config.image_shape, 17, num, mesh)(variables, seed).astype(int)

  three, ten = (sample.Sampler(model, config.image_shape, 17, num, mesh, device_batch=4) for num in (3, 10))
  assert (three.chunk, ten.chunk) == (4, 4)
  np.testing.assert_array_equal(three(variables), ten(variables)[:3])  # of the same programs, bit for bit
  ten = draw(10)
  monkeypatch.setattr(sampler, "CHUNK", 4)
  # A value that lies on the edge of two levels may fall to either side when another batch size rounds differently.
  assert np.abs(draw(10) - ten).max() <= 1
  assert np.mean(draw(3) == ten[:3]) > 0.99
  assert np.mean(draw(3, seed=1) == ten[:3]) < 0.9


@pytest.mark.parametrize("main", [evaluate.main, sample.main])
def test_a_run_or_step_that_is_not_there_is_refused(main, tmp_path, workdir, capsys):
  (tmp_path / "untrained").mkdir()
  shutil.copy(workdir / "config.json", tmp_path / "untrained")
  for arguments, message in (
    ([f"--workdir={tmp_path}"], "has no config.json"),
    ([f"--workdir={tmp_path}/untrained"], "no complete checkpoint in .*untrained; train until the first one is saved"),
    ([f"--workdir={workdir}", "--step=5"], "step 5 is not there; .* has 3, 6; the nearest is 6"),
    ([f"--workdir={workdir}", "--step=1"], "step 1 is not there; .* has 3, 6; the nearest is 3"),
    ([f"--workdir={workdir}", "--step=last"], "--step: 'last' must be the number of a step, or best"),
  ):
    check_refused(main, arguments, message, capsys)


def test_images_that_cannot_be_evaluated_are_refused(tmp_path, workdir, capsys):
  def source(name, *shape):
    images = {"train_images": np.full((2, 8, 8, 1), 16, "uint8"), "test_images": np.full(shape, 16, "uint8")}
    np.savez(tmp_path / f"{name}.npz", **images)
    return f"--source=npz:{tmp_path}/{name}.npz"

  for argument, message in (
    (source("wide", 2, 8, 9, 1), r"has images of \(8, 9, 1\), the flow is for \(8, 8, 1\); give another --source"),
    (source("empty", 0, 8, 8, 1), "has no image in its split 'test'; add some or use another split"),
    ("--split=test", "has no split 'test'"),
    ("--noise_samples=0", "--noise_samples=0 must be at least 1"),
    ("--device_batch=0", "--device_batch=0 must be at least 1"),
  ):
    check_refused(evaluate.main, [f"--workdir={workdir}", argument], message, capsys)


def check_refused(main, arguments, message, capsys):
  """Checks that a command ends with status 2 and one line, which has the message, beside those on its data."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    main(arguments)
  assert stopped.value.code == 2, arguments
  (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("data: ", "  "))]
  assert re.match(f"error: .*{message}", line), line
