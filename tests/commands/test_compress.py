"""Compressing and decompressing images by a trained run, as commands."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jet_jax
from jet_jax import compress, decompress, evaluate, train
from jet_jax.codec import bitstack
from jet_jax.config import override
from tools import export, report

SETTINGS = {
  "couplings": 2, "block_depth": 1, "width": 16, "heads": 2, "patch_size": 4, "batch_size": 32, "total_steps": 40,
  "lr": 1e-2, "log_steps": 40, "eval_steps": 40, "sample_steps": 0, "checkpoint_steps": 20, "front": "stationary",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Runs on a folder of colour images of 8x8 pixels, which are smooth."""
  folder, rng = tmp_path_factory.mktemp("compress"), np.random.default_rng(0)
  for split, count in (("train", 96), ("validation", 40)):
    (folder / "images" / split).mkdir(parents=True)
    for i in range(count):
      image = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
      Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC).save(folder / "images" / split / f"{i:03}.png")
  for name, settings in (("run", {}), ("other", {"seed": 1, "total_steps": 1, "checkpoint_steps": 1})):
    source = {"source": f"folder:{folder / 'images'}", "size": 8}
    train.train(train.prepare(override(jet_jax.config.default_config(), SETTINGS | source | settings), folder / name))
  return folder


@pytest.fixture(scope="module")
def images(folder):
  names = sorted((folder / "images/validation").iterdir())
  return np.stack([np.asarray(Image.open(name)) for name in names])


def compressed(folder, capsys, *flags, out="x.jet", workdir="run"):
  compress.main([f"--workdir={folder / workdir}", f"--out={folder / out}", *flags])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def rejected(main, capsys, *flags):
  with pytest.raises(SystemExit) as error:
    main(list(map(str, flags)))
  assert error.value.code != 0
  return capsys.readouterr().err.splitlines()[-1]


def test_every_pixel_comes_back_as_png_files_and_as_npz(folder, images, capsys, tmp_path):
  result = compressed(folder, capsys, "--verify")
  size = (folder / "x.jet").stat().st_size
  assert (result["bytes"], result["num_images"], result["step"]) == (size, 40, 40)
  assert result["bits_per_dim"] == pytest.approx(8 * size / images.size)
  assert result["overhead"] == pytest.approx(result["bits_per_dim"] - result["flow_bits_per_dim"])
  assert result["png_bits_per_dim"] > result["bits_per_dim"]
  # Of 7,680 numbers: a header of 120 bytes, and the first images, cost 0.3 bits each.
  assert -0.05 < result["overhead"] < 0.5
  evaluate.main([f"--workdir={folder / 'run'}"])
  evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["flow_bits_per_dim"] == evaluated["bits_per_dim"]
  assert result["weights_sha256"] == evaluated["weights_sha256"]

  decompress.main([f"--workdir={folder / 'run'}", f"--file={folder / 'x.jet'}", f"--out={tmp_path / 'out'}"])
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_images"] == 40
  found = sorted((tmp_path / "out").iterdir())
  assert [path.name for path in found] == [f"{i:05}.png" for i in range(40)]
  np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in found]), images)
  decompress.main([f"--workdir={folder / 'run'}", f"--file={folder / 'x.jet'}", f"--out={tmp_path / 'out.npz'}"])
  with np.load(tmp_path / "out.npz") as arrays:
    np.testing.assert_array_equal(arrays["images"], images)
  assert {path.name for path in tmp_path.iterdir()} == {"out", "out.npz"}


def test_all_splits_and_another_source_and_step(folder, images, capsys):
  assert compressed(folder, capsys, "--split=all")["num_images"] == 136
  np.savez(folder / "few.npz", train_images=images, validation_images=images[:5], test_images=images[5:12])
  source = f"--source=npz:{folder / 'few.npz'}"
  assert compressed(folder, capsys, source, "--split=test")["num_images"] == 7
  assert compressed(folder, capsys, source, "--step=20", out="step.jet")["step"] == 20
  decompress.main([f"--workdir={folder / 'run'}", f"--file={folder / 'step.jet'}", f"--out={folder / 'step.npz'}"])
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 20, "the file names its checkpoint"
  with np.load(folder / "step.npz") as arrays:
    np.testing.assert_array_equal(arrays["images"], images[:5])


def test_an_export_decodes_what_its_run_has_written(folder, images, capsys):
  compressed(folder, capsys, out="exported.jet")
  export.main([f"--workdir={folder / 'run'}", f"--out={folder / 'export'}"])
  decompress.main([f"--workdir={folder / 'export'}", f"--file={folder / 'exported.jet'}", f"--out={folder / 'e.npz'}"])
  with np.load(folder / "e.npz") as arrays:
    np.testing.assert_array_equal(arrays["images"], images)


def test_evaluate_and_the_report_show_the_coded_size(folder, capsys):
  expected = compressed(folder, capsys)
  evaluate.main([f"--workdir={folder / 'run'}", "--codec"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["codec_bytes"] == expected["bytes"]
  assert result["codec_bits_per_dim"] == expected["bits_per_dim"]
  assert result["codec_overhead"] == pytest.approx(expected["overhead"])
  report.main([f"--workdir={folder / 'run'}", f"--out={folder / 'page.html'}", "--evaluate", "--codec"])
  page = (folder / "page.html").read_text()
  assert f"{expected['bits_per_dim']:.4f}" in page
  assert "compressed without loss" in page
  assert "add --evaluate" in rejected(
    report.main, capsys, f"--workdir={folder / 'run'}", f"--out={folder / 'page.html'}", "--codec"
  )


def test_what_is_in_the_way_stays_and_an_empty_folder_is_filled(folder, images, capsys, tmp_path):
  compressed(folder, capsys, out="way.jet")
  flags = f"--workdir={folder / 'run'}", f"--file={folder / 'way.jet'}"
  (tmp_path / "out.tmp").mkdir()
  (tmp_path / "out.tmp/mine.txt").write_text("mine")
  (tmp_path / "out").mkdir()
  decompress.main([*flags, f"--out={tmp_path / 'out'}/"])
  assert len(list((tmp_path / "out").iterdir())) == len(images)
  assert (tmp_path / "out.tmp/mine.txt").read_text() == "mine"
  decompress.main([*flags, f"--out={tmp_path / 'new/deep/out'}"])
  assert len(list((tmp_path / "new/deep/out").iterdir())) == len(images)
  assert {path.name for path in tmp_path.iterdir()} == {"out", "out.tmp", "new"}


def test_images_that_cannot_be_read_are_counted_and_named(folder, capsys, tmp_path):
  for split in ("train", "validation"):
    (tmp_path / "bad" / split).mkdir(parents=True)
    for i in range(3):
      Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "bad" / split / f"{i}.png")
  (tmp_path / "bad/validation/1.png").write_bytes(b"torn")
  settings = {
    "source": f"folder:{tmp_path / 'bad'}",
    "size": 8,
    "total_steps": 1,
    "checkpoint_steps": 1,
    "batch_size": 1,
  }
  config = override(jet_jax.config.default_config(), SETTINGS | settings | {"max_bad_images": 1, "front": "none"})
  train.train(train.prepare(config, tmp_path / "run"))
  capsys.readouterr()
  compress.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'x.jet'}"])
  printed = capsys.readouterr()
  result = json.loads(printed.out.splitlines()[-1])
  assert (result["num_images"], result["num_bad_images"]) == (2, 1)
  assert "skipped unreadable images" in printed.err
  assert "1.png" in printed.err


def test_bad_input_is_named_and_nothing_is_written(folder, capsys, tmp_path):
  compressed(folder, capsys, out="good.jet")
  content = (folder / "good.jet").read_bytes()
  flipped = bytearray(content)
  flipped[100] ^= 4
  files = {"cut": content[:200], "flipped": bytes(flipped), "none": b"some text", "empty": b""}
  for name, bad in files.items():
    (tmp_path / name).write_bytes(bad)
  run, out = f"--workdir={folder / 'run'}", f"--out={tmp_path / 'out'}"
  reject = lambda *flags: rejected(decompress.main, capsys, *flags)
  assert "cut off" in reject(run, out, f"--file={tmp_path / 'cut'}")
  assert "checksum" in reject(run, out, f"--file={tmp_path / 'flipped'}")
  assert "not a file of jet_jax.compress" in reject(run, out, f"--file={tmp_path / 'none'}")
  assert "not a file of jet_jax.compress" in reject(run, out, f"--file={tmp_path / 'empty'}")
  assert "No such file" in reject(run, out, f"--file={tmp_path / 'missing'}")
  good = f"--file={folder / 'good.jet'}"
  assert "step 40 is not there" in reject(f"--workdir={folder / 'other'}", out, good)
  assert "other weights" in reject(f"--workdir={folder / 'other'}", out, good, "--step=1")
  assert "other weights" in reject(run, out, good, "--step=20")
  assert "only portable files" in reject(run, out, good, "--batch_size=3")
  assert "--batch_size=0 must be" in reject(run, out, good, "--batch_size=0")
  (tmp_path / "full").mkdir()
  (tmp_path / "full/note.txt").write_text("mine")
  assert "no empty folder" in reject(run, f"--out={tmp_path / 'full'}", good)
  assert {path.name for path in tmp_path.iterdir()} == {*files, "full"}
  reject = lambda *flags: rejected(compress.main, capsys, *flags)
  assert "has no config.json" in reject(f"--workdir={tmp_path}", f"--out={tmp_path / 'y.jet'}")
  small = {f"{split}_images": np.zeros((2, 4, 4, 3), np.uint8) for split in ("train", "validation")}
  np.savez(tmp_path / "small.npz", **small)
  other = f"--source=npz:{tmp_path / 'small.npz'}"
  assert "holds images of 4x4" in reject(run, f"--out={tmp_path / 'y.jet'}", other)
  assert not list(tmp_path.glob("*.jet*"))


def test_without_the_library_the_command_says_what_to_install(folder, capsys, monkeypatch):
  monkeypatch.setattr(bitstack, "IS_INSTALLED", False)
  for main, flags in ((compress.main, ["--out=x.jet"]), (evaluate.main, ["--codec"])):
    assert "pip install 'jet_jax[codec]'" in rejected(main, capsys, f"--workdir={folder / 'run'}", *flags)


@pytest.mark.process
def test_a_portable_file_decodes_with_other_instructions_threads_and_batches(folder, images, capsys):
  """Encoded here, decoded by a processor that has SSE4.2 alone, on one core, image by image."""
  result = compressed(folder, capsys, "--portable", out="portable.jet")
  assert result["portable"]
  assert result["overhead"] < 0.5
  out = folder / "elsewhere.npz"
  flags = [f"--workdir={folder / 'run'}", f"--file={folder / 'portable.jet'}", f"--out={out}", "--batch_size=1"]
  line = [sys.executable, "-m", "jet_jax.decompress", *flags]
  environment = os.environ | {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  subprocess.run(["taskset", "-c", "0", *line], check=True, timeout=300, env=environment, capture_output=True)
  with np.load(out) as arrays:
    np.testing.assert_array_equal(arrays["images"], images)


@pytest.mark.process
def test_a_file_of_another_kind_of_machine_is_refused_unless_it_is_portable(folder, capsys):
  compressed(folder, capsys, out="here.jet")
  line = [sys.executable, "-m", "jet_jax.decompress", f"--workdir={folder / 'run'}"]
  environment = os.environ | {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  line += [f"--file={folder / 'here.jet'}", f"--out={folder / 'nowhere'}"]
  found = subprocess.run(line, check=False, timeout=300, env=environment, capture_output=True, text=True)
  assert found.returncode != 0
  assert "other last digits" in found.stderr
  assert "--portable" in found.stderr
  assert not (folder / "nowhere").exists()
