"""Divides a data set into shards, and writes one shard in a worker process."""

import collections
import dataclasses
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jet_jax.data import BadImage, image_folder

from . import inputs, releases, shards


@dataclasses.dataclass
class ShardSettings:
  """The settings that all shards of a data set share; sent to worker processes."""

  folder: pathlib.Path  # of the unfinished data set
  name: str
  shape: tuple[int, int, int]
  encoding: str  # "png" or "raw"
  classes: list[str]  # names of the labels; images of a split without labels have label -1
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
  """A data set to write."""

  folder: pathlib.Path  # while it is unfinished
  release: releases.Release
  shape: tuple[int, int, int]
  encoding: str  # "png" or "raw"
  shard_examples: int = 8192
  max_bad_images: int = 0

  @functools.cached_property
  def settings(self) -> ShardSettings:
    """The settings of every shard."""
    classes = max((list(examples.classes) for examples in self.release.splits.values()), key=len)
    return ShardSettings(self.folder, self.release.name, self.shape, self.encoding, classes, self.max_bad_images)

  @functools.cached_property
  def shards(self) -> list[tuple[str, int, int]]:
    """(split, number of the shard, number of shards of this split) of every shard."""
    counts = {split: -(-len(examples) // self.shard_examples) for split, examples in self.release.splits.items()}
    return [(split, k, count) for split, count in counts.items() for k in range(count)]

  def tasks(self) -> dict[str, tuple]:
    """Returns tasks for `process_pool.run` by shard name. Each holds only its own examples: file names take memory."""
    tasks: dict[str, tuple] = {}
    for split, k, count in self.shards:
      examples = self.release.splits[split]
      numbers = range(k * self.shard_examples, min((k + 1) * self.shard_examples, len(examples)))
      own = examples.window(numbers)
      tasks[self.shard_name(split, k, count)] = (write_shard, self.settings, split, k, count, own, numbers)
    return tasks

  def results_by_split(self, results: dict[str, dict]) -> dict[str, list[dict]]:
    """Groups the results of `tasks` by split, in the order of the shards."""
    grouped = collections.defaultdict(list)
    for split, k, count in self.shards:
      grouped[split].append(results[self.shard_name(split, k, count)])
    return grouped

  def shard_name(self, split: str, k: int, count: int) -> str:
    """Returns the file name of a shard."""
    return shard_name(self.release.name, split, k, count)

  def plan(self) -> dict[str, Any]:
    """Returns everything that must be unchanged to resume after a kill."""
    return {
      "image_shape": list(self.shape),
      "encoding": self.encoding,
      "shard_examples": self.shard_examples,
      "examples": {split: len(examples) for split, examples in self.release.splits.items()},
      "files": [[str(file), *inputs.state_of(file)] for file in self.release.files],
    }


def shard_name(name: str, split: str, k: int, count: int) -> str:
  """Returns the file name that TFDS expects of shard k of `count`."""
  return f"{name.partition('/')[0]}-{split}.array_record-{k:05d}-of-{count:05d}"


def write_shard(settings: ShardSettings, split: str, k: int, count: int, examples, numbers: range) -> dict[str, Any]:
  """Writes one shard. Returns its numbers of "examples" and "bytes", and messages on "bad" images left out."""
  bad: list[str] = []
  path = settings.folder / shard_name(settings.name, split, k, count)
  return shards.write_shard(path, _serialized(settings, split, examples, numbers, bad)) | {"bad": bad}


def _serialized(settings: ShardSettings, split: str, examples, numbers: range, bad: list[str]) -> Iterator[bytes]:
  """Yields the records of these examples. Unreadable ones are left out, and their errors appended to `bad`."""
  from tensorflow_datasets.core.example_serializer import ExampleSerializer  # noqa: PLC0415

  serializer = ExampleSerializer(settings.features.get_serialized_info())  # type: ignore
  for i in numbers:
    try:
      example = _example(settings, examples, i)
    except BadImage as error:
      bad.append(str(error))
      if len(bad) > settings.max_bad_images:
        raise
      continue
    name = examples.name(i) or f"{split}_{i}"
    values: dict[str, Any] = {"name": image_folder.encoded(name)}
    values["image"] = _png(example["image"]) if settings.encoding == "png" else example["image"].tobytes()
    if settings.classes:
      values["label"] = int(example.get("label", -1))
    yield serializer.serialize_example(values)


def _example(settings: ShardSettings, examples, i: int) -> dict[str, Any]:
  example = examples[i]
  shape = example["image"].shape
  if shape != settings.shape:
    raise BadImage(f"{examples.where(i)} is {shape} and the first image {settings.shape}; give --size")
  return example


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
  return buffer.getvalue()
