"""Fingerprints of arrays, which detect that a restored array differs from the saved one.

A digest is a sum over all words of an array, each mixed with its place by a function that maps no two words to one. A
change within one word always changes the digest; any other change is missed with a probability of about 2**-60. The
order of the sum does not matter, nor the number of devices or processes: no data moves between devices, and a state
that is restored on other devices has the same digests.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ArrayFingerprint(NamedTuple):
  """Shape, dtype and digest (16 hexadecimal digits) of an array; the digest is empty if only its shape is known."""

  shape: tuple[int, ...]
  dtype: str
  digest: str = ""


def fingerprints(tree) -> dict[str, ArrayFingerprint]:
  """Computes the fingerprint of every array of a tree, by its path "a/b/c". All processes call it together.

  Raises:
    ValueError: an array has NaN or infinite numbers.
  """
  leaves = by_path(tree)
  sums = jax.device_get(_sums(list(leaves.values())))
  broken = [
    f"{name} ({total[2]:,} of {leaf.size:,})"
    for (name, leaf), total in zip(leaves.items(), sums, strict=True)
    if total[2]
  ]
  if broken:
    raise ValueError(f"{len(broken)} arrays have numbers that are not finite, the first is {broken[0]}")
  return {
    name: known._replace(digest=f"{total[0]:08x}{total[1]:08x}")
    for (name, known), total in zip(without_digests(tree).items(), sums, strict=True)
  }


def without_digests(like) -> dict[str, ArrayFingerprint]:
  """Shapes and dtypes of a tree of arrays or ShapeDtypeStructs, by path."""
  return {name: ArrayFingerprint(tuple(leaf.shape), str(leaf.dtype)) for name, leaf in by_path(like).items()}


def to_json(prints: Mapping[str, ArrayFingerprint], notes: dict[str, Any]) -> dict[str, Any]:
  """Packs fingerprints and notes (any JSON) with a SHA-256 of both, for `from_json`."""
  arrays = {name: known._asdict() | {"shape": list(known.shape)} for name, known in prints.items()}
  return {"arrays": arrays, "notes": notes, "sha256": _sha256([arrays, notes])}


def identity(prints: Mapping[str, ArrayFingerprint]) -> str:
  """Computes a SHA-256 of fingerprints, in hexadecimal digits."""
  return to_json(prints, {})["sha256"]


def from_json(written: dict[str, Any]) -> tuple[dict[str, ArrayFingerprint], dict[str, Any]]:
  """Unpacks fingerprints and notes. Raises ValueError if they differ from what `to_json` packed."""
  try:
    arrays, notes = written["arrays"], written["notes"]
    if _sha256([arrays, notes]) != written["sha256"]:
      raise ValueError("the list of digests does not have its own digest")
    return {
      name: ArrayFingerprint(tuple(known["shape"]), known["dtype"], known["digest"]) for name, known in arrays.items()
    }, notes
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"the list of digests has another form ({error!r})") from error


def _sha256(values) -> str:
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def by_path(tree) -> dict[str, Any]:
  """Returns the leaves of a tree, in its order, by their paths "a/b/c"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
  }


@jax.jit
def _sums(leaves) -> list[jax.Array]:
  """Computes for each array uint32 (3,): two sums over its mixed words, and a count of numbers that are not finite."""
  return [_sum(x) for x in leaves]


def _sum(x) -> jax.Array:
  words = _words(x)
  place = jnp.ones(words.shape, jnp.uint32)  # number of each word in the array, from its place along each axis
  for axis in range(words.ndim):
    stride = np.uint32(np.prod(words.shape[axis + 1 :], dtype=np.uint64) & 0xFFFFFFFF)
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
  mixed = _mix(words ^ _mix(place))
  totals = mixed, mixed * mixed, ~jnp.isfinite(x)
  return jnp.stack([jnp.sum(total, dtype=jnp.uint32) for total in totals])


def _words(x) -> jax.Array:
  """Casts the bits of each number to uint32; 64 bits make two words, along a new last axis."""
  x = x[None] if x.ndim == 0 else x
  x = x.astype(jnp.uint8) if x.dtype == bool else x
  return jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}").astype(jnp.uint32)


def _mix(x):
  """Permutes the words of 32 bits so that every bit affects all others (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
