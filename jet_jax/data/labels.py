"""Labels of examples, for a flow that reads them: numbers of the classes of its training split, or -1 for none."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jet_jax.data.splits import NO_LABEL


def number_of_classes(classes: int, training: Any, source: str) -> int:
  """Returns the number of labels that a flow reads, which is that of its training images, or 0.

  Args:
    classes: `config.model.classes`; -1 stands for those that there are.
    training: examples of the training split.
    source: `config.data.source`, for the message.

  Raises:
    ValueError: the images have another number of classes, or none.
  """
  number = len(training.classes)
  if classes not in (0, number) and (classes != -1 or not number):
    raise ValueError(
      f"model.classes={classes}, and the training images of {source} have {number or 'no'} classes; "
      f"set model.classes={number}"
    )
  return number if classes else 0


def have_labels(examples: Any, names: Sequence[str]) -> bool:
  """Returns True if examples have labels of these classes, False if they have none at all.

  Args:
    examples: of a split.
    names: of the classes that a flow was trained with.

  Raises:
    ValueError: labels of other classes, whose numbers would mean other things.
  """
  if not len(examples.classes):
    return False
  theirs = tuple(map(str, examples.classes))
  if theirs != tuple(names):
    n = next(
      (n for n, pair in enumerate(zip(theirs, names, strict=False)) if pair[0] != pair[1]),
      min(map(len, (theirs, names))),
    )
    named = lambda names: repr(names[n]) if n < len(names) else "none"
    raise ValueError(
      f"these images have {len(theirs)} classes, and the flow was trained with {len(names)}; class {n} is "
      f"{named(theirs)} here and {named(names)} there. Give images with the same classes, or without any"
    )
  return True


def labels_of(batch: dict[str, np.ndarray], are_known: bool) -> np.ndarray:
  """Returns the labels of a batch, int32 (B,); `NO_LABEL` for all if they are not those of the flow."""
  return batch["label"] if are_known else np.full(len(batch["index"]), NO_LABEL, np.int32)
