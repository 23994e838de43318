"""Compares samples with real images by FID and KID, or by the bits that a flow gives both; prints one JSON object.

python -m tools.fid --samples=NPZ|DIR --reference=NPZ|DIR|STATS --weights=NPZ [--stats=FILE]
python -m tools.fid --samples=NPZ|DIR --reference=NPZ|DIR --judge=WORKDIR

  fid, kid     distances between features of samples and of the reference: lower is better
  fid_floor    FID of two halves of the reference with each other, each of as many images as there are samples, or of
               half of the reference: what a perfect model would have
  judge        bits/dim of samples and of the reference, by a flow that was trained apart from what has drawn them.
               Needs no weights, is no FID, and tells after a few hundred images

The weights are those of the Inception network of FID, which are not part of this project: docs/guide/fid.md has ten
lines that write FILE from those of pytorch-fid or torch-fidelity. STATS is an npz file with `mu` and `sigma`, as
--stats writes, or as others publish. FID depends on the number of images and on how they were resized: compare figures
of the same reference and the same number of samples alone.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

import jet_jax
from jet_jax import config as config_lib
from jet_jax import places
from jet_jax.config.checks import AT_ONCE
from jet_jax.data.npz import Npz
from jet_jax.devices import processes, settings
from jet_jax.devices.compile import keep_compiled
from jet_jax.training.evaluator import mean_and_error
from jet_jax.workdir.metrics import as_json

from .scoring import distances, inception
from .scoring.pictures import Pictures, read_pictures

RANGES = {"--batch_size": (1, AT_ONCE), "--seed": (0, 2**31 - 1)}


def main(argv=None) -> None:
  """Compares and prints one JSON object."""
  args = _parser().parse_args(argv)
  settings.settle()
  try:
    config_lib.check_ranges({"--batch_size": args.batch_size, "--seed": args.seed}, RANGES)
    if not (args.weights or args.judge):
      raise ValueError(
        "FID needs the weights of Inception, which are not part of jet_jax: --weights=NPZ, see docs/guide/fid.md. "
        "--judge=WORKDIR compares without them"
      )
    if args.stats:
      config_lib.check_output(args.stats, ".npz")
    keep_compiled()
    result = _compare(args)
  except (ValueError, OSError) as error:  # OSError: a file cannot be read or written
    processes.fail(error)
  print(as_json(result))


def _parser() -> config_lib.Parser:
  parser = config_lib.Parser("tools.fid", __doc__)
  parser.add_argument(
    "--samples", type=config_lib.local, required=True, metavar="NPZ|DIR",
    help="npz file with `images`, as jet_jax.sample --npz writes, or a folder of image files",
  )  # fmt: skip
  parser.add_argument(
    "--reference", type=config_lib.local, required=True, metavar="NPZ|DIR|STATS",
    help="real images, as for --samples, or an npz file with their `mu` and `sigma`",
  )  # fmt: skip
  parser.add_argument("--weights", type=config_lib.local, metavar="NPZ", help="weights of Inception")
  parser.add_argument("--judge", type=config_lib.of_run, metavar="WORKDIR", help="a run of another flow, or an export")
  parser.add_argument("--stats", type=config_lib.local, metavar="FILE", help="npz file to write, with `mu` and `sigma`")
  parser.add_argument("--batch_size", type=int, default=32, help="images at a time; 32 by default")
  parser.add_argument("--seed", type=int, default=0, help="of the halves and the subsets; 0 by default")
  return parser


def _compare(args) -> dict[str, Any]:
  samples = read_pictures(args.samples)
  known = _read_stats(args.reference)
  reference = None if known else read_pictures(args.reference)
  result: dict[str, Any] = {
    "num_samples": len(samples.images),
    "samples_sha256": samples.sha256,
    "num_reference": None if reference is None else len(reference.images),
    "reference_sha256": _sha256(args.reference) if reference is None else reference.sha256,
  }
  if args.weights:
    result |= _by_features(args, samples, reference, known)
  if args.judge:
    if reference is None:
      raise ValueError(f"{args.reference} has statistics of features alone, and --judge measures images; give these")
    result["judge"] = _by_judge(args.judge, samples, reference)
  return result


def _by_features(
  args, samples: Pictures, reference: Pictures | None, known: distances.Moments | None
) -> dict[str, Any]:
  """FID and KID, and the floor of FID. KID and the floor need the images of the reference."""
  weights, digest = read_weights(args.weights), _sha256(args.weights)
  extract = Extractor(weights, args.batch_size)
  of_samples, num_nonfinite = _finite(extract(samples.images, "samples"))
  if len(of_samples) < 2:
    raise ValueError(f"only {len(of_samples)} of the samples have finite features; two are needed")
  result: dict[str, Any] = {"weights_sha256": digest, "num_nonfinite": num_nonfinite, "resize": "TF1 bilinear, 299"}
  if reference is not None:
    of_reference, bad = _finite(extract(reference.images, "reference"))
    if bad:
      raise ValueError(f"{bad} images of the reference have features that are not finite; the weights may be damaged")
    known = distances.moments(of_reference)
    kid, kid_error = distances.kernel_distance(of_samples, of_reference, args.seed)
    half = min(len(of_samples), len(of_reference) // 2)
    order = np.random.default_rng(args.seed).permutation(len(of_reference))
    halves = [distances.moments(of_reference[order[start : start + half]]) for start in (0, half)] if half > 1 else []
    floor = distances.frechet(*halves) if halves else math.nan
    result |= {"kid": kid, "kid_stderr": kid_error, "fid_floor": floor, "fid_floor_images": half}
    if args.stats:
      with places.replacing(args.stats) as temporary, temporary.open("wb") as file:
        np.savez(file, mu=known.mean, sigma=known.covariance)
  assert known is not None
  return {"fid": distances.frechet(distances.moments(of_samples), known)} | result


class Extractor:
  """Computes features of images, a batch at a time.

  Args:
    weights: of Inception, by name.
    batch_size: images at a time; the last batch is filled up.
  """

  def __init__(self, weights: dict[str, np.ndarray], batch_size: int):
    self._weights, self._batch_size = jax.device_put(weights), batch_size
    self._program = jax.jit(inception.features)

  def __call__(self, images: np.ndarray, name: str) -> np.ndarray:
    """Returns float32 (N, 2048); images uint8 (N, H, W, 1 or 3), `name` for the bar."""
    found = []
    for start in tqdm(range(0, len(images), self._batch_size), desc=name, unit="batch", leave=False):
      rows = np.minimum(np.arange(start, start + self._batch_size), len(images) - 1)
      batch = np.broadcast_to(images[rows], (*images[rows].shape[:3], 3))
      found.append(np.asarray(self._program(self._weights, jnp.asarray(batch))))
    return np.concatenate(found)[: len(images)]


def read_weights(path: Path) -> dict[str, np.ndarray]:
  """Reads the weights of Inception, float32 by name. Raises ValueError."""
  with Npz(path) as arrays:
    weights = {name: arrays[name] for name in inception.weight_shapes() if name in arrays}
  inception.check_weights(weights)
  return {name: value.astype(np.float32) for name, value in weights.items()}


def _read_stats(path: Path) -> distances.Moments | None:
  """Reads moments of features; None if the path has images. Raises ValueError for moments of other features."""
  if path.is_dir():
    return None
  with Npz(path) as arrays:
    if not {"mu", "sigma"} <= set(arrays):
      return None
    mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
  if mean.shape != (inception.FEATURES,) or covariance.shape != (inception.FEATURES,) * 2:
    raise ValueError(f"{path} has mu {mean.shape} and sigma {covariance.shape}; they must be of 2,048 features")
  return distances.Moments(mean, covariance)


def _finite(features: np.ndarray) -> tuple[np.ndarray, int]:
  """Leaves out features that are not finite, and counts them; none is drawn again."""
  finite = np.isfinite(features).all(axis=1)
  return features[finite], int((~finite).sum())


def _by_judge(workdir: Path, samples: Pictures, reference: Pictures) -> dict[str, Any]:
  """Bits/dim of both, by another flow."""
  flow = jet_jax.load(workdir)
  figures = {}
  for name, pictures in (("samples", samples), ("reference", reference)):
    mean, error = mean_and_error(flow.bits_per_dim(pictures.images))
    figures |= {f"{name}_bits_per_dim": mean, f"{name}_bits_per_dim_stderr": error}
  return figures


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
  logging.set_verbosity(logging.ERROR)  # orbax warns of what is intended here
  main()
