"""Prepared data sets hold the same examples as their sources, even after a kill or an error on the way."""

import hashlib
import io
import json
import os
import pathlib
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX.record_writer import RecordWriter, masked_crc32c
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from jet_jax import data
from jet_jax.data import records, sources
from jet_jax.data.decode import BadImage
from tools import prepare_data
from tools.preparing import atomic, cifar, imagenet_npz, job, releases, shards, staging, tfrecord

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)


def run(*arguments) -> dict:
  """The JSON object that the command prints."""
  command = [sys.executable, "-m", "tools.prepare_data", *map(str, arguments)]
  result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
  path = tmp_path_factory.mktemp("source") / "set.zip"
  with zipfile.ZipFile(path, "w") as file:
    for k, image in enumerate(PIXELS):
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "PNG")
      file.writestr(f"{'val' if k % 6 == 0 else 'train'}/{'ab'[k % 2]}/{k:03}.png", buffer.getvalue())
  return path


@pytest.fixture(scope="module")
def prepared(archive, tmp_path_factory):
  """The archive as records of PNG files and as records of pixels."""
  folder = tmp_path_factory.mktemp("data")
  common = ["--dataset=images", f"--source=archive:{archive}", "--size=8", f"--data_dir={folder}", "--workers=1"]
  for encoding in ("png", "raw"):
    result = run(*common, f"--name={encoding}", f"--encoding={encoding}", "--shard_examples=9", "--check")
    assert result["splits"] == {"train": 50, "validation": 10}
    assert result["checked"] == 60
  return folder


def open_all(prepared, archive, split):
  names = (f"archive:{archive}", "tfds:png/8x8", "tfds:raw/8x8:1.0.0")
  return [sources.open_source(name, 8, 256, split, data_dir=str(prepared)) for name in names]


def digest(batches, count=5):
  hasher = hashlib.sha256()
  for k in range(count):
    for name, value in sorted(batches[k].items()):
      hasher.update(name.encode() + str(value.dtype).encode() + np.ascontiguousarray(value).tobytes())
  return hasher.hexdigest()


@pytest.mark.process
def test_batches_are_the_same_from_the_archive_and_from_records(prepared, archive):
  digests = {digest(data.train_batches(source, 16, 3, flip=True)) for source in open_all(prepared, archive, "train")}
  assert len(digests) == 1
  for split in ("train", "validation"):
    for ours, theirs in zip(*open_all(prepared, archive, split)[:2], strict=True):
      assert {name: value.tolist() for name, value in ours.items()} == {n: v.tolist() for n, v in theirs.items()}


@pytest.mark.process
def test_plain_tfds_reads_what_is_prepared(prepared):
  for encoding in ("png", "raw"):
    builder = tfds.builder_from_directory(prepared / encoding / "8x8" / "1.0.0")
    assert builder.info.splits["train"].num_examples == 50
    assert builder.info.splits["train"].num_shards == 6
    assert builder.info.features["label"].names == ["a", "b"]
    for example in builder.as_data_source("train"):
      k = int(example["name"].decode()[-7:-4])
      np.testing.assert_array_equal(example["image"], PIXELS[k])
      assert example["label"] == k % 2


@pytest.mark.process
def test_the_manifest_tells_what_went_in(prepared, archive):
  manifest = json.loads((prepared / "png/8x8/1.0.0/manifest.json").read_text())
  (source,) = manifest["sources"]
  assert source["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
  assert source["bytes"] == archive.stat().st_size
  assert manifest["splits"] == {"train": 50, "validation": 10}
  assert manifest["left_out"] == []
  assert "averaging over area" in manifest["rule"]
  assert set(manifest["versions"]) == set(staging.LIBRARIES)


def children(process) -> list[int]:
  """Process numbers of the workers of a running preparation."""
  found = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  return [int(one) for one in found if b"spawn_main" in pathlib.Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.fixture
def half_way(archive, tmp_path):
  """A running preparation of which some shards are written and most are not, its arguments, and its folder."""
  common = ["--dataset=images", "--name=png", f"--source=archive:{archive}", "--size=1024", f"--data_dir={tmp_path}"]
  common += ["--workers=2", "--shard_examples=1"]  # each takes some hundredths of a second
  command = [sys.executable, "-m", "tools.prepare_data", *common]
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  folder = tmp_path / "png/1024x1024/1.0.0.png.unfinished"
  until = time.monotonic() + 120
  while len(list((folder / "work/results").glob("png-*.json"))) < 3:
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.002)
  yield process, common, folder
  process.kill()
  process.communicate()


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_preparation_goes_on_where_it_was(half_way, archive, tmp_path):
  process, common, folder = half_way
  process.send_signal(signal.SIGKILL)
  process.wait()
  written = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record-?????-of-?????")}
  assert 3 <= len(written) < 50
  (folder / "work/png-train.array_record-00049-of-00050.1.part").touch()
  with pytest.raises(ValueError, match="not prepared"):  # half a data set is none
    records.find("png/1024x1024", str(tmp_path))
  assert run(*common, "--check")["checked"] == 60
  finished = tmp_path / "png/1024x1024/1.0.0"
  kept = sum((finished / path.name).stat().st_mtime_ns == time_ns for path, time_ns in written.items())
  assert kept >= 3
  names = {path.name for path in finished.iterdir()}
  others = {name for name in names if "array_record" not in name}
  assert others == {"manifest.json", "dataset_info.json", "features.json", "label.labels.txt"}
  assert len(names - others) == 60
  ours = records.Records(finished, "train", 0)
  theirs = sources.open_source(f"archive:{archive}", 1024, 256, "train")
  assert all(np.array_equal(one["image"], other["image"]) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.process
def test_a_killed_worker_ends_the_preparation_with_advice(half_way):
  process, common, folder = half_way
  os.kill(children(process)[0], signal.SIGKILL)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "error: a worker process was killed, perhaps for lack of memory; give the same command again" in stderr
  assert "Traceback" not in stderr
  assert folder.exists()
  assert run(*common)["splits"] == {"train": 50, "validation": 10}


@pytest.mark.process
def test_two_preparations_of_one_data_set_do_not_run_together(half_way):
  _, common, _ = half_way
  with pytest.raises(SystemExit, match=r"another command is writing .*unfinished; wait"):
    prepare_data.main(common)


def test_a_full_disk_is_told_with_what_is_left(tmp_path, monkeypatch):
  class Full:
    def __init__(self, path, options):
      pass

    def write(self, record):
      raise RuntimeError("write() failed: No space left on device")

  (tmp_path / "work").mkdir()
  monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
  with pytest.raises(OSError, match=r"x cannot be written \(.*No space left.*has [\d,]+ bytes left: make room"):
    shards.write_shard(tmp_path / "x", [b"record"])


def test_a_file_is_replaced_only_once_it_is_complete(tmp_path):
  path = tmp_path / "a.json"
  atomic.write_json(path, {"old": 1})
  with pytest.raises(BadImage), atomic.replacing(path) as temporary:
    temporary.write_text('{"half')
    raise BadImage("broken")
  assert json.loads(path.read_text()) == {"old": 1}
  atomic.write_json(path, {"new": 2})
  assert json.loads(path.read_text()) == {"new": 2}
  assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_is_half_written_lies_apart(tmp_path):
  def two_records_of_three():
    yield from (b"one", b"two")
    raise BadImage("broken")

  (tmp_path / "work").mkdir()
  with pytest.raises(BadImage):
    shards.write_shard(tmp_path / "x", two_records_of_three())
  assert [path.name for path in tmp_path.iterdir()] == ["work"]
  assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".part"]


def folder_of(path, splits: dict[str, int]):
  """Writes a folder of gray PNG files, 0.png and so on, each with its number as its gray value."""
  for split, count in splits.items():
    (path / split).mkdir(parents=True, exist_ok=True)
    for value in range(count):
      Image.new("L", (4, 4), value).save(path / split / f"{value}.png")
  return path


def images_of(source, tmp_path, *more):
  """The command line that prepares a source as the data set `few`."""
  arguments = ["--dataset=images", "--name=few", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
  return [*arguments, "--workers=1", *more]


@pytest.mark.process
def test_validation_and_test_splits_of_one_size_are_both_kept(tmp_path):
  path = folder_of(tmp_path / "images", {"train": 3, "val": 2, "test": 2})
  prepare_data.main(images_of(f"folder:{path}", tmp_path))
  manifest = json.loads((tmp_path / "data/few/4x4/1.0.0/manifest.json").read_text())
  assert manifest["splits"] == {"train": 3, "validation": 2, "test": 2}
  assert releases.images(f"folder:{folder_of(tmp_path / 'other', {'train': 3, 'test': 2})}", "x", 0).splits.keys() == {
    "train",
    "test",
  }


def test_a_broken_split_is_not_taken_for_a_missing_one(tmp_path):
  for name in ("train", "val"):
    shutil.make_archive(str(tmp_path / name), "zip", folder_of(tmp_path / "images" / name, {"a": 3}))
  (tmp_path / "val.zip").write_bytes((tmp_path / "val.zip").read_bytes()[:300])
  with pytest.raises(SystemExit, match=r"val\.zip is no readable"):
    prepare_data.main(images_of(f"archive:{tmp_path}/{{split}}.zip", tmp_path))
  np.savez(tmp_path / "set.npz", train_images=PIXELS, validation_images=np.zeros((3, 8, 8, 3)))
  with pytest.raises(SystemExit, match=r"validation_images is float64"):
    prepare_data.main(images_of(f"npz:{tmp_path / 'set.npz'}", tmp_path))


@pytest.mark.process
def test_sources_that_changed_are_not_mixed(tmp_path, monkeypatch):
  path = folder_of(tmp_path / "images", {"train": 4, "val": 2})
  (path / "train/2.png").write_text("no image")
  with pytest.raises(SystemExit, match=r"2\.png"):
    prepare_data.main(images_of(f"folder:{path}", tmp_path))
  Image.new("L", (4, 4), 99).save(path / "train/2.png")
  with pytest.raises(SystemExit, match=r"begun with other arguments or sources \(it differs in files\); remove it"):
    prepare_data.main(images_of(f"folder:{path}", tmp_path))
  shutil.rmtree(tmp_path / "data")
  prepare_data.main(images_of(f"folder:{path}", tmp_path))
  monkeypatch.chdir(tmp_path)
  prepare_data.main(images_of("folder:images", tmp_path))  # is the same, by a relative path
  Image.new("L", (4, 4), 98).save(path / "train/2.png")
  with pytest.raises(SystemExit, match=r"holds another data set \(it differs in files\)"):
    prepare_data.main(images_of("folder:images", tmp_path))


@pytest.mark.process
def test_an_archive_that_changed_is_another_source(archive, tmp_path):
  path = tmp_path / "set.zip"
  path.write_bytes(archive.read_bytes())
  for _ in range(2):
    prepare_data.main(images_of(f"archive:{path}", tmp_path))
  os.utime(path, (1, 1))
  with pytest.raises(SystemExit, match=r"holds another data set \(it differs in files\)"):
    prepare_data.main(images_of(f"archive:{path}", tmp_path))


@pytest.mark.process
@pytest.mark.fault(27)
def test_the_cap_covers_the_first_image_and_files_that_are_too_long(tmp_path):
  path = folder_of(tmp_path / "images", {"train": 5, "val": 1})
  (path / "train/0.png").write_text("no image")
  with (path / "train/3.png").open("wb") as file:
    file.truncate(2**28 + 1)
  with pytest.raises(SystemExit, match=r"0\.png"):
    prepare_data.main(images_of(f"folder:{path}", tmp_path, "--max_bad_images=0"))
  prepare_data.main(images_of(f"folder:{path}", tmp_path, "--max_bad_images=2"))
  opened = sources.open_source("tfds:few/4x4", 4, 256, "train", data_dir=str(tmp_path / "data"))
  assert [int(example["image"][0, 0, 0]) for example in opened] == [1, 2, 4]


@pytest.mark.process
def test_a_split_without_a_readable_image_is_refused(tmp_path):
  path = folder_of(tmp_path / "images", {"train": 3, "val": 1})
  (path / "val/0.png").write_text("no image")
  with pytest.raises(SystemExit, match="no image of the split 'validation' can be read"):
    prepare_data.main(images_of(f"folder:{path}", tmp_path, "--max_bad_images=9"))
  assert not (tmp_path / "data/few/4x4/1.0.0").exists()


@pytest.mark.process
def test_of_a_training_split_alone_some_are_written_for_validation(tmp_path):
  path = folder_of(tmp_path / "images", {"train": 30})
  prepare_data.main(images_of(f"folder:{path}", tmp_path))
  ours, theirs = (
    sources.open_splits(source, 4, 256, ["train", "validation"], data_dir=str(tmp_path / "data"))
    for source in ("tfds:few/4x4", f"folder:{path}")
  )
  for one, other in zip(ours, theirs, strict=True):
    assert [int(e["image"][0, 0, 0]) for e in one] == [int(e["image"][0, 0, 0]) for e in other]


def test_of_records_of_a_training_split_alone_some_are_held_out(tmp_path):
  pixels = tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8, encoding="bytes")
  records_of(tmp_path / "any/1.0.0", {"image": pixels}, [{"image": bytes([k] * 12)} for k in range(60)])
  train, validation = sources.open_splits("tfds:any", 0, 256, ["train", "validation"], data_dir=str(tmp_path))
  values = [[int(example["image"][0, 0, 0]) for example in examples] for examples in (train, validation)]
  assert sorted(values[0] + values[1]) == list(range(60))
  assert 1 <= len(validation) <= 9
  assert [example["index"] for example in validation] == list(range(len(validation)))
  assert validation.origin == "5% of split train, held out by a hash of the number"
  assert validation.where(0).startswith(f"record {values[1][0]} in any-train.array_record")
  assert (validation.name(0), validation.all_labels(99)) == (None, None)
  assert validation.release == "any/1.0.0"


def test_labels_of_records_are_read_up_to_a_number(tmp_path):
  features = {
    "image": tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8, encoding="bytes"),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
  }
  examples = [{"image": bytes(12 if k != 3 else 11), "label": k % 2} for k in range(40)]  # one is too short
  records_of(tmp_path / "any/1.0.0", features, examples)
  whole = sources.open_all("tfds:any", 0, str(tmp_path))
  labels = {split: examples.all_labels(40) for split, examples in whole.items()}
  assert whole["train"].all_labels(39) is None
  for split, part in whole.items():
    assert labels[split].tolist() == [-1 if number == 3 else number % 2 for number in part.numbers]


@pytest.mark.process
def test_names_that_are_no_utf8_are_kept(tmp_path):
  path = folder_of(tmp_path / "images", {"train": 2, "val": 1})
  with open(os.fsencode(path / "train") + b"/\xff.png", "wb") as file:  # noqa: PTH123
    file.write((path / "train/0.png").read_bytes())
  prepare_data.main(images_of(f"folder:{path}", tmp_path, "--check"))
  builder = tfds.builder_from_directory(tmp_path / "data/few/4x4/1.0.0")
  assert [example["name"] for example in builder.as_data_source("train")] == [b"0.png", b"1.png", b"\xff.png"]


def test_a_worker_gets_the_examples_of_its_shard_alone(archive, tmp_path):
  for source in (f"archive:{archive}", f"npz:{tmp_path / 'set.npz'}"):
    np.savez(tmp_path / "set.npz", train_images=PIXELS, train_labels=np.arange(60))
    release = releases.images(source, "set", 0)
    whole = job.Job(tmp_path, release, (8, 8, 3), "png", shard_examples=7)
    train = release.splits["train"]
    for _, _, split, k, _, examples, numbers in whole.tasks().values():
      if split == "train":
        sent = pickle.loads(pickle.dumps(examples))
        assert numbers.start == 7 * k
        for i in numbers:
          assert {n: v.tolist() for n, v in sent[i].items()} == {n: v.tolist() for n, v in train[i].items()}
        with pytest.raises(IndexError):
          sent[numbers.stop]
    assert len(pickle.dumps(whole.settings)) < 1000


@pytest.mark.parametrize(
  ("argument", "message"),
  [("--size=-4", "at least 0"), ("--size=4097", "at most 4096"), ("--max_bad_images=-4", "at least 0")],
)
def test_numbers_without_sense_are_refused(tmp_path, capsys, argument, message):
  with pytest.raises(SystemExit):
    prepare_data.main(images_of("photos", tmp_path, argument))
  assert f"{argument} must be {message}" in capsys.readouterr().err


@pytest.mark.process
def test_a_data_set_can_be_checked_without_its_source(prepared, tmp_path):
  assert run("--dataset=check", f"--source={prepared / 'png/8x8/1.0.0'}", "--workers=1")["checked"] == 60
  with pytest.raises(SystemExit, match=r"has no dataset_info\.json; give the folder of one version"):
    prepare_data.main(["--dataset=check", f"--source={prepared}"])


@pytest.mark.process
def test_another_plan_is_not_mixed_with_what_is_there(prepared, archive):
  command = ["--dataset=images", f"--source=archive:{archive}", f"--data_dir={prepared}", "--size=8"]
  with pytest.raises(SystemExit, match="holds another data set"):
    prepare_data.main([*command, "--name=png", "--encoding=raw"])


@pytest.mark.parametrize("cap", [0, 1, 2])
@pytest.mark.process
def test_unreadable_images_are_left_out_up_to_a_cap(tmp_path, cap):
  for split, values in (("train", range(6)), ("val", range(2))):
    (tmp_path / "images" / split).mkdir(parents=True)
    for value in values:
      Image.new("L", (4, 4), value).save(tmp_path / "images" / split / f"{value}.png")
  for value in (2, 4):
    (tmp_path / "images" / "train" / f"{value}.png").write_text("no image")
  arguments = ["--dataset=images", "--name=few", f"--source=folder:{tmp_path / 'images'}", "--size=4"]
  arguments += [f"--data_dir={tmp_path}", "--workers=1", "--shard_examples=3", f"--max_bad_images={cap}"]
  if cap < 2:
    with pytest.raises(SystemExit, match=r"error: .*(2|4)\.png"):
      prepare_data.main(arguments)
  else:
    prepare_data.main(arguments)
    opened = sources.open_source("tfds:few/4x4", 4, 256, "train", data_dir=str(tmp_path))
    assert [int(example["image"][0, 0, 0]) for example in opened] == [0, 1, 3, 5]
    left_out = json.loads((tmp_path / "few/4x4/1.0.0/manifest.json").read_text())["left_out"]
    assert [name in message for name, message in zip(("2.png", "4.png"), left_out, strict=True)] == [True, True]


@pytest.mark.process
@pytest.mark.fault(16)
def test_broken_shards_are_named(prepared, tmp_path):
  folder = tmp_path / "raw/8x8/1.0.0"
  folder.mkdir(parents=True)
  for file in (prepared / "raw/8x8/1.0.0").iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  cut = folder / "raw-train.array_record-00002-of-00006"
  cut.write_bytes(cut.read_bytes()[:1000])
  opened = sources.open_source("tfds:raw/8x8", 8, 256, "train", data_dir=str(tmp_path))
  assert opened[0]["image"].shape == (8, 8, 3)
  with pytest.raises(BadImage, match=f"record 20 in {cut.name}"):
    opened[20]
  with pytest.raises(BadImage, match=cut.name):
    prepare_data.check(folder, 1)
  flipped = folder / "raw-train.array_record-00003-of-00006"
  content = bytearray(flipped.read_bytes())
  content[content.index(opened[30]["image"].tobytes()[:8])] ^= 1
  flipped.write_bytes(content)
  records._data_source.cache_clear()
  with pytest.raises(BadImage, match=f"in {flipped.name}"):
    [opened[i] for i in range(27, 36)]
  cut.unlink()
  with pytest.raises(ValueError, match=f"{cut.name} is missing"):
    sources.open_source("tfds:raw/8x8", 8, 256, "train", data_dir=str(tmp_path))


@pytest.mark.process
def test_the_newest_version_counts_and_any_can_be_named(prepared, tmp_path):
  for version in ("1.0.0", "9.0.0", "10.0.0"):
    shutil.copytree(prepared / "png/8x8/1.0.0", tmp_path / "png/8x8" / version)
  assert records.find("png/8x8", str(tmp_path)).name == "10.0.0"
  assert records.find("png/8x8:9.0.0", str(tmp_path)).name == "9.0.0"


@pytest.mark.process
def test_data_sets_that_are_not_there_are_refused_with_what_there_is(prepared):
  for name, message in {
    "tfds:jpg/8x8": "is not prepared in .*, which holds png/8x8/1.0.0, raw/8x8/1.0.0",
    "tfds:png/8x8:2.0.0": "png/8x8:2.0.0' is not prepared",
  }.items():
    with pytest.raises(ValueError, match=message):
      sources.open_source(name, 8, 256, "train", data_dir=str(prepared))
  with pytest.raises(ValueError, match=r"data\.size=4, but .* holds pixels of 8x8"):
    sources.open_source("tfds:raw/8x8", 4, 256, "train", data_dir=str(prepared))


@pytest.fixture
def tfrecords(prepared, tmp_path):
  """The prepared PNG files as TFDS used to write them."""
  folder = tmp_path / "old/png/8x8/1.0.0"
  folder.mkdir(parents=True)
  for file in (prepared / "png/8x8/1.0.0").iterdir():
    if "array_record" not in file.name:
      (folder / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
  info = records.info(prepared / "png/8x8/1.0.0")
  for split in info.splits.values():
    raw = iter(records._data_source(str(prepared / "png/8x8/1.0.0"), split.name))
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
      writer = RecordWriter(str(folder / path.name.replace("array_record", "tfrecord")))
      for _ in range(length):
        writer.write(next(raw))
      writer.close()
  return folder


@pytest.mark.process
def test_tfrecords_are_refused_with_the_command_that_converts_them(tfrecords, prepared, tmp_path):
  with pytest.raises(ValueError, match="tfrecord, which can only be read from start to end") as error:
    sources.open_source("tfds:png/8x8", 8, 256, "train", data_dir=str(tmp_path / "old"))
  command = str(error.value).splitlines()[-1].replace("NEW_FOLDER", str(tmp_path / "new")).split()
  assert command[:3] == ["python", "-m", "tools.prepare_data"]
  assert run(*command[3:], "--workers=1", "--check")["checked"] == 60
  old, new = (
    sources.open_source("tfds:png/8x8", 8, 256, "train", data_dir=str(folder))
    for folder in (prepared, tmp_path / "new")
  )
  assert digest(data.train_batches(new, 16, 0)) == digest(data.train_batches(old, 16, 0))


@pytest.mark.parametrize(("at", "message"), [(3, "record 0 of .*broken header"), (-30, "record 8 of .*cut off")])
@pytest.mark.process
def test_broken_tfrecords_are_named(tfrecords, tmp_path, at, message):
  path = next(tfrecords.glob("png-train*"))
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)
  arguments = ["--dataset=tfds", f"--source={tfrecords}", f"--data_dir={tmp_path / 'new'}", "--workers=1"]
  with pytest.raises(SystemExit, match=message):
    prepare_data.main(arguments)


def test_a_tfrecord_takes_no_more_memory_than_its_file_has(tmp_path):
  length = struct.pack("<Q", 10**15)
  (tmp_path / "a.tfrecord").write_bytes(length + struct.pack("<I", masked_crc32c(length)) + b"data")
  with pytest.raises(ValueError, match=r"record 0 of .*a\.tfrecord is broken or cut off"):
    list(tfrecord.read(tmp_path / "a.tfrecord"))


@pytest.mark.process
def test_the_old_downsampled_imagenet(tmp_path):
  images = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), np.uint8)
  for split, part in (("train", images[:6]), ("valid", images[6:])):
    with tarfile.open(tmp_path / f"{split}_32x32.tar", "w") as archive:
      for k, image in enumerate(part):
        Image.fromarray(image).save(tmp_path / "one.png")
        archive.add(tmp_path / "one.png", f"{split}_32x32/{k:07}.png")
  arguments = ["--dataset=downsampled_imagenet", f"--source={tmp_path}", f"--data_dir={tmp_path}", "--workers=1"]
  prepare_data.main([*arguments, "--size=32"])
  for split, part in (("train", images[:6]), ("validation", images[6:])):
    opened = sources.open_source("tfds:downsampled_imagenet/32x32", 32, 256, split, data_dir=str(tmp_path))
    np.testing.assert_array_equal([example["image"] for example in opened], part)
    assert "label" not in opened[0]
  with pytest.raises(SystemExit, match=r"train_64x64\.tar is not in .*image-net\.org"):
    prepare_data.main([*arguments, "--size=64"])
  with pytest.raises(SystemExit, match="--size=48, but .* 32 and 64"):
    prepare_data.main([*arguments, "--size=48"])


@pytest.mark.process
def test_the_new_downsampled_imagenet_has_another_name(tmp_path):
  rng = np.random.default_rng(2)
  pixels, labels = rng.integers(0, 256, (11, 2, 3 * 32 * 32), np.uint8), rng.integers(1, 1001, (11, 2))
  members = {}
  for k in range(11):
    buffer = io.BytesIO()
    np.savez(buffer, data=pixels[k], labels=labels[k], mean=np.zeros(3072))
    members["val_data.npz" if k == 10 else f"train_data_batch_{k + 1}.npz"] = buffer.getvalue()
  arguments = ["--dataset=imagenet_resized", "--size=32", f"--source={tmp_path}", f"--data_dir={tmp_path}"]
  with zipfile.ZipFile(tmp_path / "Imagenet32_train_npz.zip", "w") as archive:
    for name in list(members)[:10]:
      archive.writestr(f"Imagenet32_train_npz/{name}", members[name])
  with pytest.raises(SystemExit, match=r"val_data\.npz of 32x32 is neither in .*image-net\.org"):
    prepare_data.main(arguments)
  (tmp_path / "32").mkdir()
  (tmp_path / "32/val_data.npz").write_bytes(members["val_data.npz"])  # unpacked works too
  for name in members:  # and beside the other size
    np.savez(tmp_path / name, data=np.zeros((1, 3 * 64 * 64), np.uint8), labels=[1])
  prepare_data.main([*arguments, "--workers=1", "--shard_examples=7"])
  opened = sources.open_source("tfds:imagenet_resized/32x32", 32, 256, "train", data_dir=str(tmp_path))
  for k, example in enumerate(opened):
    np.testing.assert_array_equal(example["image"].transpose(2, 0, 1).ravel(), pixels[k // 2, k % 2])
    assert example["label"] == labels[k // 2, k % 2] - 1


def write_cifar(path, kind, pixels, labels):
  """Writes the release of CIFAR-10 that is called so. `pixels`: uint8 (6, N, 3072)."""
  with tarfile.open(path / f"cifar-10-{kind}.tar.gz", "w:gz") as archive:
    for k in range(6):
      name = f"data_batch_{k + 1}" if k < 5 else "test_batch"
      if kind == "python":
        values = {b"data": pixels[k], b"labels": labels[k].tolist(), b"batch_label": b"x"}
        content = pickle.dumps(values, protocol=2)
      else:
        content = np.concatenate([labels[k][:, None].astype(np.uint8), pixels[k]], axis=1).tobytes()
      member = tarfile.TarInfo(f"cifar/{name}{'.bin' if kind == 'binary' else ''}")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.process
def test_cifar10_from_either_release(tmp_path, kind):
  rng = np.random.default_rng(3)
  pixels, labels = rng.integers(0, 256, (6, 4, 3072), np.uint8), rng.integers(0, 10, (6, 4))
  arguments = ["--dataset=cifar10", f"--source={tmp_path}", f"--data_dir={tmp_path}", "--workers=1"]
  with pytest.raises(SystemExit, match=r"neither cifar-10-python\.tar\.gz nor .*kriz/cifar"):
    prepare_data.main(arguments)
  write_cifar(tmp_path, kind, pixels, labels)
  prepare_data.main([*arguments, "--encoding=raw"])
  train, validation = sources.open_splits("tfds:cifar10", 32, 256, ["train", "validation"], data_dir=str(tmp_path))
  assert [len(train), len(validation)] == [20, 4]  # CIFAR-10 has no validation split: its test split stands in
  assert train.classes[1] == "automobile"
  np.testing.assert_array_equal(train[5]["image"].transpose(2, 0, 1).ravel(), pixels[1, 1])
  assert [int(example["label"]) for example in validation] == labels[5].tolist()


@pytest.mark.fault(27)
def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path):
  class Hostile:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "touched",)

  content = pickle.dumps({b"data": Hostile(), b"labels": []}, protocol=2)
  with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
    member = tarfile.TarInfo("data_batch_1")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
  with pytest.raises(SystemExit, match="the pickle asks for"):
    prepare_data.main(["--dataset=cifar10", f"--source={tmp_path}", f"--data_dir={tmp_path}"])
  assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", ["html", "truncated", "garbage", "few bytes"])
def test_a_broken_cifar10_release_is_refused_by_name(tmp_path, content):
  path = tmp_path / "cifar-10-python.tar.gz"
  pixels = np.random.default_rng(4).integers(0, 256, (6, 90, 3072), np.uint8)
  write_cifar(tmp_path, "python", pixels, np.zeros((6, 90), int))
  if content == "html":
    path.write_text("<html>not found</html>" * 99)
  elif content == "truncated":
    path.write_bytes(path.read_bytes()[:100_000])
  else:
    data = {"garbage": b"no pickle", "few bytes": pickle.dumps({b"data": b"x", b"labels": []})}[content]
    with tarfile.open(path, "w:gz") as archive:
      member = tarfile.TarInfo("data_batch_1")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  with pytest.raises(SystemExit, match=r"error: .*cifar-10-python\.tar\.gz is broken .* get it again from"):
    prepare_data.main(["--dataset=cifar10", f"--source={tmp_path}", f"--data_dir={tmp_path}"])


@pytest.mark.parametrize("name", ["Imagenet32_train_npz.zip", "train_data_batch_1.npz"])
def test_a_broken_imagenet_release_is_refused_by_name(tmp_path, name):
  (tmp_path / name).write_bytes(b"PK")
  with pytest.raises(SystemExit, match=f"error: .*{name} is broken .* get it again from"):
    prepare_data.main(["--dataset=imagenet_resized", "--size=32", f"--source={tmp_path}", f"--data_dir={tmp_path}"])


@pytest.mark.fault(27)
def test_a_member_of_a_release_that_is_too_long_is_not_read(tmp_path, monkeypatch):
  write_cifar(tmp_path, "binary", np.zeros((6, 1, 3072), np.uint8), np.zeros((6, 1), int))
  np.savez(tmp_path / "a.npz", data=np.zeros((1, 3072), np.uint8), labels=[1])
  with zipfile.ZipFile(tmp_path / "Imagenet32_train_npz.zip", "w") as archive:
    for name in (*(f"train_data_batch_{k}.npz" for k in range(1, 11)), "val_data.npz"):
      archive.write(tmp_path / "a.npz", name)
  for module, read, limit in (
    (cifar, cifar.cifar10, "MAX_BYTES"),
    (imagenet_npz, imagenet_npz.imagenet_resized, "MAX_BATCH_BYTES"),
  ):
    train = read(tmp_path, 32).splits["train"]
    place = {cifar: "image 1 of the training batches of ", imagenet_npz: "image 0 in "}[module]
    assert train.where(1).startswith(f"{place}{tmp_path}/")  # each batch has one image
    imagenet_npz._read_batch.cache_clear()
    monkeypatch.setattr(module, limit, 3000)
    with pytest.raises(ValueError, match=r"is broken .* bytes, more than 3,?000.*get it again"):
      read(tmp_path, 32)


def write_records(folder, features, example):
  """A data set of one record of any features."""
  records_of(folder, features, [example])


def records_of(folder, features, examples):
  """A data set of a training split alone, of any features."""
  (folder / "work").mkdir(parents=True)
  features = tfds.features.FeaturesDict(features)
  serializer = ExampleSerializer(features.get_serialized_info())
  written = shards.write_shard(
    folder / "any-train.array_record-00000-of-00001", map(serializer.serialize_example, examples)
  )
  shards.write_metadata(folder, "any", "1.0.0", features, {"train": [written]})


def test_data_sets_of_others_need_an_image_and_may_have_any_label(tmp_path):
  pixels = tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8, encoding="bytes")
  for k, label in enumerate((np.int64, tfds.features.Text(), tfds.features.Sequence(np.int64))):
    value = [3, np.bytes_(b"x"), [1, 2]][k]
    write_records(tmp_path / f"{k}/any/1.0.0", {"image": pixels, "label": label}, {"image": bytes(12), "label": value})
    opened = sources.open_source("tfds:any", 0, 256, "train", data_dir=str(tmp_path / str(k)))
    assert opened[0].keys() == {"image", "index"}
    assert opened.classes == []
  write_records(tmp_path / "x/any/1.0.0", {"picture": pixels}, {"picture": bytes(12)})
  with pytest.raises(ValueError, match=r"any/1\.0\.0 has no feature 'image', only picture"):
    sources.open_source("tfds:any", 0, 256, "train", data_dir=str(tmp_path / "x"))


@pytest.mark.process
def test_broken_metadata_is_refused_by_name(prepared, tmp_path):
  for name in ("dataset_info.json", "features.json"):
    folder = tmp_path / name
    shutil.copytree(prepared / "png/8x8/1.0.0", folder / "png/8x8/1.0.0")
    (folder / "png/8x8/1.0.0" / name).write_text('{"half')
    with pytest.raises(ValueError, match=rf"the metadata in {folder}/png/8x8/1\.0\.0 cannot be read"):
      sources.open_source("tfds:png/8x8", 8, 256, "train", data_dir=str(folder))


@pytest.mark.process
def test_imagenet21k_is_resized_and_holds_out_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr("tools.preparing.releases.HELD_OUT_21K", 0.2)
  with tarfile.open(tmp_path / "winter21_whole.tar", "w") as whole:
    for k in range(2):
      with tarfile.open(tmp_path / f"n{k}.tar", "w") as archive:
        for j in range(10):
          Image.new("RGB", (50 + j, 40), (k, j, 0)).save(tmp_path / "one.png")
          archive.add(tmp_path / "one.png", f"n{k}_{j}.JPEG")
      whole.add(tmp_path / f"n{k}.tar", f"winter21_whole/n{k}.tar")
  arguments = ["--dataset=imagenet21k", "--size=16", f"--source={tmp_path}", f"--data_dir={tmp_path}", "--workers=1"]
  prepare_data.main(arguments)
  splits = sources.open_splits("tfds:imagenet21k/16x16", 16, 256, ["train", "validation"], data_dir=str(tmp_path))
  seen = [tuple(example["image"][0, 0]) for opened in splits for example in opened]
  assert sorted(seen) == [(k, j, 0) for k in range(2) for j in range(10)]
  assert 1 <= len(splits[1]) <= 9
  assert splits[0].classes == ["n0", "n1"]
  assert all(example["label"] == example["image"][0, 0, 0] for opened in splits for example in opened)
