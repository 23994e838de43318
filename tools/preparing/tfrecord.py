"""Converts TFDS data sets from TFRecord files to array_record files, without TensorFlow.

A TFRecord file can only be read from its start, so it cannot be shuffled exactly. Records and schema are unchanged.
"""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.record_writer import masked_crc32c

from jet_jax.data import records

from . import process_pool, shards


def read(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file; each is stored as length uint64, its checksum, the data, its checksum.

  Raises:
    ValueError: a wrong checksum, or a file that ends within a record; the file and the record are named.
  """
  with path.open("rb") as file:
    number, size = 0, path.stat().st_size
    while header := file.read(12):
      where = f"record {number} of {path}"
      if len(header) < 12 or struct.unpack("<I", header[8:])[0] != masked_crc32c(header[:8]):
        raise ValueError(f"{where} has a broken header; prepare or copy the data set again")
      (length,) = struct.unpack("<Q", header[:8])
      data, checksum = file.read(min(length, size)), file.read(4)  # a length may be wrong, and larger than memory
      if len(data) < length or len(checksum) < 4 or struct.unpack("<I", checksum)[0] != masked_crc32c(data):
        raise ValueError(f"{where} is broken or cut off; prepare or copy the data set again")
      yield data
      number += 1


def convert_shard(folder: pathlib.Path, path: str, name: str, expected: int) -> dict:
  """Writes the shard `name` in `folder` from a TFRecord file. Returns its "examples" and "bytes"."""
  return shards.write_shard(folder / name, _read_exactly(path, expected)) | {"bad": []}


def _read_exactly(path: str, expected: int) -> Iterator[bytes]:
  count = 0
  for record in read(pathlib.Path(path)):
    yield record
    count += 1
  if count != expected:
    raise ValueError(f"{path} has {count} records, its data set's metadata says {expected}; prepare it again")


def find_shards(source: pathlib.Path) -> dict[str, list[tuple[str, str, int]]]:
  """Maps each split to (TFRecord file, name of the array_record file, number of records) of each shard.

  Raises:
    ValueError: `source` is no prepared TFDS data set, not in TFRecord files, or a file is missing.
  """
  if not (source / "dataset_info.json").is_file():
    raise ValueError(f"{source} has no dataset_info.json; give the folder of one version of a data set")
  info = records.info(source)
  if info.file_format.value != "tfrecord":
    raise ValueError(f"{source} is prepared as {info.file_format.value}; only tfrecord needs converting")
  found = {}
  for split, split_info in info.splits.items():
    files = [pathlib.Path(file) for file in split_info.filepaths]
    for file in files:
      if not file.is_file():
        raise ValueError(f"{file} is missing; prepare the data set again")
    names = [file.name.replace(".tfrecord", ".array_record") for file in files]
    found[split] = list(zip(map(str, files), names, split_info.shard_lengths, strict=True))
  return found


def run(
  found: dict[str, list[tuple[str, str, int]]], folder: pathlib.Path, processes: int, results_folder: pathlib.Path
) -> dict[str, list[dict]]:
  """Converts the shards from `find_shards` into `folder`. Returns split -> result of `convert_shard` for each shard."""
  tasks = {
    name: (convert_shard, folder, path, name, length) for files in found.values() for path, name, length in files
  }
  results = process_pool.run(tasks, processes, results_folder)
  return {split: [results[name] for _, name, _ in files] for split, files in found.items()}
