"""A run with labels: trained, evaluated, sampled, exported and resumed as a user does."""

import json

import numpy as np
import pytest
from PIL import Image

import jet_jax
from jet_jax import evaluate, sample, train
from jet_jax.config import override
from jet_jax.jet import Jet
from tools import export


@pytest.fixture(scope="module")
def settings():
  return {
    "front": "none", "optimizer": "adam", "coupling_transform": "affine", "couplings": 2, "block_depth": 1, "width": 8,
    "heads": 2, "batch_size": 16, "total_steps": 6, "log_steps": 1, "eval_steps": 3, "sample_steps": 6,
    "checkpoint_steps": 3, "sample_num": 10, "lr": 3e-2, "classes": -1,
  }  # fmt: skip


def config_of(settings, **more):
  from configs.digits import get_config  # noqa: PLC0415

  return override(get_config(), settings | more)


@pytest.fixture(scope="module")
def workdir(settings, tmp_path_factory):
  folder = tmp_path_factory.mktemp("labels") / "run"
  train.train(train.prepare(config_of(settings), folder))
  return folder


def answer(capsys, main, *arguments):
  main(list(arguments))
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_number_of_classes_and_their_names_are_read_from_the_data(workdir):
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["classes"] == 10
  assert config["data"]["classes"] == [str(digit) for digit in range(10)]


def test_evaluation_tells_bits_with_label_without_and_of_the_mixture(workdir, capsys):
  result = answer(capsys, evaluate.main, f"--workdir={workdir}")
  assert result["labels"] is True
  logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  last = [line["val/bits_per_dim"] for line in logged if "val/bits_per_dim" in line][-1]
  assert result["bits_per_dim"] == pytest.approx(last, rel=1e-6), "training logs what evaluation prints"
  flow = jet_jax.load(workdir)
  from sklearn.datasets import load_digits  # noqa: PLC0415

  held_out = np.arange(1797) % 9 == 0
  images, labels = load_digits().images.astype(np.uint8)[held_out, ..., None], load_digits().target[held_out]
  bits = lambda labels: flow.bits_per_dim(images, labels=labels)
  assert result["bits_per_dim"] == pytest.approx(bits(labels).mean(), rel=1e-6)
  assert result["unlabeled_bits_per_dim"] == pytest.approx(bits(None).mean(), rel=1e-6)
  of_each = np.stack([bits(np.full(200, label)) for label in range(10)])
  assert np.ptp(of_each, axis=0).min() > 1e-4, "the labels must matter"
  mixture = -np.log2(np.mean(2.0 ** (-64 * (of_each - of_each.min(0))), axis=0)) / 64 + of_each.min(0)
  assert result["mixture_bits_per_dim"] == pytest.approx(mixture.mean(), rel=1e-6)
  assert (mixture <= of_each.min(0) + np.log2(10) / 64 + 1e-9).all()


def test_resuming_has_the_same_bits(settings, workdir, tmp_path):
  config = config_of(settings)
  job = train.prepare(config, tmp_path / "run")
  stopped = job.run.__class__.from_config(override(job.run.config, {"total_steps": 6}), 1597)
  import dataclasses  # noqa: PLC0415

  train.train(dataclasses.replace(job, run=dataclasses.replace(stopped, total_steps=3)))
  train.train(train.prepare(config_of(settings), tmp_path / "run"))
  digests = [json.loads((run / "checkpoints/6/digests/metadata").read_text()) for run in (workdir, tmp_path / "run")]
  assert digests[0] == digests[1]


def test_a_row_for_each_class_and_each_guidance(workdir, tmp_path, capsys):
  arguments = [f"--workdir={workdir}", "--num=3", f"--npz={tmp_path / 's.npz'}", f"--out={tmp_path / 's.png'}"]
  result = answer(capsys, sample.main, *arguments, "--label=all", "--guidance=0,2")
  assert result["labels"] == [str(digit) for digit in range(10)]
  images = np.load(tmp_path / "s.npz")["images"].reshape(10, 2, 3, 8, 8, 1)
  assert Image.open(tmp_path / "s.png").height > 6 * Image.open(tmp_path / "s.png").width
  flow = jet_jax.load(workdir)
  np.testing.assert_array_equal(images[4, 0], flow.sample(3, labels=[4, 4, 4]))
  np.testing.assert_array_equal(images[4, 1], flow.sample(3, labels=[4, 4, 4], guidance=2))
  assert (images[:, 0] != images[:, 1]).any()
  assert (images[0] != images[1]).any()


def test_without_a_label_samples_are_those_of_the_flow_without(workdir, tmp_path, capsys):
  arguments = [f"--workdir={workdir}", "--num=3", f"--npz={tmp_path / 's.npz'}", f"--out={tmp_path / 's.png'}"]
  assert answer(capsys, sample.main, *arguments)["labels"] == [None]
  np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["images"], jet_jax.load(workdir).sample(3))


def test_candidates_are_chosen_and_the_same_again(workdir, tmp_path, capsys):
  images = []
  for name, more in (("a", []), ("b", []), ("c", ["--candidates=1"])):
    arguments = [f"--workdir={workdir}", "--num=3", f"--npz={tmp_path / name}.npz", f"--out={tmp_path / name}.png"]
    answer(capsys, sample.main, *arguments, "--label=3", "--guidance=5", "--candidates=4", *more)
    images.append(np.load(tmp_path / f"{name}.npz")["images"])
  np.testing.assert_array_equal(images[0], images[1])
  assert (images[0] != images[2]).any()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--label=ten"], "--label='ten' must be all, none, a class, or its number below 10"),
    (["--label=10"], "number below 10"),
    (["--guidance=1"], "lead to a label, and there is none; give --label"),
    (["--label=1", "--guidance=nan"], "--guidance=nan must be at least"),
    (["--label=1", "--guided_couplings=3:2"], "must be FIRST:LAST"),
    (["--label=1", "--candidates=0"], "--candidates=0 must be at least 1"),
  ],
)
def test_labels_that_cannot_be_drawn_are_rejected(workdir, tmp_path, arguments, words, capsys):
  with pytest.raises(SystemExit) as ended:
    sample.main([f"--workdir={workdir}", f"--out={tmp_path / 's.png'}", *arguments])
  assert words in str(ended.value) + capsys.readouterr().err
  assert not (tmp_path / "s.png").exists()


def test_images_of_other_classes_are_rejected_and_those_of_none_have_no_label(workdir, tmp_path, capsys):
  images = np.random.default_rng(0).integers(0, 17, (12, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "none.npz", validation_images=images)
  np.savez(tmp_path / "other.npz", validation_images=images, validation_labels=np.arange(12) % 3)
  result = answer(capsys, evaluate.main, f"--workdir={workdir}", f"--source=npz:{tmp_path / 'none.npz'}")
  assert result["labels"] is False
  assert result["bits_per_dim"] == result["unlabeled_bits_per_dim"]
  with pytest.raises(SystemExit, match="3 classes, and the flow was trained with 10; class 3 is none here and '3'"):
    evaluate.main([f"--workdir={workdir}", f"--source=npz:{tmp_path / 'other.npz'}"])


@pytest.mark.parametrize(("classes", "words"), [(9, "10 classes; set model.classes=10"), (11, "10 classes")])
def test_another_number_of_classes_is_rejected(settings, tmp_path, classes, words):
  with pytest.raises(ValueError, match=words):
    train.prepare(config_of(settings, classes=classes), tmp_path / "run")


def test_labels_for_images_without_are_rejected(settings, tmp_path):
  np.savez(tmp_path / "plain.npz", images=np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match="have no classes; set model.classes=0"):
    train.prepare(config_of(settings, source=f"npz:{tmp_path / 'plain.npz'}"), tmp_path / "run")


def test_a_run_without_labels_has_none_to_draw(settings, tmp_path):
  train.train(train.prepare(config_of(settings, classes=0, total_steps=1, eval_steps=0), tmp_path / "run"))
  with pytest.raises(SystemExit, match="trained with labels"):
    sample.main([f"--workdir={tmp_path / 'run'}", "--label=1", f"--out={tmp_path / 's.png'}"])
  with pytest.raises(ValueError, match="below its 0 classes"):
    jet_jax.load(tmp_path / "run").sample(1, labels=[0])


def test_an_export_draws_and_measures_by_label(workdir, tmp_path):
  import jax  # noqa: PLC0415
  from safetensors.numpy import load_file  # noqa: PLC0415

  export.export(workdir, tmp_path / "out")
  weights = load_file(tmp_path / "out/model.safetensors")
  load = lambda name: jax.jit(jax.export.deserialize(bytearray((tmp_path / "out" / name).read_bytes())).call)
  labels = np.array([3, -1], np.int32)
  images = load("sampler.jaxexport")(weights, 0, np.arange(2, dtype=np.int32), np.float32(1), labels)
  flow = jet_jax.load(workdir)
  np.testing.assert_array_equal(images, flow.sample(2, labels=labels))
  bits = load("log_density.jaxexport")(weights, images, np.arange(2, dtype=np.int32), np.int32(0), labels)
  np.testing.assert_allclose(bits, flow.bits_per_dim(images, labels=labels), rtol=1e-5)
  assert "np.full(16, -1)" in (tmp_path / "out/README.md").read_text()


def test_dropping_labels_is_by_example_and_as_often_as_it_says():
  import jax  # noqa: PLC0415

  from jet_jax.training.step import drop_labels  # noqa: PLC0415

  keys = jax.random.split(jax.random.key(0), 4000)
  labels = jax.numpy.arange(4000) % 10
  dropped = np.asarray(drop_labels(labels, keys, 0.3) == -1)
  assert abs(dropped.mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
  np.testing.assert_array_equal(np.asarray(drop_labels(labels[:7], keys[:7], 0.3) == -1), dropped[:7])
  np.testing.assert_array_equal(drop_labels(labels, keys, 0.0), labels)
  assert (drop_labels(labels, keys, 1.0) == -1).all()
  assert Jet().classes == 0
