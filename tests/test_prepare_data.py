"""Prepared data sets are those that went in, whatever happens on the way."""

import hashlib
import io
import json
import pathlib
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from jet_jax import data, records, sources
from jet_jax.images import BadImage
from tools import prepare_data

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


def test_batches_are_the_same_from_the_archive_and_from_records(prepared, archive):
  digests = {digest(data.train_batches(source, 16, 3, flip=True)) for source in open_all(prepared, archive, "train")}
  assert len(digests) == 1
  for split in ("train", "validation"):
    for ours, theirs in zip(*open_all(prepared, archive, split)[:2], strict=True):
      assert {name: value.tolist() for name, value in ours.items()} == {n: v.tolist() for n, v in theirs.items()}


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


def test_the_manifest_tells_what_went_in(prepared, archive):
  manifest = json.loads((prepared / "png/8x8/1.0.0/manifest.json").read_text())
  (source,) = manifest["sources"]
  assert source["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
  assert source["bytes"] == archive.stat().st_size
  assert manifest["splits"] == {"train": 50, "validation": 10}
  assert manifest["left_out"] == []
  assert "averaging over area" in manifest["rule"]
  assert set(manifest["versions"]) == set(prepare_data.LIBRARIES)


def test_a_killed_preparation_goes_on_where_it_was(archive, prepared, tmp_path):
  common = ["--dataset=images", "--name=png", f"--source=archive:{archive}", "--size=8", f"--data_dir={tmp_path}"]
  command = [sys.executable, "-m", "tools.prepare_data", *common, "--workers=1", "--shard_examples=9"]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  unfinished = tmp_path / "png/8x8/1.0.0.png.unfinished"
  until = time.monotonic() + 120
  while len(list((unfinished / "done").glob("png-*.json"))) < 3:
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  if not unfinished.exists():
    pytest.skip("it finished before the kill")
  written = {path: path.stat().st_mtime_ns for path in unfinished.glob("*.array_record-?????-of-?????")}
  with pytest.raises(ValueError, match="not prepared"):  # half a data set is none
    records.find("png/8x8", str(tmp_path))
  assert run(*common, "--workers=2", "--shard_examples=9", "--check")["checked"] == 60
  finished = tmp_path / "png/8x8/1.0.0"
  kept = sum((finished / path.name).stat().st_mtime_ns == time_ns for path, time_ns in written.items())
  assert kept >= 3
  names = sorted(path.name for path in (prepared / "png/8x8/1.0.0").iterdir())
  assert sorted(path.name for path in finished.iterdir()) == names
  ours, theirs = (records.Records(folder / "png/8x8/1.0.0", "train", 0) for folder in (tmp_path, prepared))
  assert all(np.array_equal(one["image"], other["image"]) for one, other in zip(ours, theirs, strict=True))


def test_another_plan_is_not_mixed_with_what_is_there(prepared, archive):
  command = ["--dataset=images", f"--source=archive:{archive}", f"--data_dir={prepared}", "--size=8"]
  with pytest.raises(SystemExit, match="holds another data set"):
    prepare_data.main([*command, "--name=png", "--encoding=raw"])


@pytest.mark.parametrize("cap", [0, 1, 2])
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
  cut.unlink()
  with pytest.raises(ValueError, match=f"{cut.name} is missing"):
    sources.open_source("tfds:raw/8x8", 8, 256, "train", data_dir=str(tmp_path))


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
def test_broken_tfrecords_are_named(tfrecords, tmp_path, at, message):
  path = next(tfrecords.glob("png-train*"))
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)
  arguments = ["--dataset=tfds", f"--source={tfrecords}", f"--data_dir={tmp_path / 'new'}", "--workers=1"]
  with pytest.raises(SystemExit, match=message):
    prepare_data.main(arguments)


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
  with pytest.raises(SystemExit, match=r"val_data\.npz is neither in .*image-net\.org"):
    prepare_data.main(arguments)
  (tmp_path / "val_data.npz").write_bytes(members["val_data.npz"])  # unpacked works too
  prepare_data.main([*arguments, "--workers=1", "--shard_examples=7"])
  opened = sources.open_source("tfds:imagenet_resized/32x32", 32, 256, "train", data_dir=str(tmp_path))
  for k, example in enumerate(opened):
    np.testing.assert_array_equal(example["image"].transpose(2, 0, 1).ravel(), pixels[k // 2, k % 2])
    assert example["label"] == labels[k // 2, k % 2] - 1


def cifar(path, kind, pixels, labels):
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
def test_cifar10_from_either_release(tmp_path, kind):
  rng = np.random.default_rng(3)
  pixels, labels = rng.integers(0, 256, (6, 4, 3072), np.uint8), rng.integers(0, 10, (6, 4))
  arguments = ["--dataset=cifar10", f"--source={tmp_path}", f"--data_dir={tmp_path}", "--workers=1"]
  with pytest.raises(SystemExit, match=r"neither cifar-10-python\.tar\.gz nor .*kriz/cifar"):
    prepare_data.main(arguments)
  cifar(tmp_path, kind, pixels, labels)
  prepare_data.main([*arguments, "--encoding=raw"])
  train, validation = sources.open_splits("tfds:cifar10", 32, 256, ["train", "validation"], data_dir=str(tmp_path))
  assert [len(train), len(validation)] == [20, 4]  # CIFAR-10 has no validation split: its test split stands in
  assert train.classes[1] == "automobile"
  np.testing.assert_array_equal(train[5]["image"].transpose(2, 0, 1).ravel(), pixels[1, 1])
  assert [int(example["label"]) for example in validation] == labels[5].tolist()


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


def test_imagenet21k_is_resized_and_holds_out_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr("tools.releases.HELD_OUT_21K", 0.2)
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
