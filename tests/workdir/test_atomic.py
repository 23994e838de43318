"""A file is replaced as a whole, or stays as it was."""

import json

import pytest

from jet_jax.workdir.atomic import replacing, write_bytes, write_json


def test_a_file_is_replaced_and_its_folder_is_made(tmp_path):
  path = tmp_path / "new" / "a.json"
  write_bytes(path, b"old")
  write_json(path, {"step": 3})
  assert json.loads(path.read_text()) == {"step": 3}
  assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / "a"
  write_bytes(path, b"old")
  with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
    temporary.write_bytes(b"half")
    raise KeyboardInterrupt
  assert path.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [path]
