"""Writes images as a data set of TensorFlow Datasets in array_record files: random access, and no decoding if asked.

python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
python -m tools.prepare_data --dataset=images --name=birds --source=archive:birds.zip --size=64 --data_dir=DATA

Then train with `--config.data.source=tfds:birds/64x64 --config.data.data_dir=DATA`. The same command again after a kill
goes on where it was; with --check it also reads and decodes every record of the finished data set, as this does later:

python -m tools.prepare_data --dataset=check --source=DATA/birds/64x64/1.0.0
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jet_jax.data import image_folder, records, sources
from jet_jax.data.archives import Folder
from jet_jax.data.decode import BadImage
from tools.preparing import process_pool, releases, shards, staging, tfrecord

VERSION = "1.0.0"
MAX_SIZE = 4096
RELEASES = {
  "downsampled_imagenet": releases.downsampled_imagenet,
  "imagenet_resized": releases.imagenet_resized,
  "cifar10": releases.cifar10,
  "imagenet21k": releases.imagenet21k,
}


@dataclasses.dataclass
class Form:
  """What a record looks like, and all else that a worker process has to know."""

  folder: pathlib.Path  # of the unfinished data set
  name: str
  shape: tuple[int, int, int]
  encoding: str  # "png" or "raw"
  classes: list[str]  # names of the labels; of a split without labels each is -1
  max_bad_images: int

  @functools.cached_property
  def features(self):
    """The TFDS schema of a record."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    features: dict[str, Any] = {"name": tfds.features.Text()}
    if self.encoding == "png":
      features["image"] = tfds.features.Image(shape=self.shape, encoding_format="png")
    else:
      features["image"] = tfds.features.Tensor(shape=self.shape, dtype=np.uint8, encoding="bytes")
    if self.classes:
      features["label"] = tfds.features.ClassLabel(names=self.classes)
    return tfds.features.FeaturesDict(features)


@dataclasses.dataclass
class Job:
  """A data set that is to be written."""

  folder: pathlib.Path  # while it is unfinished
  release: releases.Release
  shape: tuple[int, int, int]
  encoding: str  # "png" or "raw"
  shard_examples: int = 8192
  max_bad_images: int = 0

  @functools.cached_property
  def form(self) -> Form:
    """What worker processes have to know."""
    classes = max((list(examples.classes) for examples in self.release.splits.values()), key=len)
    return Form(self.folder, self.release.name, self.shape, self.encoding, classes, self.max_bad_images)

  @functools.cached_property
  def shards(self) -> list[tuple[str, int, int]]:
    """(split, number of the shard, number of shards of this split)."""
    counts = {split: -(-len(examples) // self.shard_examples) for split, examples in self.release.splits.items()}
    return [(split, k, count) for split, count in counts.items() for k in range(count)]

  def tasks(self) -> dict[str, tuple]:
    """For `process_pool.run`, by the names of the shards. Each has its own examples alone: names are large."""
    tasks: dict[str, tuple] = {}
    for split, k, count in self.shards:
      examples = self.release.splits[split]
      part = range(k * self.shard_examples, min((k + 1) * self.shard_examples, len(examples)))
      own = examples.only(part) if hasattr(examples, "only") else examples
      tasks[shard_name(self.release.name, split, k, count)] = (write_shard, split, k, count, own, part)
    return tasks

  def plan(self) -> dict[str, Any]:
    """What must not change between a kill and its continuation."""
    return {
      "image_shape": list(self.shape),
      "encoding": self.encoding,
      "shard_examples": self.shard_examples,
      "examples": {split: len(examples) for split, examples in self.release.splits.items()},
      "files": [[str(file), *state_of(file)] for file in self.release.files],
    }


def write_shard(form: Form, split: str, k: int, count: int, examples, part: range) -> dict[str, Any]:
  """Writes one shard. Returns its number of examples and bytes, and the images that were left out."""
  bad: list[str] = []
  path = form.folder / shard_name(form.name, split, k, count)
  return shards.write_shard(path, _serialized(form, split, examples, part, bad)) | {"bad": bad}


def _serialized(form: Form, split: str, examples, part: range, bad: list[str]) -> Iterator[bytes]:
  """Records of these examples. Those that cannot be read are left out, and what is wrong with them put into `bad`."""
  from tensorflow_datasets.core.example_serializer import ExampleSerializer  # noqa: PLC0415

  serializer = ExampleSerializer(form.features.get_serialized_info())  # type: ignore
  for i in part:
    try:
      example = examples[i]
      if example["image"].shape != form.shape:
        where = examples.where(i) if hasattr(examples, "where") else f"image {i} of {split}"
        raise BadImage(f"{where} is {example['image'].shape} and the first image {form.shape}; give --size")
    except BadImage as error:
      bad.append(str(error))
      if len(bad) > form.max_bad_images:
        raise
      continue
    name = examples.files.names[i] if isinstance(examples, image_folder.Images) else f"{split}_{i}"
    values: dict[str, Any] = {"name": image_folder.encoded(name)}
    values["image"] = _png(example["image"]) if form.encoding == "png" else example["image"].tobytes()
    if form.classes:
      values["label"] = int(example.get("label", -1))
    yield serializer.serialize_example(values)


def state_of(path: pathlib.Path) -> list:
  """What changes when a file does, or any image file of a folder: size and time, of a folder a SHA-256 of them."""
  if path.is_file():
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
  digest = hashlib.sha256()
  for name, file in Folder(path).paths():
    try:
      status = pathlib.Path(file).stat()
    except OSError:
      continue  # it is read later, as an image that is unreadable
    digest.update(image_folder.encoded(f"{status.st_size} {status.st_mtime_ns}  {name}\n"))
  return [digest.hexdigest()]


def hash_file(_, path: pathlib.Path) -> dict[str, Any]:
  """Size and SHA-256 of a file, or of all image files of a folder: of its lines "SHA-256 of the file, name"."""
  if path.is_file():
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
  digest, total, count = hashlib.sha256(), 0, 0
  for name, file in Folder(path).paths():
    try:
      line = f"{_sha256(file)}  {name}\n"
      total += pathlib.Path(file).stat().st_size
    except OSError:
      line = f"unreadable  {name}\n"  # whether that may be is for `max_bad_images` to say
    digest.update(image_folder.encoded(line))
    count += 1
  return {"file": path.name, "files": count, "bytes": total, "sha256": digest.hexdigest()}


def _sha256(path: str | pathlib.Path) -> str:
  with pathlib.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(name: str, split: str, k: int, count: int) -> str:
  """The file name that TFDS expects of shard k of `count`."""
  return f"{name.partition('/')[0]}-{split}.array_record-{k:05d}-of-{count:05d}"


def prepare(job: Job, folder: pathlib.Path, processes: int) -> dict[str, Any]:
  """Writes the data set `folder`, which appears there when it is whole. Returns its manifest."""
  plan = json.loads(json.dumps(job.plan()))  # as it looks when it is read again
  if (manifest := staging.finished(folder, plan)) is not None:
    return manifest
  with staging.taken_up(job.folder, plan) as results_folder:
    hashes = {f"sha256-{k}": (hash_file, file) for k, file in enumerate(job.release.files)}
    results = process_pool.run(hashes | job.tasks(), job.form, processes, results_folder)
    written = collections.defaultdict(list)
    for split, k, count in job.shards:
      written[split].append(results[shard_name(job.release.name, split, k, count)])
    bad = [message for parts in written.values() for part in parts for message in part["bad"]]
    if len(bad) > job.max_bad_images:
      raise BadImage(f"{len(bad)} unreadable images, more than --max_bad_images={job.max_bad_images}: {bad[:3]} ...")
    for split, parts in written.items():
      if not any(part["examples"] for part in parts):
        raise BadImage(f"no image of the split {split!r} can be read: {bad[:3]} ...; repair some, or remove the split")
    shards.write_metadata(job.folder, job.release.name, VERSION, job.form.features, written)
    more = {"sources": [results[name] for name in hashes], "rule": job.release.rule, "left_out": bad}
    return staging.publish(job.folder, folder, plan, written, more)


def convert(source: pathlib.Path, data_dir: pathlib.Path, processes: int) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes a TFDS data set that is in TFRecord files as array_record. Returns its folder and manifest."""
  found = tfrecord.find_shards(source)
  info = records.info(source)
  files = [[path, *state_of(pathlib.Path(path))] for parts in found.values() for path, _, _ in parts]
  plan = {"source": str(source), "files": files}
  name = f"{info.name}/{info.config_name}" if info.config_name else info.name
  folder = data_dir.absolute() / name / str(info.version)
  if (manifest := staging.finished(folder, plan)) is not None:
    return folder, manifest
  unfinished_folder = folder.with_name(f"{info.version}.unfinished")
  with staging.taken_up(unfinished_folder, plan) as results_folder:
    converted = tfrecord.run(found, unfinished_folder, processes, results_folder)
    shards.write_metadata(unfinished_folder, name, str(info.version), info.features, converted)
    more = {"sources": [], "rule": "records copied as they were", "left_out": []}
    return folder, staging.publish(unfinished_folder, folder, plan, converted, more)


def check(folder: pathlib.Path, processes: int) -> int:
  """Reads and decodes every record of a data set. Returns their number; raises BadImage for a broken one."""
  if not (folder / "dataset_info.json").is_file():
    raise ValueError(f"{folder} has no dataset_info.json; give the folder of one version of a data set")
  tasks = {}
  for split, info in records.info(folder).splits.items():
    opened = records.Records(folder, split, 0)
    if len(opened) != info.num_examples:
      raise ValueError(f"{folder}: split {split} has {len(opened)} records, its metadata says {info.num_examples}")
    parts = range(0, len(opened), 4096)
    tasks |= {
      f"{split} {start}": (_check_part, opened, range(start, min(start + 4096, len(opened)))) for start in parts
    }
  return sum(process_pool.run(tasks, None, processes).values())


def _check_part(_, opened: records.Records, part: range) -> int:
  return sum(opened[i]["image"].size > 0 for i in part)


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
  return buffer.getvalue()


def parse_arguments(argv) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m tools.prepare_data", description="Images to array_record.")
  parser.add_argument("--dataset", required=True, choices=[*RELEASES, "images", "tfds", "check"])
  parser.add_argument(
    "--source",
    required=True,
    help="folder of the release; for images a data.source; for tfds and check the folder of a version of a data set",
  )
  parser.add_argument("--data_dir", type=pathlib.Path, help="where prepared data sets lie")
  parser.add_argument("--size", type=int, default=0, help="side in pixels; 0 keeps the size")
  parser.add_argument("--name", help="of the data set, for --dataset=images")
  parser.add_argument("--encoding", choices=("png", "raw"), default="png", help="raw is larger and read faster")
  parser.add_argument("--max_bad_images", type=int, default=0, help="unreadable images that may be left out")
  parser.add_argument("--shard_examples", type=int, default=Job.shard_examples)
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--check", action="store_true", help="read and decode every record in the end")
  args = parser.parse_args(argv)
  if (args.dataset == "images") != bool(args.name):
    parser.error("--name belongs to --dataset=images, which needs it")
  if (args.dataset == "check") != (args.data_dir is None):
    parser.error("--data_dir belongs to all but --dataset=check, and is needed there")
  if args.name and not re.fullmatch(r"[a-z]\w*", args.name):
    parser.error(f"--name={args.name} must be made of small letters, digits and _, as TFDS has it; for example birds")
  for name, least in (("workers", 1), ("shard_examples", 1), ("size", 0), ("max_bad_images", 0)):
    if getattr(args, name) < least:
      parser.error(f"--{name}={getattr(args, name)} must be at least {least}")
  if args.size > MAX_SIZE:
    parser.error(f"--size={args.size} must be at most {MAX_SIZE}; 32 and 64 are usual")
  return args


def prepare_release(args: argparse.Namespace) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes what the command line asks for, unless it is there. Returns its folder and manifest."""
  if args.dataset == "images":
    release = releases.images(args.source, args.name, args.size)
  else:
    release = RELEASES[args.dataset](pathlib.Path(args.source).absolute(), args.size)
  shape = sources.readable(release.splits["train"], 0, args.max_bad_images)[0]["image"].shape
  if args.dataset == "images":
    release.name += f"/{shape[0]}x{shape[1]}"
  folder = args.data_dir.absolute() / release.name / VERSION
  unfinished_folder = folder.with_name(f"{VERSION}.{args.encoding}.unfinished")
  job = Job(unfinished_folder, release, shape, args.encoding, args.shard_examples, args.max_bad_images)
  return folder, prepare(job, folder, args.workers)


def main(argv=None) -> None:
  """Prepares or checks a data set and prints one JSON object."""
  args = parse_arguments(argv)
  source = pathlib.Path(args.source).absolute()
  try:
    if args.dataset == "check":
      folder, manifest = source, {}
    elif args.dataset == "tfds":
      folder, manifest = convert(source, args.data_dir, args.workers)
    else:
      folder, manifest = prepare_release(args)
    checked = check(folder, args.workers) if args.check or args.dataset == "check" else None
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  counts = {name: manifest[name] for name in ("splits", "left_out") if name in manifest}
  print(json.dumps({"dataset": str(folder), **counts, "checked": checked}))


if __name__ == "__main__":
  main()
