"""Untrusted npz files: anything unreadable raises a ValueError that names the file, the array and the reason."""

import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from jet_jax.data import sources
from jet_jax.data.npz import Npz
from tools import import_big_vision
from tools.preparing import imagenet_npz


def header_of(shape, dtype="<f4"):
  """The beginning of a .npy file that claims an array."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
  return file.getvalue()


def test_arrays_are_read_one_at_a_time(tmp_path):
  arrays = {"a/b": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2), np.uint8), "number": np.float32(3)}
  np.savez_compressed(tmp_path / "some.npz", **arrays)
  with zipfile.ZipFile(tmp_path / "some.npz", "a") as archive:
    archive.writestr("broken.npy", b"no array")
  with Npz(tmp_path / "some.npz") as npz:
    assert list(npz) == [*arrays, "broken"]
    assert "broken" in npz
    assert "other" not in npz
    assert npz.get("other") is None
    assert npz.header("a/b") == ((2, 3), np.float64)
    for name, array in arrays.items():
      np.testing.assert_array_equal(npz[name], array)
    with pytest.raises(ValueError, match=r"broken in .*some.npz cannot be read .*magic string"):
      npz["broken"]


@pytest.mark.fault(27)
@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (None, "there is no such file"),
    (b"", "not a zip file"),
    (pickle.dumps({"a": 1}), "not a zip file"),
    (b"PK\x03\x04 and nothing else", "not a zip file"),
  ],
)
def test_a_file_that_is_no_npz_is_refused(content, reason, tmp_path):
  path = tmp_path / "some.npz"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=f"some.npz cannot be read .*{reason}") as caught:
    Npz(path)
  assert "allow_pickle" not in str(caught.value)


@pytest.mark.fault(27)
@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"garbage", "magic string"),
    (header_of((2, 3)), r"claims float32 \(2, 3\), 24 bytes, and it has 0"),
    (header_of((10**12,)) + bytes(24), "4,000,000,000,000 bytes, and it has 24"),
    (header_of((10**30,)) + bytes(24), "and it has 24"),
    (header_of((-6,)) + bytes(24), "claims"),
    (header_of((1,), "|O") + pickle.dumps([1]), "Object arrays cannot be loaded"),
    (header_of((1,), "<f4" + " " * 20_000) + bytes(4), "Header info length"),
  ],
)
def test_an_array_that_is_not_what_its_header_claims_is_refused(content, reason, tmp_path):
  with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
    archive.writestr("a.npy", content)
  message = f"a in .*some.npz cannot be read .*{reason}"
  with Npz(tmp_path / "some.npz") as npz, pytest.raises(ValueError, match=message) as caught:
    npz["a"]
  assert "allow_pickle=True" not in str(caught.value), "no advice to trust the file"


@pytest.mark.fault(27)
@pytest.mark.parametrize(
  ("local", "central", "value", "reason"),
  [
    (6, 8, 1, "encrypted"),  # flags
    (8, 10, 97, "compression"),  # method
    (14, 16, 1, "CRC"),
    (55, None, 255, "while decompressing"),  # the first byte of the data
  ],
)
def test_a_damaged_or_encrypted_member_is_refused(local, central, value, reason, tmp_path):
  np.savez_compressed(tmp_path / "some.npz", a=np.random.default_rng(0).normal(size=100))
  content = bytearray((tmp_path / "some.npz").read_bytes())
  content[content.index(b"PK\x03\x04") + local] = value
  if central is not None:
    content[content.index(b"PK\x01\x02") + central] = value
  (tmp_path / "some.npz").write_bytes(content)
  with (
    Npz(tmp_path / "some.npz") as npz,
    pytest.raises(ValueError, match=f"a in .*some.npz cannot be read .*({reason})"),
  ):
    npz["a"]


def test_an_array_may_be_as_large_as_its_file_can_hold_and_no_larger(tmp_path):
  np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros(10**7, np.uint8))
  with Npz(tmp_path / "zeros.npz") as npz:
    assert not npz["a"].any()
  with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
    archive.writestr("a.npy", header_of((10**7,), "|u1"))
    archive.filelist[0].file_size += 10**7  # the table of contents lies as the header does
  with Npz(tmp_path / "bomb.npz") as npz, pytest.raises(ValueError, match="10,000,000 bytes, more than a file of this"):
    npz["a"]


def read_release(path):
  for name in (*(f"train_data_batch_{k}.npz" for k in range(2, 11)), "val_data.npz"):
    (path.parent / name).symlink_to(path)
  return imagenet_npz.imagenet_resized(path, 32)


@pytest.mark.fault(27)
@pytest.mark.parametrize(
  ("read", "array"),
  [
    (lambda path: sources.open_source(f"npz:{path}", 0, 256, "train"), "train_images"),
    (lambda path: import_big_vision.convert(path, (16, 16, 3)), import_big_vision.CHANNEL_MASKS),
    (read_release, "data"),
  ],
  ids=["data set", "weights", "release"],
)
@pytest.mark.parametrize("kind", ["pickle", "claim", "scalar", "missing"])
def test_hostile_arrays_are_refused_by_every_reader(read, array, kind, tmp_path):
  class Hostile:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "touched",)

  path = tmp_path / "train_data_batch_1.npz"
  if kind == "claim":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr(f"{array}.npy", header_of((10**12, 3072), "|u1"))
  else:
    content = {"pickle": np.full((1, 3072), Hostile()), "scalar": np.uint8(1), "missing": 0}[kind]
    np.savez(path, **{"other" if kind == "missing" else array: content})
  with pytest.raises(ValueError, match=r"train_data_batch_1\.npz|channel_coupling_masks"):
    read(path)
  assert not (tmp_path / "touched").exists()
