"""Unusable input is rejected before anything is compiled or written, with value, rule and fix."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import small_runs
from jet_jax import evaluate, sample, train
from jet_jax.config import override
from tools import (
  benchmark,
  cost,
  describe_data,
  export,
  gpu_check,
  import_big_vision,
  invertibility,
  latents,
  prepare_data,
  progress,
  report,
  results,
  sweep,
)  # fmt: skip


@pytest.fixture(autouse=True)
def compile_nothing(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("compiled before all was checked")

  monkeypatch.setattr(jax, "jit", refuse)


@pytest.mark.fault(24)
@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"patch_size": 3}, r"patch_size=3 must divide the image height 8; try one of \[1, 2, 4, 8\]"),
    ({"patch_size": 1}, "patch_size\\*\\*2 \\* channels = 1; use an even patch_size"),
    ({"patch_size": 8}, "equal halves.*1x1 patches"),
    ({"heads": 3}, r"heads=3 must divide width=8; try one of \[1, 2, 4, 8\]"),
    ({"batch_size": 1598}, "batch_size=1598 is larger than the 1597 images.*set it lower"),
    ({"data.source": "folder:missing", "levels": 256}, "missing does not exist; give the path of a folder"),
    ({"data.source": "npz:missing.npz", "levels": 256}, "missing.npz"),
    ({"levels": 256}, "set levels=17"),
    ({"wandb_project": "jet"}, "wandb is not installed; pip install"),
  ],
)
def test_values_that_do_not_fit_are_refused(settings, message, tiny_config, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  with pytest.raises(ValueError, match=message):
    train.prepare(tiny_config(**settings), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.fault(18)
def test_an_empty_folder_is_refused(tiny_config, tmp_path):
  (tmp_path / "images").mkdir()
  with pytest.raises(ValueError, match=r"no image below .*must end in one of \.png"):
    train.prepare(tiny_config(levels=256, **{"data.source": f"folder:{tmp_path / 'images'}", "data.size": 8}), tmp_path)


@pytest.mark.fault(24)
def test_odd_channels_are_refused(tiny_config, tmp_path):
  np.savez(tmp_path / "a.npz", **{f"{split}_images": np.zeros((20, 4, 4, 3), np.uint8) for split in ("train", "test")})
  config = tiny_config(levels=256, patch_size=1, **{"data.source": f"npz:{tmp_path / 'a.npz'}"})
  with pytest.raises(ValueError, match="channels = 3; use an even patch_size or an even number of channels"):
    train.prepare(config, tmp_path / "run")


@pytest.mark.fault(24)
def test_a_batch_that_the_devices_cannot_share_is_refused():
  class Mesh:
    size = 8

  with pytest.raises(ValueError, match="batch_size=12 must be a multiple of the 8 devices; try 8"):
    train.sharding.check_batch_size(12, Mesh())


@pytest.mark.fault(25)
@pytest.mark.parametrize("place", ["run", "run/below", "/proc/run"])  # nobody can write in /proc, not even root
def test_a_file_in_the_place_of_the_workdir_is_refused(tiny_config, tmp_path, place):
  (tmp_path / "run").write_text("a file")
  with pytest.raises(ValueError, match="cannot be used"):
    train.prepare(tiny_config(), tmp_path / place)


@pytest.mark.fault(25)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workdir_is_refused(tiny_config, tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ValueError, match="cannot be used"):
    train.prepare(tiny_config(), tmp_path)


@pytest.mark.fault(25)
@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "samples", "tensorboard"])
def test_what_lies_in_the_place_of_a_runs_files_is_refused(tiny_config, tmp_path, name):
  path = tmp_path / name
  path.mkdir() if name == "metrics.jsonl" else path.write_text("a file")
  with pytest.raises(ValueError, match=f"{name} must be a (file|folder) that can be written; move it away"):
    train.prepare(tiny_config(), tmp_path)
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(27, 31)
@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"seed": 0, ', "config.json is not JSON.*remove it"),
    ("[]", "is not the config of a run"),
    ('{"seed": 0}', "no image_shape"),
    ('{"image_shape": [8, 8, 1], "sed": 0}', "config.json: unknown config field 'sed', did you mean 'seed'"),
    ("[" * 10**5, "config.json is not JSON.*remove it"),
    ('{"image_shape": [8, 8, 1], "__class__": 0}', "config.json: '?__class__'? cannot"),
    (
      '{"image_shape": [8, 8, 1], "total_steps": 1, "couplings": 1000000000}',
      "couplings=1000000000 must be at least 1",
    ),
    ('{"image_shape": [8, 8, 1], "total_steps": 1, "microbatches": 2048}', "microbatches=2048 must be .* at most 1024"),
    *(
      (f'{{"total_steps": 1, "image_shape": {shape}}}', "config.json: image_shape=.* must be integers .* remove it")
      for shape in ("[8, 8]", "[8, 8.5, 1]", "[-8, 8, 1]", '["8", 8, 1]', "[1000000, 1000000, 3]", "[65536, 65536, 3]")
    ),
  ],
)
def test_a_broken_config_in_the_workdir_is_refused(text, message, tiny_config, tmp_path):
  (tmp_path / "config.json").write_text(text)
  small_runs.pretend_saved(tmp_path)
  with pytest.raises(ValueError, match=message):
    train.prepare(tiny_config(), tmp_path)
  for main in (evaluate.main, sample.main):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
      main([f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
  "flag",
  [
    "--num=0",
    "--num=2147483648",
    "--seed=-1",
    "--seed=99999999999999999999",
    "--temperature=-1",
    "--temperature=nan",
    "--temperature=inf",
    "--temperature=1,-1",
    "--device_batch=0",
  ],
)
def test_flags_of_sampling_without_sense_are_refused(flag, tmp_path):
  with pytest.raises(SystemExit, match=f"error: {flag.partition('=')[0]}=.* must be at least"):
    sample.main([f"--workdir={tmp_path}", flag])


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--out=a.jpg", "a.jpg must end in .png"),
    ("--out=/proc/new/", "/proc/new/00000.png cannot be written"),
    ("--npz=a.npy", "must end in .npz"),
  ],
)
def test_outputs_of_sampling_are_checked_first(flag, message, tmp_path):
  with pytest.raises(SystemExit, match=f"error: .*{message}"):
    sample.main([f"--workdir={tmp_path}", flag])


def test_commands_reject_addresses_before_anything_is_written(tmp_path, monkeypatch, capsys):
  configs = pathlib.Path.cwd() / "configs"
  monkeypatch.chdir(tmp_path)
  run, config = "--workdir=run", f"--config={configs}/digits.py"
  for main, *arguments in (
    (train.main, config, "--workdir=s3://bucket/run"),
    (train.main, config, "--workdir=gs:/bucket/run"),
    (train.main, config, run, "--config.data.source=folder:s3://bucket/x", "--config.levels=256"),
    (train.main, f"{config}:init_from=hdfs://bucket/run", run),
    (train.main, f"{config}:data_dir=gs://bucket", run),
    (train.main, "--config=gs://bucket/config.py", run),
    (evaluate.main, "--workdir=http://bucket/run"),
    (evaluate.main, run, "--data_dir=gs://bucket"),
    (sample.main, run, "--out=gs://bucket/a.png"),
    (sample.main, run, "--npz=gs://bucket/a.npz"),
    (prepare_data.main, "--dataset=images", "--name=a", "--source=folder:gs://b/x", "--data_dir=data"),
    (prepare_data.main, "--dataset=images", "--name=a", "--source=folder:x", "--data_dir=gs://bucket"),
    (prepare_data.main, "--dataset=cifar10", "--source=s3://bucket/x", "--data_dir=data"),
  ):
    with pytest.raises(SystemExit) as stopped:
      main(arguments)
    message = f"{stopped.value} {capsys.readouterr().err}"
    assert "is an address, and only paths of this machine" in message, arguments
  assert not list(tmp_path.iterdir())


def test_a_config_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(pathlib.Path, "read_text", refuse)
  for main in (evaluate.main, sample.main):
    with pytest.raises(SystemExit, match=r"error: .*config\.json cannot be read .* check its owner and mode"):
      main([f"--workdir={tmp_path}"])


@pytest.mark.fault(14)
def test_validation_images_of_another_shape_are_refused(tiny_config, tmp_path):
  images = np.zeros((20, 8, 8, 2), np.uint8)
  np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:, :4])
  config = tiny_config(levels=256, **{"data.source": f"npz:{tmp_path / 'a.npz'}"})
  with pytest.raises(ValueError, match=r"training images are \(8, 8, 2\) and validation images \(4, 8, 2\)"):
    train.prepare(config, tmp_path / "run")


@pytest.mark.fault(11, 14)
@pytest.mark.parametrize(
  ("name", "value"), [("seed", 1), ("batch_size", 32), ("model.couplings", 3), ("ema_decay", 0.5), ("data.flip", True)]
)
def test_another_run_in_the_same_workdir_is_refused(tiny_config, tmp_path, name, value):
  train.prepare(tiny_config(), tmp_path)
  small_runs.pretend_saved(tmp_path)
  may_change = {"total_steps": 9, "lr": 0.1, "remat": "none", "data.size": 8}  # digits have that size
  train.prepare(tiny_config(**may_change), tmp_path)
  here = train.config_lib.load(tmp_path).to_dict()
  for key in name.split("."):
    here = here[key]
  message = f"holds a run with {name}={here}, and this one has {name}={value}; use another --workdir"
  with pytest.raises(ValueError, match=message):
    train.prepare(override(tiny_config(), {name: value}), tmp_path)


@pytest.mark.fault(18)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused(tiny_config, tmp_path, split):
  images = {f"{one}_images": np.zeros((0 if one == split else 20, 8, 8, 1), np.uint8) for one in ("train", "test")}
  np.savez(tmp_path / "a.npz", **images)
  with pytest.raises(ValueError, match=f"has no image in its split '{split}'"):
    train.prepare(tiny_config(levels=256, **{"data.source": f"npz:{tmp_path / 'a.npz'}"}), tmp_path / "run")


@pytest.mark.fault(23)
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--config=configs/digits.py", "--config.total_steps=-3"],
      "error: total_steps=-3 must be finite and not negative",
    ),
    (["--config=configs/digits.py", "--config.model.couplngs=3"], "did you mean '--config.model.couplings'"),
    (["--config=configs/digit.py"], "configs/digit.py"),
    (["--config=configs/digits.py:couplngs=3"], "did you mean 'model.couplings'"),
    (["--config=configs/digits.py", "--config.batch_size=many"], "many"),
    (["--config=configs/digits.py", "--config.model.patch_size=3"], "error: patch_size=3 must divide"),
    (["--config=configs/digits.py", "extra"], "unknown arguments extra"),
    (["--config=configs/digits.py", "--wokdir=x"], "did you mean '--workdir'"),
  ],
)
def test_the_command_line_names_what_is_wrong(arguments, message, tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    train.main([f"--workdir={tmp_path / 'run'}", *arguments])
  (line,) = f"{stopped.value if stopped.value.code != 2 else ''}{capsys.readouterr().err}".splitlines()
  assert line.startswith("error: ")
  assert message in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("tool", "arguments"),
  [
    (benchmark, ["--config={}"]),
    (cost, ["--config={}"]),
    (describe_data, ["--source=npz:{}"]),
    (export, ["--workdir={}", "--out={}"]),
    (gpu_check, ["--parts={}", "--out={}"]),
    (import_big_vision, ["--npz={}", "--workdir={}", "--image_shape=8,8,1"]),
    (invertibility, ["--workdir={}"]),
    (latents, ["reconstruct", "--workdir={}", "--out={}.png"]),
    (prepare_data, ["--dataset=check", "--source={}"]),
    (progress, ["{}"]),
    (report, ["--workdir={}", "--out={}.html"]),
    (results, ["--id=new", "--add={}"]),
    (sweep, ["--sweep={}.py", "--out={}"]),
  ],
  ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_tool_rejects_what_is_missing_in_one_line_without_control_characters(tool, arguments, tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    tool.main([argument.replace("{}", f"{tmp_path}/mis\x1b[2Jsing") for argument in arguments])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert "mis\\x1b[2Jsing" in said
  assert said.removesuffix("\n").isprintable()
  assert not list(tmp_path.iterdir())


@pytest.mark.fault(23)
@pytest.mark.process
def test_a_wrong_command_ends_with_one_line_and_a_status(tmp_path):
  command = [sys.executable, "-m", "jet_jax.train", f"--workdir={tmp_path / 'run'}", "--config=configs/digits.py"]
  result = subprocess.run([*command, "--config.lrr=1"], capture_output=True, text=True, timeout=300, check=False)
  assert result.returncode != 0
  (line,) = result.stderr.splitlines()
  assert line == "error: unknown flag --config.lrr, did you mean '--config.lr'; --help lists all"


def test_the_broken_image_of_a_folder_is_named(tiny_config, tmp_path):
  for split in ("train", "val"):
    (tmp_path / split).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / split / "b.png")
  (tmp_path / "train" / "a.png").write_bytes(b"")
  with pytest.raises(ValueError, match=r"a\.png.*repair or remove"):
    train.prepare(tiny_config(levels=256, **{"data.source": f"folder:{tmp_path}", "data.size": 8}), tmp_path / "run")
