"""Images in data sets of TensorFlow Datasets that lie on disk as array_record. TensorFlow itself is not needed.

`tools/prepare_data.py` writes such data sets. Of a record this reads the features "image" and "label": the image is
either an `Image` (a PNG or JPEG file) or a `Tensor` of bytes (the pixels, for speed).
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from jet_jax.data import decode
from jet_jax.data.archives import SPLIT_NAMES
from jet_jax.data.decode import BadImage

REPAIR = "prepare or copy the data set again, or raise data.max_bad_images"
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Records(Sequence):
  """Examples of one split: {"image": uint8 (H, W, C), "index": int32 (), and, if it has classes, "label": int32 ()}.
  The label of an example without one, in a data set with classes, is -1, as TFDS has it.

  Attributes:
    classes: names of the labels; empty without labels.
  """

  def __init__(self, folder: pathlib.Path, split: str, size: int):
    """`folder`: of one version of the data set. `size`: as for `decode.decode`."""
    self.folder, self.split, self.size = str(folder), split, size
    features = info(folder).features
    if "image" not in features:
      raise ValueError(f"{folder} has no feature 'image', only {', '.join(features)}; use a data set of images")
    self._shape, self._is_file = _image_format(features["image"], folder)
    if size and not self._is_file and self._shape[:2] != (size, size):
      height, width = self._shape[:2]
      raise ValueError(f"data.size={size}, but {folder} holds pixels of {height}x{width}; set data.size=0")
    self.classes = _class_names(features["label"]) if "label" in features else []

  def __len__(self):
    return len(_data_source(self.folder, self.split))

  def __getitem__(self, i) -> dict[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    features = self._features(i)
    try:
      (data,) = features["image"].bytes_list.value
      if self._is_file:
        image = decode.decode(data, self.size, self._shape[-1])
      else:
        image = np.frombuffer(data, np.uint8).reshape(self._shape)
    except ValueError as error:
      name = b"".join(features["name"].bytes_list.value).decode(errors="replace")
      raise BadImage(f"{self.where(i)}{f', {name}' if name else ''}: {error}; {REPAIR}") from error
    example = {"image": image, "index": np.int32(i)}
    return example | {"label": np.int32(features["label"].int64_list.value[0])} if self.classes else example

  def _features(self, i):
    """The record as tf.train.Example's map of features. TFDS's own parser gives the same in three times the time."""
    from tensorflow_datasets.proto import tf_example_pb2  # noqa: PLC0415

    example: Any = tf_example_pb2.Example  # type: ignore  its module is generated

    try:
      return example.FromString(_data_source(self.folder, self.split)[i]).features.feature
    except (RuntimeError, DecodeError) as error:  # of array_record, of protobuf
      raise BadImage(f"{self.where(i)}: {error}; {REPAIR}") from error

  def where(self, i: int) -> str:
    """What an error says of example i."""
    return f"record {i} in {self.shard(i)} of {self.folder}"

  def shard(self, i: int) -> str:
    """Name of the file that holds record i."""
    for file in info(self.folder).splits[self.split].file_instructions:
      if i < file.take:
        return pathlib.Path(file.filename).name
      i -= file.take
    raise IndexError(i)


def open_records(name: str, data_dir: str, size: int) -> dict[str, Callable[[], Sequence]]:
  """For each split of a prepared data set a function that opens it.

  Args:
    name: "name", "name/config" or either with ":1.0.0"; without a version the newest counts.
    data_dir: where data sets are prepared.
    size: as for `decode.decode`; pixels that are no files have to have it already.

  Raises:
    ValueError: no such data set, not array_record, a missing file, or images that this module cannot read.
  """
  folder = find(name, data_dir)
  about = info(folder)
  if "array_record" not in {file_format.value for file_format in about.available_file_formats()}:
    raise ValueError(
      f"{folder} is prepared as {about.file_format.value}, which can only be read from start to end, so that its order "
      "cannot be shuffled exactly; convert it by\n"
      f"  python -m tools.prepare_data --dataset=tfds --source={folder} --data_dir=NEW_FOLDER"
    )
  found = {}
  for split, names in SPLIT_NAMES.items():
    called = next((one for one in names if one in about.splits), None)
    if called:
      found[split] = functools.partial(_open_split, folder, called, size)
  return found


def _open_split(folder: pathlib.Path, split: str, size: int) -> Sequence:
  if not info(folder).splits[split].num_examples:  # it has no files
    return []
  for file in info(folder).splits[split].filepaths:
    if not os.path.isfile(file):  # noqa: PTH113  epath
      raise ValueError(f"{file} is missing; prepare or copy the data set again")
  return Records(folder, split, size)


def find(name: str, data_dir: str) -> pathlib.Path:
  """The folder of the named or newest version of a data set. ValueError, saying what there is, if there is none."""
  name, _, version = name.partition(":")
  root = pathlib.Path(data_dir) / name
  versions = [path.parent for path in root.glob("*/dataset_info.json") if VERSION.fullmatch(path.parent.name)]
  if version:
    versions = [path for path in versions if path.name == version]
  if versions:
    return max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
  below = pathlib.Path(data_dir).glob("**/dataset_info.json") if pathlib.Path(data_dir).is_dir() else []
  whole = {path.parent for path in below if VERSION.fullmatch(path.parent.name)}
  there = sorted(path.relative_to(data_dir).as_posix() for path in whole)
  wanted = f"{name}:{version}" if version else name
  raise ValueError(
    f"data.source='tfds:{wanted}' is not prepared in data.data_dir={data_dir!r}, which holds "
    f"{', '.join(there) or 'no data set'}; see python -m tools.prepare_data --help"
  )


def info(folder: str | pathlib.Path) -> Any:
  """TFDS's description of the data set in a folder: splits, features, file format."""
  return _builder(str(folder)).info


@functools.lru_cache(maxsize=16)
def _builder(folder: str) -> Any:
  import tensorflow_datasets as tfds  # noqa: PLC0415  takes a second, and only these data sets need it

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS raises whatever it stumbles over; to us each means a broken file
    reason = f"{type(error).__name__}: {error}"
    raise ValueError(
      f"the metadata in {folder} cannot be read ({reason}); prepare or copy the data set again"
    ) from error


@functools.lru_cache(maxsize=16)
def _data_source(folder: str, split: str) -> Any:
  """The serialized records of a split; opened once a process, so that `Records` travels to workers as a name."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  return _builder(folder).as_data_source(split, deserialize_method=raw, file_format="array_record")


def _class_names(feature: Any) -> list[str]:
  """Names of the labels; a number that is no class, a text or a list of labels is no label to us."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  return list(feature.names or []) if isinstance(feature, tfds.features.ClassLabel) else []


def _image_format(feature: Any, folder) -> tuple[tuple[int, ...], bool]:
  """Shape of the images, which counts for its channels alone if a record holds a file, and whether it does."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  shape, dtype, encoding = tuple(feature.shape), feature.np_dtype, getattr(feature, "_encoding", None)
  if isinstance(feature, tfds.features.Image):
    return (*shape[:2], 1 if shape[-1] == 1 else 3), True
  if dtype == np.uint8 and len(shape) == 3 and None not in shape and encoding == tfds.features.Encoding.BYTES:
    return shape, False
  raise ValueError(f"{folder}: feature 'image' is {feature}; it must be an Image or a uint8 Tensor of encoded bytes")
