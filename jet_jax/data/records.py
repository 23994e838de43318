"""Reads images from data sets of TensorFlow Datasets, prepared as array_record, without TensorFlow.

`tools/prepare_data.py` writes such data sets. Records need a feature "image" and may have a "label". The image is an
`Image` (a PNG or JPEG file) or a `Tensor` of bytes (pixels, which read faster).
"""

import functools
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from jet_jax.data import decode
from jet_jax.data.adapters import Chosen
from jet_jax.data.decode import BadImage
from jet_jax.data.splits import Examples, Splits, hold_out_numbers, match_splits, parts

REPAIR = "prepare or copy the data set again, or raise data.max_bad_images"
INDEX_BYTES = 4096  # at the end of an array_record file, where the places of its records are listed
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Records(Examples):
  """Examples of one split: {"image": uint8 (H, W, C), "index": int32 (), and, with classes, "label": int32 ()}.

  In a data set with classes, an example without a label has label -1, as in TFDS.

  Attributes:
    classes: names of the labels; empty without labels.
  """

  def __init__(self, folder: pathlib.Path, split: str, size: int):
    """`folder`: of one version of the data set. `size`: as for `decode.decode`."""
    self.folder, self.split, self.size = str(folder), split, size
    features, self.release = info(folder).features, info(folder).full_name
    if "image" not in features:
      raise ValueError(f"{folder} has no feature 'image', only {', '.join(features)}; use a data set of images")
    self._shape, self._is_file = _image_format(features["image"], folder)
    if size and not self._is_file and self._shape[:2] != (size, size):
      height, width = self._shape[:2]
      raise ValueError(f"data.size={size}, but {folder} holds pixels of {height}x{width}; set data.size=0")
    self.classes = _class_names(features["label"]) if "label" in features else []

  def __len__(self):
    # Without examples it has no files, and cannot be opened.
    return len(_data_source(self.folder, self.split)) if info(self.folder).splits[self.split].num_examples else 0

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
    """Returns record i as a map of features, parsed three times as fast as TFDS does."""
    from tensorflow_datasets.proto import tf_example_pb2  # noqa: PLC0415

    example: Any = tf_example_pb2.Example  # type: ignore  its module is generated

    try:
      return example.FromString(_data_source(self.folder, self.split)[i]).features.feature
    except (RuntimeError, DecodeError) as error:  # RuntimeError: array_record
      raise BadImage(f"{self.where(i)}: {error}; {REPAIR}") from error

  def where(self, i: int) -> str:
    """Names example i, for error messages."""
    return f"record {i} in {self.shard(i)} of {self.folder}"

  def entries(self) -> Iterator[bytes]:
    """Yields for each file its numbers of records and bytes, and a checksum of its index, for `identity`."""
    for file in info(self.folder).splits[self.split].file_instructions:
      path = pathlib.Path(file.filename)
      length = path.stat().st_size
      with path.open("rb") as opened:
        opened.seek(max(0, length - INDEX_BYTES))
        checksum = zlib.crc32(opened.read())
      yield f"a file of {file.take:,} records and {length:,} bytes with the CRC-32 {checksum:08x}".encode()

  def shard(self, i: int) -> str:
    """Returns the name of the file that holds record i."""
    for file in info(self.folder).splits[self.split].file_instructions:
      if i < file.take:
        return pathlib.Path(file.filename).name
      i -= file.take
    raise IndexError(i)


def open_records(name: str, data_dir: str, size: int) -> Splits:
  """Returns for each split of a prepared data set a function that opens it.

  Args:
    name: "name", "name/config" or either with ":1.0.0"; without a version, the newest is used.
    data_dir: where data sets are prepared.
    size: as for `decode.decode`; records of pixels must already have this size.

  Of a training split alone, 5% are held out by a hash of the number.

  Raises:
    ValueError: no such data set, not array_record, a missing file, or unsupported images.
  """
  folder = find(name, data_dir)
  about = info(folder)
  if "array_record" not in {file_format.value for file_format in about.available_file_formats()}:
    raise ValueError(
      f"{folder} is prepared as {about.file_format.value}, which can only be read from start to end and so cannot be "
      "shuffled exactly; convert it by\n"
      f"  python -m tools.prepare_data --dataset=tfds --source={folder} --data_dir=NEW_FOLDER"
    )
  names = match_splits(about.splits, folder)
  if set(names) == {"train"}:
    return {
      split: functools.partial(_open_part, folder, names["train"], size, split) for split in ("train", "validation")
    }
  return {split: functools.partial(_open_split, folder, name, size) for split, name in names.items()}


def _open_split(folder: pathlib.Path, split: str, size: int) -> Examples:
  for file in info(folder).splits[split].filepaths:
    if not os.path.isfile(file):  # noqa: PTH113  epath
      raise ValueError(f"{file} is missing; prepare or copy the data set again")
  return Records(folder, split, size).described(f"split {split}")


def _open_part(folder: pathlib.Path, split: str, size: int, part: str) -> Examples:
  """Opens the part "train" or "validation" of the only split, of which some are held out."""
  examples = _open_split(folder, split, size)
  numbers, origin = parts(hold_out_numbers(len(examples)), examples.origin, "number")[part]
  return Chosen(examples, numbers).described(origin)


def find(name: str, data_dir: str) -> pathlib.Path:
  """Returns the folder of the named or newest version of a data set.

  Raises:
    ValueError: no such data set or version; the message lists those in `data_dir`.
  """
  name, _, version = name.partition(":")
  root = pathlib.Path(data_dir) / name
  versions = [path.parent for path in root.glob("*/dataset_info.json") if VERSION.fullmatch(path.parent.name)]
  if version:
    versions = [path for path in versions if path.name == version]
  if versions:
    return max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
  wanted = f"{name}:{version}" if version else name
  raise ValueError(
    f"data.source='tfds:{wanted}' is not prepared in data.data_dir={data_dir!r}, which holds "
    f"{', '.join(_prepared_in(data_dir)) or 'no data set'}; see python -m tools.prepare_data --help"
  )


def _prepared_in(data_dir: str) -> list[str]:
  """Lists the prepared data sets in a folder, as "name/1.0.0" or "name/config/1.0.0"."""
  folders = {path.parent for path in pathlib.Path(data_dir).glob("**/dataset_info.json")}
  return sorted(folder.relative_to(data_dir).as_posix() for folder in folders if VERSION.fullmatch(folder.name))


def info(folder: str | pathlib.Path) -> Any:
  """Returns TFDS's description of the data set in a folder: splits, features, file format."""
  return _builder(str(folder)).info


@functools.lru_cache(maxsize=16)
def _builder(folder: str) -> Any:
  import tensorflow_datasets as tfds  # noqa: PLC0415  takes a second, and only these data sets need it

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS raises many types; each means a broken file
    reason = f"{type(error).__name__}: {error}"
    raise ValueError(
      f"the metadata in {folder} cannot be read ({reason}); prepare or copy the data set again"
    ) from error


@functools.lru_cache(maxsize=16)
def _data_source(folder: str, split: str) -> Any:
  """Opens the serialized records of a split, once per process, so that `Records` is pickled as a name only."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  return _builder(folder).as_data_source(split, deserialize_method=raw, file_format="array_record")


def _class_names(feature: Any) -> list[str]:
  """Returns the names of the labels; empty for a label that is a plain number, a text or a list."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  return list(feature.names or []) if isinstance(feature, tfds.features.ClassLabel) else []


def _image_format(feature: Any, folder) -> tuple[tuple[int, ...], bool]:
  """Returns (shape, True if a record holds a file). Of a file's shape only the channels are used."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  shape, dtype, encoding = tuple(feature.shape), feature.np_dtype, getattr(feature, "_encoding", None)
  if isinstance(feature, tfds.features.Image):
    return (*shape[:2], 1 if shape[-1] == 1 else 3), True
  if dtype == np.uint8 and len(shape) == 3 and all(shape) and encoding == tfds.features.Encoding.BYTES:
    return shape, False
  raise ValueError(
    f"{folder}: feature 'image' is {feature}; it must be an Image or a uint8 Tensor of encoded bytes and a fixed shape"
  )
