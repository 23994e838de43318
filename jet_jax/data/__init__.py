"""Turns a data source, given as a string, into batches of uint8 images.

Names of splits and absolute forms of a source string are in `jet_jax.data.sources`.
"""

from jet_jax.data.adapters import skipped
from jet_jax.data.batches import Reader, eval_batches, images_of, place_ahead, train_batches
from jet_jax.data.decode import BadImage
from jet_jax.data.describe import describe
from jet_jax.data.identity import check_processes_agree, identity
from jet_jax.data.labels import have_labels, labels_of, number_of_classes
from jet_jax.data.npz import NpzWriter
from jet_jax.data.reading import ReaderDied
from jet_jax.data.sources import open_both, open_config, open_splits

__all__ = [
  "BadImage", "NpzWriter", "Reader", "ReaderDied", "check_processes_agree", "describe", "eval_batches", "have_labels",
  "identity", "images_of", "labels_of", "number_of_classes", "open_both", "open_config", "open_splits", "place_ahead",
  "skipped", "train_batches",
]  # fmt: skip
