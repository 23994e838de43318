"""Writes images as a data set of TensorFlow Datasets in array_record files, for fast random access.

python -m tools.prepare_data --dataset=downsampled_imagenet --size=64 --source=FOLDER --data_dir=DATA
python -m tools.prepare_data --dataset=images --name=birds --source=archive:birds.zip --size=64 --data_dir=DATA

Then train with `--config.data.source=tfds:birds/64x64 --config.data.data_dir=DATA`. After a kill, the same command
resumes. With --check it also reads and decodes every record of the finished data set, as does:

python -m tools.prepare_data --dataset=check --source=DATA/birds/64x64/1.0.0
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from jet_jax import config as config_lib
from jet_jax.data import BadImage, adapters, records
from jet_jax.devices import processes

from .preparing import cifar, imagenet_npz, inputs, process_pool, releases, shards, staging, tfrecord
from .preparing.job import Job

VERSION = "1.0.0"
MAX_SIZE = 4096
CHECKED_AT_ONCE = 4096  # records per task of --check
RELEASES = {
  "downsampled_imagenet": releases.downsampled_imagenet,
  "imagenet_resized": imagenet_npz.imagenet_resized,
  "cifar10": cifar.cifar10,
  "imagenet21k": releases.imagenet21k,
}


def prepare(job: Job, folder: pathlib.Path, processes: int) -> dict[str, Any]:
  """Writes the data set `folder`, which appears there once it is complete. Returns its manifest.

  Raises:
    BadImage: more unreadable images than allowed, or a split without a readable one.
    ValueError: another data set is in `folder`, or its preparation was begun with another plan or is running.
  """
  plan = json.loads(json.dumps(job.plan()))  # as it is read back from a file
  manifest = staging.find_finished(folder, plan)
  if manifest is not None:
    return manifest
  with staging.begin_or_resume(job.folder, plan) as results_folder:
    hashes = {f"sha256-{k}": (inputs.hash_file, file) for k, file in enumerate(job.release.files)}
    results = process_pool.run(hashes | job.tasks(), processes, results_folder)
    written = job.results_by_split(results)
    bad = _check_bad_images(written, job.max_bad_images)
    shards.write_metadata(job.folder, job.release.name, VERSION, job.settings.features, written)
    more = {"sources": [results[name] for name in hashes], "rule": job.release.rule, "left_out": bad}
    return staging.publish(job.folder, folder, plan, written, more)


def _check_bad_images(written: dict[str, list[dict]], max_bad_images: int) -> list[str]:
  """Returns the messages on images that were left out; raises BadImage if these are too many."""
  bad = [message for results in written.values() for result in results for message in result["bad"]]
  if len(bad) > max_bad_images:
    raise BadImage(f"{len(bad)} unreadable images, more than --max_bad_images={max_bad_images}: {bad[:3]} ...")
  for split, results in written.items():
    if not any(result["examples"] for result in results):
      raise BadImage(f"no image of the split {split!r} can be read: {bad[:3]} ...; repair some, or remove the split")
  return bad


def convert(source: pathlib.Path, data_dir: pathlib.Path, processes: int) -> tuple[pathlib.Path, dict[str, Any]]:
  """Converts a TFDS data set from TFRecord files to array_record. Returns its folder and manifest."""
  found = tfrecord.find_shards(source)
  info = records.info(source)
  paths = [path for files in found.values() for path, _, _ in files]
  plan = {"source": str(source), "files": [[path, *inputs.state_of(pathlib.Path(path))] for path in paths]}
  name = f"{info.name}/{info.config_name}" if info.config_name else info.name
  folder = data_dir.absolute() / name / str(info.version)
  manifest = staging.find_finished(folder, plan)
  if manifest is not None:
    return folder, manifest
  unfinished_folder = folder.with_name(f"{info.version}.unfinished")
  with staging.begin_or_resume(unfinished_folder, plan) as results_folder:
    converted = tfrecord.run(found, unfinished_folder, processes, results_folder)
    shards.write_metadata(unfinished_folder, name, str(info.version), info.features, converted)
    more = {"sources": [], "rule": "records copied unchanged", "left_out": []}
    return folder, staging.publish(unfinished_folder, folder, plan, converted, more)


def check(folder: pathlib.Path, processes: int) -> int:
  """Reads and decodes every record of a data set. Returns their number.

  Raises:
    ValueError: no data set in the folder, or more or fewer records than its metadata say.
    BadImage: a broken record.
  """
  if not (folder / "dataset_info.json").is_file():
    raise ValueError(f"{folder} has no dataset_info.json; give the folder of one version of a data set")
  tasks = {}
  for split, info in records.info(folder).splits.items():
    opened = records.Records(folder, split, 0)
    if len(opened) != info.num_examples:
      raise ValueError(f"{folder}: split {split} has {len(opened)} records, its metadata says {info.num_examples}")
    for start in range(0, len(opened), CHECKED_AT_ONCE):
      numbers = range(start, min(start + CHECKED_AT_ONCE, len(opened)))
      tasks[f"{split} {start}"] = (_count_readable, opened, numbers)
  return sum(process_pool.run(tasks, processes).values())


def _count_readable(opened: records.Records, numbers: range) -> int:
  return sum(opened[i]["image"].size > 0 for i in numbers)


def parse_arguments(argv) -> argparse.Namespace:
  """Parses the command line."""
  parser = config_lib.Parser("tools.prepare_data", __doc__)
  parser.add_argument(
    "--dataset", required=True, choices=[*RELEASES, "images", "tfds", "check"], help="what --source holds"
  )
  parser.add_argument(
    "--source",
    required=True,
    help="folder of the release; for images a data.source; for tfds and check the folder of a version of a data set",
  )
  parser.add_argument("--data_dir", type=config_lib.local, help="folder of prepared data sets")
  parser.add_argument("--size", type=int, default=0, help="side in pixels; 0 keeps the size")
  parser.add_argument("--name", help="of the data set, for --dataset=images")
  parser.add_argument("--encoding", choices=("png", "raw"), default="png", help="raw is larger and read faster")
  parser.add_argument("--max_bad_images", type=int, default=0, help="unreadable images that may be left out")
  parser.add_argument(
    "--shard_examples", type=int, default=Job.shard_examples, help="images in a file; %(default)s by default"
  )
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; one a core by default")
  parser.add_argument("--check", action="store_true", help="read and decode every record in the end")
  args = parser.parse_args(argv)
  if (args.dataset == "images") != bool(args.name):
    parser.error("--dataset=images needs --name, and no other --dataset takes it")
  if (args.dataset == "check") != (args.data_dir is None):
    parser.error("every --dataset but check needs --data_dir, and check takes none")
  if args.name and not re.fullmatch(r"[a-z]\w*", args.name):
    parser.error(f"--name={args.name} must consist of small letters, digits and _, as in TFDS; for example birds")
  for name, least in (("workers", 1), ("shard_examples", 1), ("size", 0), ("max_bad_images", 0)):
    if getattr(args, name) < least:
      parser.error(f"--{name}={getattr(args, name)} must be at least {least}")
  if args.size > MAX_SIZE:
    parser.error(f"--size={args.size} must be at most {MAX_SIZE}; 32 and 64 are usual")
  return args


def prepare_release(args: argparse.Namespace) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes the data set of the command line, unless it is complete already. Returns its folder and manifest."""
  if args.dataset == "images":
    release = releases.images(args.source, args.name, args.size)
  else:
    release = RELEASES[args.dataset](config_lib.local(args.source).absolute(), args.size)
  shape = adapters.SkipUnreadable(release.splits["train"], args.max_bad_images)[0]["image"].shape
  if args.dataset == "images":
    release = dataclasses.replace(release, name=f"{release.name}/{shape[0]}x{shape[1]}")
  folder = args.data_dir.absolute() / release.name / VERSION
  unfinished_folder = folder.with_name(f"{VERSION}.{args.encoding}.unfinished")
  job = Job(unfinished_folder, release, shape, args.encoding, args.shard_examples, args.max_bad_images)
  return folder, prepare(job, folder, args.workers)


def main(argv=None) -> None:
  """Prepares or checks a data set and prints one JSON object."""
  args = parse_arguments(argv)
  try:
    if args.dataset == "check":
      folder, manifest = config_lib.local(args.source).absolute(), {}
    elif args.dataset == "tfds":
      folder, manifest = convert(config_lib.local(args.source).absolute(), args.data_dir, args.workers)
    else:
      folder, manifest = prepare_release(args)
    checked = check(folder, args.workers) if args.check or args.dataset == "check" else None
  except (ValueError, OSError) as error:
    processes.fail(error)
  counts = {name: manifest[name] for name in ("splits", "left_out") if name in manifest}
  print(json.dumps({"dataset": str(folder), **counts, "checked": checked}))


if __name__ == "__main__":
  main()
