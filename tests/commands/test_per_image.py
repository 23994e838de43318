"""Bits/dim of each image, by `evaluate --per_image` and in Python, and their mean, which is the figure."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import jet_jax
from jet_jax import evaluate, train
from jet_jax.config import override
from jet_jax.data import open_splits, sources
from jet_jax.devices import processes
from jet_jax.training import Evaluator
from jet_jax.workdir import load_run

pytestmark = pytest.mark.process  # whole runs, or eight devices: too long for `make check`

PAGE = pathlib.Path("docs/guide/python.md")

# Names that a CSV must quote, or that are no UTF-8.
NAMES = ("a, b.png", 'c "d".png', "f.png", "g/h\udcff.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("images")
  generator = np.random.default_rng(0)
  for split, names in (("train", [f"{i}.png" for i in range(16)]), ("validation", NAMES)):
    for name in names:
      (path / split / name).parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(path / split / name)
  (path / "validation" / "e.png").write_bytes(b"no image")
  return path


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
  from configs.digits import get_config  # noqa: PLC0415

  settings = {
    "source": f"folder:{folder}", "size": 8, "levels": 256, "couplings": 2, "block_depth": 1, "width": 8, "heads": 2,
    "batch_size": 16, "total_steps": 1, "eval_steps": 0, "sample_steps": 0, "checkpoint_steps": 1, "max_bad_images": 1,
  }  # fmt: skip
  path = tmp_path_factory.mktemp("run")
  train.train(train.prepare(override(get_config(), settings), path))
  return path


@pytest.mark.parametrize("suffix", ["csv", "npz", "NPZ"])
def test_each_readable_image_has_its_number_name_and_bits(workdir, tmp_path, capsys, suffix):
  path = tmp_path / "new" / f"images.{suffix}"
  evaluate.main([f"--workdir={workdir}", f"--per_image={path}", "--noise_samples=2"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  if suffix == "csv":
    with path.open(encoding="utf-8", newline="") as file:
      columns, *rows = csv.reader(file)
    assert columns == ["index", "file_name", "bits_per_dim"]
    index, names, bits = zip(*rows, strict=True)
    index, bits = [int(i) for i in index], np.array([float(value) for value in bits])
  else:
    arrays = np.load(path)
    index, names, bits = arrays["index"].tolist(), arrays["file_name"].tolist(), arrays["bits_per_dim"]
  assert index == [0, 1, 3, 4]  # image 2, e.png, cannot be read
  assert list(names) == [*NAMES[:3], "g/h\\xff.png"]
  assert bits.mean() == result["bits_per_dim"]
  assert result["num_images"] == 4
  assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_lines_of_the_page_give_the_figures_of_the_commands(workdir, folder, tmp_path, monkeypatch, capsys):
  evaluate.main([f"--workdir={workdir}", f"--per_image={tmp_path}/bits.npz"])
  arrays = np.load(tmp_path / "bits.npz")
  lines = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
  shutil.copytree(workdir, tmp_path / "runs" / "mine")
  (tmp_path / "photos").mkdir()
  for name in NAMES[:2]:  # the first of the split, so that they have the same noise
    shutil.copy(folder / "validation" / name, tmp_path / "photos" / f"{name}.jpg")
  monkeypatch.chdir(tmp_path)
  found = {}
  exec(lines, found)
  np.testing.assert_allclose(found["bits"], arrays["bits_per_dim"][:2], rtol=1e-6)  # of another batch size
  assert found["samples"].shape == (16, 8, 8, 3)
  np.testing.assert_array_equal(found["again"], found["images"])


@pytest.mark.parametrize(
  "images", [np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 1), "uint8"), np.zeros((8, 8, 3), "uint8")]
)
def test_images_of_another_shape_or_dtype_are_refused_in_python(workdir, images):
  with pytest.raises(ValueError, match=r"images are .*; this flow is for uint8 \(N, 8, 8, 3\) below 256; convert or"):
    jet_jax.load(workdir).bits_per_dim(images)


def test_no_images_have_no_bits(workdir):
  assert jet_jax.load(workdir).bits_per_dim(np.zeros((0, 8, 8, 3), "uint8")).shape == (0,)


def test_images_without_files_have_no_names():
  (digits,) = open_splits("digits", 0, 17, ["validation"])
  assert digits.name(0) is None


def test_the_bits_of_an_image_do_not_depend_on_the_batch_size(workdir):
  config, model, variables, _, mesh = load_run(workdir)
  (source,) = sources.open_config(config, ["validation"])
  (index, bits), (other_index, other) = (
    Evaluator(model, 256, source, size, mesh).per_image(variables) for size in (1, 4)
  )
  np.testing.assert_array_equal(index, other_index)
  # The same noise for each image; matrix products of another height may round differently in float32.
  np.testing.assert_allclose(bits, other, rtol=1e-6)


def test_another_kind_of_file_is_refused_before_the_evaluation(workdir, tmp_path, monkeypatch):
  with pytest.raises(SystemExit, match=r"images.txt must end in \.csv or \.npz"):
    evaluate.main([f"--workdir={workdir}", f"--per_image={tmp_path}/images.txt"])
  (tmp_path / "file").write_text("")
  elsewhere = [f"--workdir={workdir}", f"--per_image={tmp_path}/file/images.csv"]
  with pytest.raises(SystemExit, match=r"images\.csv cannot be written"):
    evaluate.main(elsewhere)
  monkeypatch.setattr(processes, "is_writer", lambda: False)
  evaluate.main(elsewhere)  # of a host that writes nothing
