"""Writes array_record files, and the metadata that makes a folder of them a data set of TensorFlow Datasets."""

import os
import pathlib
import shutil
from collections.abc import Iterable

from array_record.python.array_record_module import ArrayRecordWriter

from . import atomic

WORK = "work"  # folder inside an unfinished data set for files that are not part of the data set


def write_shard(path: pathlib.Path, serialized: Iterable[bytes]) -> dict[str, int]:
  """Writes a file of these records, atomically: until it is complete, it is in the folder `WORK` beside it.

  Returns:
    Its number of "examples" and "bytes".

  Raises:
    OSError: it cannot be written. Errors of `serialized` are passed on.
  """
  with atomic.replacing(path, path.parent / WORK / f"{path.name}.{os.getpid()}.part") as temporary:
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # one record per chunk: fast random access
    count = 0
    for record in serialized:
      _or_disk_full(path, writer.write, record)
      count += 1
    _or_disk_full(path, writer.close)
  return {"examples": count, "bytes": path.stat().st_size}


def _or_disk_full(path: pathlib.Path, function, *arguments) -> None:
  """Calls a function; an error of writing becomes an OSError that tells the free space."""
  try:
    function(*arguments)
  except (RuntimeError, OSError) as error:  # RuntimeError: array_record
    free = shutil.disk_usage(path.parent).free
    raise OSError(
      f"{path} cannot be written ({error}); its file system has {free:,} bytes left: make room, and give the same "
      "command again"
    ) from error


def write_metadata(folder: pathlib.Path, name: str, version: str, features, shards: dict[str, list[dict]]) -> None:
  """Writes the files that make a folder of shards a TFDS data set.

  Args:
    folder: of the shards.
    name: of the data set, "name" or "name/config".
    version: such as "1.0.0".
    features: TFDS schema of a record.
    shards: split -> "examples" and "bytes" of each shard.
  """
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
  for split, counts in shards.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,  # type: ignore
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      dataset_name=name,
      split=split,
      filetype_suffix="array_record",
    )
    lengths = [count["examples"] for count in counts]
    total = sum(count["bytes"] for count in counts)
    splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template))
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(folder)
