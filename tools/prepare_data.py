"""Writes images as a data set of TensorFlow Datasets in array_record files: random access, and no decoding if asked.

python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
python -m tools.prepare_data --dataset=images --name=birds --source=archive:birds.zip --size=64 --data_dir=DATA

Then train with `--config.data.source=tfds:birds/64x64 --config.data.data_dir=DATA`. The same command again after a kill
goes on where it was; with --check it also reads and decodes every record of the finished data set.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from jet_jax import records
from jet_jax.files import open_files
from jet_jax.images import BadImage
from tools import releases, tfrecord, workers

VERSION = "1.0.0"
RELEASES = {
  "downsampled_imagenet": releases.downsampled_imagenet,
  "imagenet_resized": releases.imagenet_resized,
  "cifar10": releases.cifar10,
  "imagenet21k": releases.imagenet21k,
}
LIBRARIES = ("numpy", "pillow", "array_record", "tensorflow-datasets")


@dataclasses.dataclass
class Job:
  """All that a worker process needs to write any shard."""

  folder: pathlib.Path  # of the unfinished data set
  release: releases.Release
  shape: tuple[int, int, int]
  encoding: str  # "png" or "raw"
  shard_examples: int = 8192
  max_bad_images: int = 0

  @functools.cached_property
  def shards(self) -> list[tuple[str, int, int]]:
    """(split, number of the shard, number of shards of this split)."""
    counts = {split: -(-len(examples) // self.shard_examples) for split, examples in self.release.splits.items()}
    return [(split, k, count) for split, count in counts.items() for k in range(count)]

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

  @functools.cached_property
  def classes(self) -> list[str]:
    """Names of the labels; of a split without labels each is -1."""
    return max((list(examples.classes) for examples in self.release.splits.values()), key=len)

  def plan(self) -> dict[str, Any]:
    """What must not change between a kill and its continuation."""
    return {
      "image_shape": list(self.shape),
      "encoding": self.encoding,
      "shard_examples": self.shard_examples,
      "examples": {split: len(examples) for split, examples in self.release.splits.items()},
      "files": [[str(file), _size(file)] for file in self.release.files],
    }


def write_shard(job: Job, shard: tuple[str, int, int]) -> dict[str, Any]:
  """Writes one shard, all at once. Returns its number of examples and bytes, and the images that were left out."""
  from tensorflow_datasets.core.example_serializer import ExampleSerializer  # noqa: PLC0415

  serializer = ExampleSerializer(job.features.get_serialized_info())  # type: ignore
  split, k, _ = shard
  examples = job.release.splits[split]
  path = job.folder / shard_name(job.release.name, shard)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
  writer = ArrayRecordWriter(str(temporary), "group_size:1")  # one record a chunk: fast at random
  count, bad = 0, []
  for i in range(k * job.shard_examples, min((k + 1) * job.shard_examples, len(examples))):
    try:
      example = examples[i]
      if example["image"].shape != job.shape:
        raise BadImage(f"image {i} is {example['image'].shape} and the first one {job.shape}; give --size")
    except BadImage as error:
      bad.append(str(error))
      if len(bad) > job.max_bad_images:
        raise
      continue
    values: dict[str, Any] = {"name": examples.names[i] if hasattr(examples, "names") else f"{split}_{i}"}
    values["image"] = _png(example["image"]) if job.encoding == "png" else example["image"].tobytes()
    if job.classes:
      values["label"] = int(example.get("label", -1))
    writer.write(serializer.serialize_example(values))
    count += 1
  writer.close()
  temporary.replace(path)
  return {"examples": count, "bytes": path.stat().st_size, "bad": bad}


def hash_file(_, path: pathlib.Path) -> dict[str, Any]:
  """Size and SHA-256 of a file, or of all image files of a folder: of its lines "SHA-256 of the file, name"."""
  if path.is_file():
    with path.open("rb") as file:
      return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
      }
  digest, total = hashlib.sha256(), 0
  files = open_files(path)
  for name, data in zip(files.names, files, strict=True):
    total += len(data)
    digest.update(f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode())
  return {"file": path.name, "files": len(files), "bytes": total, "sha256": digest.hexdigest()}


def shard_name(name: str, shard: tuple[str, int, int]) -> str:
  """The file name that TFDS expects."""
  split, k, count = shard
  return f"{name.partition('/')[0]}-{split}.array_record-{k:05d}-of-{count:05d}"


def prepare(job: Job, folder: pathlib.Path, processes: int) -> dict[str, Any]:
  """Writes the data set `folder`, which appears there when it is whole. Returns its manifest."""
  plan = json.loads(json.dumps(job.plan()))  # as it looks when it is read again
  if (manifest := _finished(folder, plan)) is not None:
    return manifest
  keep = _begin(job.folder, folder, plan)
  tasks: dict[str, tuple] = {f"sha256-{k}": (hash_file, file) for k, file in enumerate(job.release.files)}
  tasks |= {shard_name(job.release.name, shard): (write_shard, shard) for shard in job.shards}
  results = workers.run(tasks, job, processes, keep)

  shards = collections.defaultdict(list)
  for shard in job.shards:
    shards[shard[0]].append(results[shard_name(job.release.name, shard)])
  bad = [message for parts in shards.values() for part in parts for message in part["bad"]]
  if len(bad) > job.max_bad_images:
    raise BadImage(f"{len(bad)} unreadable images, more than --max_bad_images={job.max_bad_images}: {bad[:3]} ...")
  write_metadata(job.folder, job.release.name, VERSION, job.features, shards)
  sources_read = [results[f"sha256-{k}"] for k in range(len(job.release.files))]
  return _finish(job.folder, folder, plan, shards, {"sources": sources_read, "rule": job.release.rule, "left_out": bad})


def convert(source: pathlib.Path, data_dir: pathlib.Path, processes: int) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes a TFDS data set that is in TFRecord files as array_record. Returns its folder and manifest."""
  shards = tfrecord.shards(source)
  info = records.info(source)
  plan = {"source": str(source), "shards": {split: len(parts) for split, parts in shards.items()}}
  name = f"{info.name}/{info.config_name}" if info.config_name else info.name
  folder = data_dir.absolute() / name / str(info.version)
  if (manifest := _finished(folder, plan)) is not None:
    return folder, manifest
  unfinished = folder.with_name(f"{info.version}.unfinished")
  keep = _begin(unfinished, folder, plan)
  converted = tfrecord.run(source, unfinished, processes, keep)
  write_metadata(unfinished, name, str(info.version), info.features, converted)
  more = {"sources": [], "rule": "records copied as they were", "left_out": []}
  return folder, _finish(unfinished, folder, plan, converted, more)


def _finished(folder: pathlib.Path, plan: dict) -> dict[str, Any] | None:
  """The manifest of a data set that this plan has made already. ValueError if something else lies there."""
  if not folder.exists():
    return None
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text()) if path.is_file() else {}
  if manifest.get("plan") != plan:
    raise ValueError(f"{folder} holds another data set; use another --data_dir or --name, or remove it")
  return manifest


def _begin(unfinished: pathlib.Path, folder: pathlib.Path, plan: dict) -> pathlib.Path:
  """Makes the folder of the unfinished data set, or takes up the one that a kill has left. Returns where results go."""
  path, keep = unfinished / "plan.json", unfinished / "done"
  keep.mkdir(parents=True, exist_ok=True)
  if path.exists() and json.loads(path.read_text()) != plan:
    raise ValueError(f"{unfinished} was begun with other arguments or sources: {path.read_text()}; remove it")
  workers.write_json(path, plan)
  for leftover in unfinished.glob("*.part"):
    leftover.unlink()
  return keep


def _finish(unfinished, folder, plan, shards, more: dict) -> dict[str, Any]:
  manifest = {
    **more,
    "splits": {split: sum(part["examples"] for part in parts) for split, parts in shards.items()},
    "plan": plan,
    "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
  }
  workers.write_json(unfinished / "manifest.json", manifest)
  shutil.rmtree(unfinished / "done")
  (unfinished / "plan.json").unlink()
  unfinished.rename(folder)
  return manifest


def write_metadata(folder: pathlib.Path, name: str, version: str, features, shards: dict[str, list[dict]]) -> None:
  """The files that make a folder of shards a TFDS data set. `shards`: split -> "examples" and "bytes" of each shard."""
  import tensorflow_datasets as tfds  # noqa: PLC0415
  from tensorflow_datasets.core import dataset_info, file_adapters  # noqa: PLC0415

  name, _, config = name.partition("/")
  identity = dataset_info.DatasetIdentity(
    name=name,
    version=tfds.core.Version(version),
    data_dir=str(folder),
    module_name="",
    config_name=config or None,
  )
  info = dataset_info.DatasetInfo(builder=identity, features=features)
  info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
  splits = []
  for split, parts in shards.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,  # type: ignore
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      dataset_name=name,
      split=split,
      filetype_suffix="array_record",
    )
    lengths = [part["examples"] for part in parts]
    total = sum(part["bytes"] for part in parts)
    splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template))
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(folder)


def check(folder: pathlib.Path, processes: int) -> int:
  """Reads and decodes every record of a data set. Returns their number; raises BadImage for a broken one."""
  tasks = {}
  for split, info in records.info(folder).splits.items():
    opened = records.Records(folder, split, 0)
    if len(opened) != info.num_examples:
      raise ValueError(f"{folder}: split {split} has {len(opened)} records, its metadata says {info.num_examples}")
    parts = range(0, len(opened), 4096)
    tasks |= {
      f"{split} {start}": (_check_part, opened, range(start, min(start + 4096, len(opened)))) for start in parts
    }
  return sum(workers.run(tasks, None, processes).values())


def _check_part(_, opened: records.Records, part: range) -> int:
  return sum(opened[i]["image"].size > 0 for i in part)


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
  return buffer.getvalue()


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() else -1


def parse_arguments(argv) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m tools.prepare_data", description="Images to array_record.")
  parser.add_argument("--dataset", required=True, choices=[*RELEASES, "images", "tfds"])
  parser.add_argument(
    "--source", required=True, help="folder of the release; for images a data.source; for tfds a folder"
  )
  parser.add_argument("--data_dir", required=True, type=pathlib.Path, help="where prepared data sets lie")
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
  if args.name and not re.fullmatch(r"[a-z]\w*", args.name):
    parser.error(f"--name={args.name} must be made of small letters, digits and _, as TFDS has it; for example birds")
  for name in ("workers", "shard_examples"):
    if getattr(args, name) < 1:
      parser.error(f"--{name}={getattr(args, name)} must be at least 1")
  return args


def main(argv=None) -> None:
  """Prepares a data set and prints one JSON object."""
  args = parse_arguments(argv)
  try:
    if args.dataset == "tfds":
      folder, manifest = convert(pathlib.Path(args.source).absolute(), args.data_dir, args.workers)
    else:
      if args.dataset == "images":
        release = releases.images(args.source, args.name, args.size)
      else:
        release = RELEASES[args.dataset](pathlib.Path(args.source).absolute(), args.size)
      shape = release.splits["train"][0]["image"].shape
      if args.dataset == "images":
        release.name += f"/{shape[0]}x{shape[1]}"
      folder = args.data_dir.absolute() / release.name / VERSION
      unfinished = folder.with_name(f"{VERSION}.{args.encoding}.unfinished")
      job = Job(unfinished, release, shape, args.encoding, args.shard_examples, args.max_bad_images)
      manifest = prepare(job, folder, args.workers)
    checked = check(folder, args.workers) if args.check else None
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(
    json.dumps(
      {"dataset": str(folder), "splits": manifest["splits"], "left_out": manifest["left_out"], "checked": checked}
    )
  )


if __name__ == "__main__":
  main()
