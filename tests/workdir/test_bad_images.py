"""bad_images.txt lists each skipped image once, and a work directory that cannot be written to ends nothing."""

from jet_jax.workdir import bad_images


def test_the_first_are_named_and_all_are_listed_once(tmp_path):
  line = bad_images.record(tmp_path, {"train": ["a", "b\nc", "d\udcff", "e"], "validation": ["f"]})
  assert line is not None
  assert line.startswith("skipped unreadable images, 4 of train, 1 of validation: train: a; train: b\\nc; train: d")
  assert line.endswith(f"; ...; all are in {tmp_path / 'bad_images.txt'}")
  whole = ["train: a", "train: b\\nc", "train: d\udcff", "train: e", "validation: f"]
  for added in ([], ["a"], ["g"]):  # of a resumed run
    bad_images.record(tmp_path, {"train": added})
    whole += ["train: g"] if added == ["g"] else []
    assert (tmp_path / "bad_images.txt").read_text(errors="surrogateescape").splitlines() == whole


def test_nothing_is_written_if_nothing_was_skipped(tmp_path):
  assert bad_images.record(tmp_path, {"train": [], "validation": []}) is None
  assert not list(tmp_path.iterdir())


def test_a_list_that_cannot_be_written_is_told_in_the_line(tmp_path):
  (tmp_path / "file").touch()
  line = bad_images.record(tmp_path / "file", {"test": ["a"]})
  assert line is not None
  assert line.startswith("skipped unreadable images, 1 of test: test: a; ")
  assert "bad_images.txt cannot be written (" in line
