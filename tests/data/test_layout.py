"""Layouts of image folders: splits are recognized, and what looks like splits or masks elsewhere is rejected."""

import re
import zipfile

import pytest

from jet_jax.data import sources
from jet_jax.data.masks import find_masks
from pictures import write_images


def opened(source, size=4):
  """Opens the splits for training, and returns the numbers of images and the classes."""
  return [
    (len(examples), list(examples.classes))
    for examples in sources.open_splits(source, size, 256, ["train", "validation"])
  ]


def zip_of(folder):
  """Writes a zip of a folder, beside it."""
  path = folder.with_suffix(".zip")
  with zipfile.ZipFile(path, "w") as archive:
    for file in sorted(folder.rglob("*.png")):
      archive.write(file, file.relative_to(folder.parent).as_posix())
  return path


def per_split(*splits, below="{}/cat/{}.png", count=2):
  return [below.format(split, k) for split in splits for k in range(count)]


@pytest.mark.parametrize(
  "names", [("training", "testing"), ("Train", "DEV"), ("trn", "val"), ("tr", "te"), ("train", "holdout")]
)
def test_splits_under_their_usual_names_are_recognized_in_folders_and_archives(tmp_path, names):
  classes = [f"{split}/{name}" for split in names for name in ("cat", "dog")]
  folder = write_images(tmp_path / "set", per_split(*classes, below="{}/{}.png"))
  for source in (f"folder:{folder}", f"archive:{zip_of(folder)}", f"folder:{folder}/{{split}}"):
    assert opened(source) == [(4, ["cat", "dog"])] * 2


@pytest.mark.parametrize(
  ("names", "found"),
  [
    (per_split("train_images", "test_images"), "test_images, train_images, which look like splits"),
    (per_split("Train_64x64", "Valid_64x64"), "Train_64x64, Valid_64x64, which look like splits"),
    (per_split("train", "test", "masks"), "test, train, which look like splits, beside masks"),
    (per_split("train", "val", "valid"), "val and valid, which both name the validation split"),
    (
      per_split("bottle/train", "bottle/test", "cable/train"),
      "bottle/test, bottle/train look like splits inside other",
    ),
    ([*per_split("set/train", "set/val"), "preview.png"], "set/train, set/val look like splits inside other folders"),
    (per_split("train/train", "train/test"), "test, train look like splits inside a split"),
    (per_split("images", "masks"), "2 of 4 images look like masks: masks/cat/0.png, masks/cat/1.png"),
    (["1.png", "1_mask.png", "2.png"], "1 of 3 images look like masks: 1_mask.png"),
    (per_split("train/images", "train/labels", "val/images"), "2 of 4 images look like masks: labels/cat/0.png"),
  ],
)
def test_what_looks_like_splits_or_masks_is_refused_by_name(tmp_path, names, found):
  folder = write_images(tmp_path / "set", names)
  for source in (f"folder:{folder}", f"archive:{zip_of(folder)}"):
    with pytest.raises(ValueError, match=re.escape(found)):
      sources.open_all(source, 4)


def test_a_refusal_gives_the_path_that_works(tmp_path):
  folder = write_images(tmp_path / "set", per_split("train_images", "test_images"))
  with pytest.raises(ValueError, match="in place of the split's name, such as ") as caught:
    sources.open_all(f"folder:{folder}", 4)
  path = re.search(r"such as (\S+)\. ", str(caught.value))[1]  # type: ignore
  assert opened(f"folder:{path}") == [(2, []), (2, [])]


def test_the_way_out_that_a_refusal_names_is_one(tmp_path):
  """Classes that are called test and masks, in a whole data set and in its splits."""
  folder = write_images(tmp_path / "set", per_split("test", "train", "masks", below="{}/{}.png", count=20))
  with pytest.raises(ValueError, match="If they are classes, rename set to train and give the path ") as caught:
    sources.open_all(f"folder:{folder}", 4)
  path = re.search(r"the path (\S+)$", str(caught.value))[1]  # type: ignore
  folder.rename(tmp_path / "train")
  train, validation = sources.open_splits(f"folder:{path}", 4, 256, ["train", "validation"])
  assert train.classes == validation.classes == ["masks", "test", "train"]
  assert len(train) + len(validation) == 60
  assert [warning.partition(";")[0] for warning in train.warnings] == [
    "folders test, train look like splits inside a split",
    "20 of 60 images look like masks: masks/0.png, masks/1.png, masks/10.png, masks/11.png, masks/12.png, ...",
  ]
  inner = write_images(tmp_path / "inner", per_split("train/cat", "train/mask", "val/cat", below="{}/{}.png"))
  with pytest.raises(ValueError, match=r"If they are classes, give the path .*inner/\{split\}$"):
    sources.open_all(f"folder:{inner}", 4)
  assert opened(f"folder:{inner}/{{split}}") == [(4, ["cat", "mask"]), (2, ["cat", "mask"])]


def test_classes_with_names_near_those_of_splits_stay_classes(tmp_path):
  """Locomotives in CIFAR-100, things of ImageNet, people with and without masks."""
  folder = write_images(tmp_path / "set", per_split("train/train", "train/boat", "val/train", below="{}/{}.png"))
  assert opened(f"folder:{folder}") == [(4, ["boat", "train"]), (2, ["boat", "train"])]
  names = ["bullet_train", "gas_mask", "mask", "no_mask", "test_tube", "tr"]
  folder = write_images(tmp_path / "things", per_split(*names, below="{}/{}.png", count=20))
  assert opened(f"folder:{folder}")[0][1] == names


def test_one_loose_image_does_not_cost_the_labels(tmp_path):
  names = [*per_split("cat", "dog", below="{}/{}.png", count=16), "preview.png"]
  splits = sources.open_all(f"folder:{write_images(tmp_path / 'set', names)}", 4)
  (loose,) = [split for split in splits.values() if "preview.png" in split.files.names]
  labels = {name: int(example["label"]) for name, example in zip(loose.files.names, loose, strict=True)}
  assert labels["preview.png"] == -1
  assert {labels[name] for name in labels if name.startswith("dog/")} == {1}
  assert "lie in no class of the training split" in loose.warnings[0]
  (other,) = [split for split in splits.values() if split is not loose]
  assert other.warnings == ()


def test_images_left_out_and_folders_called_as_a_split_are_told(tmp_path):
  folder = write_images(tmp_path / "set", [*per_split("train", "val"), "preview.png"])
  train = sources.open_source(f"folder:{folder}", 4, 256, "train")
  assert train.warnings == ("files beside the splits are left out: 1, such as preview.png",)
  folder = write_images(tmp_path / "pile", per_split("2020/test", "2021", below="{}/{}.png", count=9))
  train = sources.open_source(f"folder:{folder}", 4, 256, "train")
  assert train.warnings == ("2020/test is called as a split, but taken as any other folder",)


@pytest.mark.parametrize(
  ("names", "masks"),
  [
    (["x/image.png", "x/mask.png", "mask_7.png", "img_7.png"], ["x/mask.png", "mask_7.png"]),
    (["a (1).png", "a (1)_mask_1.png", "b_GT.png", "b.jpg"], ["a (1)_mask_1.png", "b_GT.png"]),
    (["JPEGImages/1.png", "SegmentationClass/1.png", "gtFine/x/2.png"], ["SegmentationClass/1.png", "gtFine/x/2.png"]),
    (
      ["imagesTr/1.png", "labelsTr/1.png", "ground_truth/broken/0.png"],
      ["labelsTr/1.png", "ground_truth/broken/0.png"],
    ),
    (["man_with_mask.png", "man_with_hat.png", "labelled.png", "segway/1.png"], []),
    (["with_mask/1.png", "without_mask/1.png", "ski mask/1.png"], []),
    (["mask/1.png", "no_mask/1.png"], []),
  ],
)
def test_masks_are_found_by_their_folder_or_by_the_image_beside_them(names, masks):
  assert find_masks(names) == masks


@pytest.mark.parametrize("place", ["{}", "{}/{{split}}"])
def test_a_folder_without_an_image_names_what_was_skipped(tmp_path, place):
  write_images(tmp_path / "train", [".cache/1.png", ".cache/2.png"])
  (tmp_path / "train/photo.heic").touch()
  with pytest.raises(
    ValueError, match=r"no image .*1 hidden \(.*\.cache/\); 1 no image suffix \(\.heic\) \(.*photo\.heic"
  ):
    sources.open_splits(f"folder:{place.format(tmp_path)}", 4, 256, ["train"])
