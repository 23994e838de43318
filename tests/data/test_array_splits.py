"""npz files of others: usual names and shapes are read, and for any other a message gives the line that mends it."""

import re

import numpy as np
import pytest
from PIL import Image

from jet_jax.data import sources

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 6, 3), np.uint8)
GRAY = IMAGES[..., 0]
LABELS = np.arange(40) % 3


def write(path, **arrays):
  np.savez(path / "set.npz", **arrays)
  return f"npz:{path}/set.npz"


def both(source):
  return sources.open_splits(source, 0, 256, ["train", "validation"])


def pixels(examples):
  return np.stack([example["image"] for example in examples])


@pytest.mark.parametrize(
  ("images", "labels", "other"),
  [
    ("train_images", "train_labels", "val_images"),  # MedMNIST
    ("x_train", "y_train", "x_test"),  # Keras
    ("X_train", "Y_train", "X_valid"),
    ("trX", "trY", "teX"),
    ("training_data", "training_targets", "testing_data"),
    ("train", "train_labels", "test"),
  ],
)
def test_usual_names_are_read(tmp_path, images, labels, other):
  train, validation = both(write(tmp_path, **{images: IMAGES, labels: LABELS[:, None], other: IMAGES[:5]}))
  np.testing.assert_array_equal(pixels(train), IMAGES)
  np.testing.assert_array_equal(pixels(validation), IMAGES[:5])
  assert [int(example["label"]) for example in train] == LABELS.tolist()
  assert (train.classes, validation.classes, train.warnings) == (["0", "1", "2"], (), ())


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1"), ("x", "y"), ("data", "targets")])
def test_images_without_a_split_are_for_training_and_five_percent_are_held_out(tmp_path, names):
  """As `jet_jax.sample --npz` writes them, for one."""
  train, validation = both(write(tmp_path, **dict(zip(names, (IMAGES, LABELS), strict=True))))
  assert len(train) + len(validation) == 40
  assert 1 <= len(validation) <= 6
  for examples in (train, validation):
    for example in examples:
      (k,) = np.flatnonzero((example["image"] == IMAGES).all(axis=(1, 2, 3)))
      assert example["label"] == LABELS[k]
  again = both(write(tmp_path, **dict(zip(names, (IMAGES, LABELS), strict=True))))
  np.testing.assert_array_equal(pixels(again[1]), pixels(validation))


def test_files_per_split_may_name_no_split_inside(tmp_path):
  for name, images in (("train", IMAGES), ("test", IMAGES[:5])):
    np.savez(tmp_path / f"{name}.npz", images=images)
  assert [len(examples) for examples in both(f"npz:{tmp_path}/{{split}}.npz")] == [40, 5]


def test_gray_and_binary_images_get_their_channel(tmp_path):
  train, validation = both(write(tmp_path, train_images=GRAY, val_images=GRAY[:4] > 99))
  np.testing.assert_array_equal(pixels(train), GRAY[..., None])
  np.testing.assert_array_equal(pixels(validation), (GRAY[:4] > 99).astype(np.uint8)[..., None])


@pytest.mark.parametrize(
  ("labels", "classes", "without"),
  [
    (LABELS * 10**9, ["0", "1000000000", "2000000000"], 0),
    (np.where(LABELS == 0, -1, LABELS), ["1", "2"], 14),
    (np.where(LABELS == 0, -1, LABELS).astype(np.uint32), ["1", "2"], 14),
    (np.where(LABELS == 0, -1, LABELS).astype(np.uint64), ["1", "2"], 14),
    (LABELS - 7, ["-5", "-6", "-7"][::-1], 0),
    (LABELS > 0, ["0", "1"], 0),
    (np.array(["cat", "dog", "eel"])[LABELS], ["cat", "dog", "eel"], 0),
  ],
)
def test_classes_are_the_labels_that_occur_and_minus_one_is_none(tmp_path, labels, classes, without):
  (train, _) = both(write(tmp_path, train_images=IMAGES, train_labels=labels, val_images=IMAGES[:2]))
  assert train.classes == classes
  numbers = [int(example["label"]) for example in train]
  assert numbers.count(-1) == without
  shown = labels.view(f"i{labels.itemsize}") if labels.dtype.kind == "u" else labels
  shown = shown.astype(int) if labels.dtype.kind == "b" else shown
  assert all(number == -1 or classes[number] == str(label) for number, label in zip(numbers, shown, strict=True))
  assert bool(train.warnings) == bool(without)


def test_a_label_that_training_lacks_is_none(tmp_path):
  arrays = {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES[:3], "val_labels": [2, 5, 0]}
  _, validation = both(write(tmp_path, **arrays))
  assert [int(example["label"]) for example in validation] == [2, -1, 0]
  assert validation.warnings == ("1 of 3 images lie in no class of the training split, and have the label -1: image 1",)


def test_a_split_of_which_training_lacks_most_labels_has_none_as_a_folder_has_none(tmp_path):
  arrays = {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES[:3], "val_labels": [5, 5, 0]}
  _, validation = both(write(tmp_path, **arrays))
  assert (validation.classes, "label" in validation[0]) == ((), False)
  for name in ("train/0/a.png", "train/2/a.png", "val/5/a.png", "val/5/b.png", "val/2/a.png"):
    (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "set" / name)
  _, folder = sources.open_splits(f"folder:{tmp_path}/set", 4, 256, ["train", "validation"])
  assert (folder.classes, "label" in folder[0]) == ((), False)
  said = "2 of 3 images lie in no class of the training split, so the split has no labels"
  assert (validation.warnings, folder.warnings) == ((f"{said}: image 0",), (f"{said}: 5/a.png",))


def test_images_without_a_split_are_for_training_beside_those_of_another(tmp_path):
  train, test = both(write(tmp_path, images=IMAGES, labels=LABELS, test_images=IMAGES[:5], test_labels=LABELS[:5]))
  np.testing.assert_array_equal(pixels(train), IMAGES)
  assert [int(example["label"]) for example in train] == LABELS.tolist()
  assert (len(test), train.warnings) == (5, ())


@pytest.mark.parametrize("named", [{}, {"x_train": IMAGES[:9], "y_train": LABELS[:9]}])
def test_arrays_that_are_not_used_are_told(tmp_path, named):
  """As `np.savez(FILE, x, y, x_test, y_test)` stores the last two."""
  np.savez(tmp_path / "set.npz", IMAGES, LABELS, IMAGES[:9], LABELS[:9], **named)
  unused = [f"arr_{k}" for k in range(4) if named or k > 1]
  for examples in both(f"npz:{tmp_path}/set.npz"):
    assert len(examples) < 40
    assert len(examples.warnings) == 1
    assert sorted(examples.warnings[0].partition("not used: ")[2].split(", ")) == unused


def test_a_file_of_a_split_with_images_of_another_is_refused(tmp_path):
  np.savez(tmp_path / "s_train.npz", x_train=IMAGES, x_test=IMAGES)
  np.savez(tmp_path / "s_val.npz", x_test=IMAGES[:7])
  with pytest.raises(
    ValueError, match=r"s_val.npz is the file of the validation split .* of another: x_test; call them"
  ):
    both(f"npz:{tmp_path}/s_{{split}}.npz")
  np.savez(tmp_path / "s_val.npz", x=IMAGES[:7])
  train, validation = both(f"npz:{tmp_path}/s_{{split}}.npz")
  assert (len(train), len(validation)) == (40, 7)
  assert train.warnings == (f"{tmp_path}/s_train.npz has arrays that are not used: x_test",)


def test_images_without_pixels_are_refused_by_name(tmp_path):
  with pytest.raises(ValueError, match=r"set.npz: images is uint8 \(4, 0, 8, 3\), images without a pixel"):
    both(write(tmp_path, images=np.zeros((4, 0, 8, 3), np.uint8)))


@pytest.mark.parametrize(
  "images",
  [
    IMAGES / 255,
    IMAGES / np.float32(127.5) - 1,
    IMAGES.astype(np.float32),
    IMAGES.astype(np.int64),
    IMAGES.astype(np.uint16) * 257,
    IMAGES.transpose(0, 3, 1, 2),
    IMAGES[0],
    IMAGES[:, :4, :4].transpose(0, 3, 1, 2).reshape(40, -1),
  ],
)
def test_images_of_other_shapes_and_types_are_refused_with_the_line_that_mends_them(tmp_path, images):
  with pytest.raises(ValueError, match="x_train is .*it must be uint8") as caught:
    both(write(tmp_path, x_train=images))
  line = re.search(r"In numpy: x_train = (.*)$", str(caught.value))[1]  # type: ignore
  mended = eval(line, {"np": np, "x_train": images})
  if len(mended) == 1:
    mended = np.repeat(mended, 40, axis=0)
  train, _ = both(write(tmp_path, x_train=mended))
  assert train[0]["image"].shape[-1] == 3
  expected = IMAGES[0] if mended.shape[2] == 6 else IMAGES[0, :4, :4]
  np.testing.assert_allclose(mended[0].astype(int), expected, atol=1)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (
      {"pictures": IMAGES, "n": np.int32(3)},
      r"no images .*it has pictures uint8 \(40, 4, 6, 3\), n int32",
    ),
    ({}, "no images .* it has no array. Write np.savez"),
    ({"x_train": IMAGES, "train_images": IMAGES}, "has x_train and train_images, which mean the same; keep one"),
    ({"images": IMAGES, "labels": np.array([b"a"] * 40)}, r"In numpy: labels = labels.astype\(str\)"),
    (
      {"images": IMAGES, "labels": np.eye(3)[LABELS]},
      r"integers or texts \(40,\).* In numpy: labels = labels.argmax\(1\)",
    ),
    ({"images": IMAGES, "labels": LABELS / 1}, r"In numpy: labels = labels.astype\(int\)"),
    (
      {"images": IMAGES, "labels": LABELS[:9]},
      r"labels is int64 \(9,\); it must be integers or texts \(40,\), one for each",
    ),
  ],
)
def test_other_arrays_are_refused_with_what_there_is(tmp_path, arrays, message):
  with pytest.raises(ValueError, match=message):
    both(write(tmp_path, **arrays))
