"""A run resumes on its images wherever they lie, and on other images only if it is told so. Nothing is trained here."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import small_runs
from jet_jax import train
from jet_jax.config import load
from jet_jax.workdir import same_data

NO_SPLITS = '{"source": "", "data_dir": "", "changes": [], "splits": {}}'
ODD_SPLITS = '{"source": "", "data_dir": "", "changes": [], "splits": {"train": 3}}'
KNOWN = '"splits": {"train": {"images": 20, "sha256": null}}'
ODD_VALUES = [
  f'{{"source": 5, "data_dir": "", "changes": [], {KNOWN}}}',
  f'{{"source": "", "data_dir": "", "changes": 7, {KNOWN}}}',
  f'{{"source": "", "data_dir": "", "changes": [{{"source": ""}}], {KNOWN}}}',
  '{"source": "", "data_dir": "", "changes": [], "splits": {"train": {"images": "x", "sha256": null}}}',
  "[" * 100_000,
]


def make_folder(path, count=20):
  for split in ("train", "val"):
    (path / split).mkdir(parents=True)
    for k in range(count):
      Image.new("RGB", (8, 8), (k, k, k)).save(path / split / f"{k:02}.png")
  return path


@pytest.fixture
def prepare(tiny_config, tmp_path):
  """Prepares a run in one work directory, on a source below `tmp_path`."""

  def prepare(source, accept=False, **settings):
    source = source.replace(":", f":{tmp_path}/") if source != "digits" else source
    levels = 17 if source == "digits" else 256
    config = tiny_config(levels=levels, **{"data.source": source} | settings)
    return train.prepare(config, tmp_path / "run", accept_changed_data=accept)

  return prepare


@pytest.fixture
def begun(prepare, tmp_path):
  """Makes a run on a folder that has reached step 3."""
  make_folder(tmp_path / "images")
  prepare("folder:images")
  small_runs.pretend_saved(tmp_path / "run", 3)


def record(tmp_path):
  return json.loads((tmp_path / "run" / "data.json").read_text())


def test_a_run_finds_its_images_in_a_moved_folder_and_in_its_archive(begun, prepare, tmp_path, capsys):
  before = record(tmp_path)
  (tmp_path / "images").rename(tmp_path / "moved")
  prepare("folder:moved")
  assert f"the images are those of folder:{tmp_path}/images, where this run had them" in capsys.readouterr().out
  assert load(tmp_path / "run").data.source == f"folder:{tmp_path}/moved"  # evaluation finds them too
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for file in (tmp_path / "moved").rglob("*.png"):
      archive.write(file, file.relative_to(tmp_path))
  prepare("archive:a.zip")
  assert record(tmp_path) == before | {"source": f"archive:{tmp_path}/a.zip"}


def test_a_run_finds_its_images_in_another_npz_with_the_same_pixels(prepare, tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
  for name, change in (("one", 0), ("two", 0), ("three", 1)):
    np.savez_compressed(tmp_path / f"{name}.npz", train_images=images + np.uint8(change), test_images=images)
  prepare("npz:one.npz")
  small_runs.pretend_saved(tmp_path / "run")
  prepare("npz:two.npz")
  with pytest.raises(ValueError, match="of its 20 train images some have other names or sizes now"):
    prepare("npz:three.npz")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda images: (images / "train/03.png").unlink(), "it had 20 train images, and now there are 19"),
    (lambda images: shutil.copy(images / "val/03.png", images / "val/99.png"), "20 validation images, and now .* 21"),
    (lambda images: (images / "val/03.png").write_bytes(b""), "of its 20 validation images some have other names or"),
    (lambda images: (images / "val").rename(images / "test") / "03.png", ""),  # validation is on the test split then
  ],
)
def test_other_images_need_a_word_which_the_run_notes(begun, prepare, tmp_path, change, message):
  before = record(tmp_path)
  change(tmp_path / "images")
  if not message:
    prepare("folder:images")
    return
  advice = rf"add --data_changed=accept .* start a new run .* --config\.init_from={tmp_path / 'run'}"
  with pytest.raises(ValueError, match=f"holds a run on other images: .*{message}.*{advice}"):
    prepare("folder:images")
  assert record(tmp_path) == before
  prepare("folder:images", accept=True)
  (changed,) = record(tmp_path)["changes"]
  assert changed == {"up_to_step": 3, **{name: before[name] for name in ("source", "data_dir", "splits")}}
  prepare("folder:images")  # from now on these are its images
  assert record(tmp_path)["changes"] == [changed]
  assert record(tmp_path)["splits"] != before["splits"]


def test_accepting_where_nothing_changed_notes_nothing(begun, prepare, tmp_path):
  prepare("folder:images", accept=True)
  assert record(tmp_path)["changes"] == []


def test_an_older_run_resumes_on_the_path_that_it_had(begun, prepare, tmp_path):
  (tmp_path / "run" / "data.json").unlink()
  shutil.copytree(tmp_path / "images", tmp_path / "copy")
  with pytest.raises(ValueError, match="images, these are in .*copy, and an older run has no digest"):
    prepare("folder:copy")
  prepare("folder:copy/../images")
  assert record(tmp_path)["splits"]["train"]["images"] == 20
  prepare("folder:copy")


def test_an_older_run_whose_training_images_have_another_number_needs_a_word(begun, prepare, tmp_path):
  (tmp_path / "run" / "data.json").unlink()
  (tmp_path / "images/train/00.png").unlink()
  with pytest.raises(ValueError, match="it had 20 train images, and now there are 19"):
    prepare("folder:images")
  prepare("folder:images", accept=True)


@pytest.mark.parametrize(
  "text", ["", "{}", "[]", '{"source": 1', "\x00", NO_SPLITS, ODD_SPLITS, *ODD_VALUES], ids=range(12)
)
def test_a_damaged_record_is_named_and_may_be_removed(begun, prepare, tmp_path, text):
  (tmp_path / "run" / "data.json").write_text(text)
  with pytest.raises(ValueError, match=r"data\.json is damaged .*; remove it and rerun"):
    prepare("folder:images")
  (tmp_path / "run" / "data.json").unlink()
  prepare("folder:images")


def test_a_run_without_a_checkpoint_may_start_with_anything(prepare, tmp_path):
  make_folder(tmp_path / "images")
  prepare("folder:images")
  prepare("digits", couplings=3, seed=4)
  assert load(tmp_path / "run").seed == 4
  assert record(tmp_path)["source"] == "digits"
  assert record(tmp_path)["changes"] == []


@pytest.mark.parametrize("trace", ["damaged/3", "checkpoints/3/commit_success.txt"])
def test_a_run_whose_checkpoints_are_damaged_is_still_a_run(begun, prepare, tmp_path, trace):
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  for name in (trace, "checkpoints/3/training"):
    (tmp_path / "run" / name).mkdir(parents=True)
  with pytest.raises(ValueError, match="holds a run with seed=0"):
    prepare("folder:images", seed=4)


def test_a_start_that_was_killed_before_the_end_of_its_first_save_holds_no_run(begun, prepare, tmp_path):
  (tmp_path / "run/checkpoints/3/commit_success.txt").unlink()
  prepare("folder:images", seed=4)


def test_a_split_is_compared_with_that_of_the_run(begun, tmp_path):
  known = record(tmp_path)["splits"]["validation"]
  compare = lambda split, **other: same_data.differs_from_run(tmp_path / "run", split, known | other)
  assert not compare("validation")
  assert compare("validation", images=7) == "it had 20 validation images, and now there are 7"
  assert compare("validation", sha256="0").startswith("of its 20 validation images some have other names")
  assert not compare("test", images=7)  # nobody knows
  (tmp_path / "run" / "data.json").unlink()
  assert not compare("validation", images=7)
