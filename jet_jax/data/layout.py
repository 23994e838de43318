"""The layout of image files in folders: which folders are splits, and which look like splits or masks but cannot be.

Such folders are rejected, with the way to have them taken as classes: otherwise a flow would be trained on its test
set, or on masks, without a sign of it.
"""

import posixpath
from collections.abc import Sequence

from jet_jax.data.archives import Files
from jet_jax.data.masks import find_masks, folders_by_parent
from jet_jax.data.splits import SURE_NAMES, is_like_split, is_split_name, look_alikes, match_splits, split_of

FEW = 0.01  # share of the images that may look like masks, which a flow does not notice


def splits_of_folders(files: Files) -> dict[str, str]:
  """Maps each split to the top folder that is called so; {} if no folder looks like a split.

  Raises:
    ValueError: folders that look like splits beside others or under other names, or two for one split.
  """
  folders = sorted({name.partition("/")[0] for name in files.names if "/" in name})
  alike, pattern = look_alikes(folders)
  if all(map(split_of, folders)) and (alike or any(map(is_split_name, folders))):
    return match_splits(folders, files.path)
  like_splits = sorted({*alike, *filter(is_like_split, folders)})
  if like_splits:
    others = [folder for folder in folders if folder not in like_splits]
    beside = f", beside {_some(others)}" if others else ""
    names = ", ".join(name for names in SURE_NAMES.values() for name in names)
    example = f", such as {files.path}/{pattern}" if pattern and files.path.is_dir() else ""
    raise ValueError(
      f"{files.path} has folders {_some(like_splits)}, which look like splits{beside}; splits are called {names}. "
      "Rename or move one or the other, or give a path with {split} in place of the split's name"
      f"{example}. {_way_out(files)}"
    )
  return {}


def find_oddities(files: Files, in_split: bool) -> tuple[list[str], list[str]]:
  """Looks for splits and masks among the files of one split, or of a data set without splits.

  Args:
    files: named as within the split.
    in_split: False for a data set without splits.

  Returns:
    (reasons to reject the data set, warnings), a sentence each.
  """
  reasons, warnings = [], []
  inside = "inside a split" if in_split else "inside other folders"
  for parent, folders in folders_by_parent(files.names).items():
    alike, _ = look_alikes(folders)
    lone = [] if in_split or not parent else [one for one in folders if is_split_name(one) and split_of(one) != "train"]
    where = _some([posixpath.join(parent, name) for name in alike or sorted(lone)])
    if alike:
      reasons.append(f"folders {where} look like splits {inside}; make the splits the top folders, without masks")
    elif lone:
      warnings.append(f"{where} is called as a split, but taken as any other folder")
  masks = find_masks(files.names)
  if masks:
    found = reasons if len(masks) > FEW * len(files) else warnings
    found.append(f"{len(masks):,} of {len(files):,} images look like masks: {_some(masks)}; move them elsewhere")
  return reasons, warnings


def reject(files: Files, reason: str, in_split: bool) -> None:
  """Raises ValueError for a reason of `find_oddities`, with the way to have the folders taken as classes."""
  raise ValueError(f"{files.path}: {reason}. {_way_out(files, in_split)}")


def _way_out(files: Files, in_split: bool = False) -> str:
  if in_split and files.path.is_dir():
    return f"If they are classes, give the path {files.path}/{{split}}"
  suffix = "" if files.path.is_dir() else files.path.suffix
  return (
    f"If they are classes, rename {files.path.name} to train{suffix} and give the path "
    f"{files.path.parent / ('{split}' + suffix)}"
  )


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
