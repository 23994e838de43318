"""Digests of arrays, to tell whether what is restored is what was saved.

A digest sums over all words of an array, each mixed with its place by a function that maps no two words to one. So a
change within one word always changes the digest, any other change does but for a chance of about 2**-60. It does not
matter in which order, on how many devices or by how many processes the sum is taken: nothing has to move to be summed,
and a state that is restored to other devices has the digests that it was saved with.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Fact(NamedTuple):
  """What is known of a saved array: its shape, its dtype, and its digest in 16 hexadecimal digits."""

  shape: tuple[int, ...]
  dtype: str
  digest: str = ""


def facts(tree) -> dict[str, Fact]:
  """The facts of every array of a tree, by its path "a/b/c". All processes call it together.

  Raises:
    ValueError: an array with a number in it that is not finite.
  """
  leaves = _by_path(tree)
  sums = jax.device_get(_sums(list(leaves.values())))
  broken = [
    f"{name} ({total[2]:,} of {leaf.size:,})"
    for (name, leaf), total in zip(leaves.items(), sums, strict=True)
    if total[2]
  ]
  if broken:
    raise ValueError(f"{len(broken)} arrays have numbers that are not finite, the first is {broken[0]}")
  return {
    name: shape_fact._replace(digest=f"{total[0]:08x}{total[1]:08x}")
    for (name, shape_fact), total in zip(shape_facts(tree).items(), sums, strict=True)
  }


def shape_facts(like) -> dict[str, Fact]:
  """As `facts`, but without digests, for a tree of ShapeDtypeStructs."""
  return {name: Fact(tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _by_path(like).items()}


def to_json(facts: Mapping[str, Fact], notes: dict[str, Any]) -> dict[str, Any]:
  """What can be written as JSON and be read by `from_json`; `notes` are any that can."""
  arrays = {name: fact._asdict() | {"shape": list(fact.shape)} for name, fact in facts.items()}
  return {"arrays": arrays, "notes": notes, "sha256": _sha256([arrays, notes])}


def from_json(written: dict[str, Any]) -> tuple[dict[str, Fact], dict[str, Any]]:
  """The facts and notes that were written. Raises ValueError if they are not those that `to_json` was given."""
  try:
    arrays, notes = written["arrays"], written["notes"]
    if _sha256([arrays, notes]) != written["sha256"]:
      raise ValueError("the list of digests does not have its own digest")
    return {name: Fact(tuple(fact["shape"]), fact["dtype"], fact["digest"]) for name, fact in arrays.items()}, notes
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"the list of digests has another form ({error!r})") from error


def _sha256(values) -> str:
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _by_path(tree) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
  }


@jax.jit
def _sums(leaves) -> list[jax.Array]:
  """For each array uint32 (3,): two sums over its mixed words, and how many of its numbers are not finite."""
  return [_sum(x) for x in leaves]


def _sum(x) -> jax.Array:
  words = _words(x)
  place = jnp.ones(words.shape, jnp.uint32)  # the number of each word in the array, from its place along each axis
  for axis in range(words.ndim):
    stride = np.uint32(np.prod(words.shape[axis + 1 :], dtype=np.uint64) & 0xFFFFFFFF)
    place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
  mixed = _mix(words ^ _mix(place))
  totals = mixed, mixed * mixed, ~jnp.isfinite(x)
  return jnp.stack([jnp.sum(total, dtype=jnp.uint32) for total in totals])


def _words(x) -> jax.Array:
  """The bits of each number of an array as uint32; of 64 bits two words, along a new last axis."""
  x = x[None] if x.ndim == 0 else x
  return jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}").astype(jnp.uint32)


def _mix(x):
  """A permutation of the words of 32 bits that spreads every bit over all (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
