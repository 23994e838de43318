"""array_record files, and the metadata that makes a folder of them a data set of TensorFlow Datasets."""

import os
import pathlib
import shutil
from collections.abc import Iterable

from array_record.python.array_record_module import ArrayRecordWriter

WORK = "work"  # folder in that of an unfinished data set, for all that is no part of the data set


def write_shard(path: pathlib.Path, serialized: Iterable[bytes]) -> dict[str, int]:
  """Writes a file of these records, all at once: until it is whole it lies in the folder `WORK` beside it.

  Returns:
    Its number of "examples" and "bytes".

  Raises:
    OSError: it cannot be written. What `serialized` raises is passed on.
  """
  temporary = path.parent / WORK / f"{path.name}.{os.getpid()}.part"
  writer = ArrayRecordWriter(str(temporary), "group_size:1")  # one record a chunk: fast at random
  count = 0
  for record in serialized:
    _or_disk_full(path, writer.write, record)
    count += 1
  _or_disk_full(path, writer.close)
  temporary.replace(path)
  return {"examples": count, "bytes": path.stat().st_size}


def _or_disk_full(path: pathlib.Path, function, *arguments) -> None:
  try:
    function(*arguments)
  except (RuntimeError, OSError) as error:  # array_record raises the former
    free = shutil.disk_usage(path.parent).free
    raise OSError(
      f"{path} cannot be written ({error}); its file system has {free:,} bytes left: make room, and give the same "
      "command again"
    ) from error


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
