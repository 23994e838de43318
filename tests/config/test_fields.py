"""Fields, units, arguments after the colon, and what is refused."""

import pytest
from ml_collections import ConfigDict

from configs import digits, imagenet64
from jet_jax import config as config_lib
from jet_jax.config import default_config, override, resolve, with_argument


def test_the_argument_sets_variants_and_fields():
  config = imagenet64.get_config("runlocal,batch_size=8,model.width=32,heads=4,data.source=digits")
  assert (config.batch_size, config.model.width, config.model.heads, config.model.couplings) == (8, 32, 4, 12)
  assert config.data.source == "digits"
  assert imagenet64.get_config("large").model.couplings == 64


def test_tuples_and_their_commas_go_after_the_colon():
  config = digits.get_config("kinds=('spatial','channels'),width=8,spatial=['vstripes','hstripes']")
  assert config.model.kinds == ("spatial", "channels")
  assert config.model.spatial == ("vstripes", "hstripes")
  assert config.model.width == 8


def test_a_duration_given_last_replaces_its_other_units():
  config = imagenet64.get_config("total_steps=7")
  assert (config.total_steps, config.total_epochs) == (7, None)
  config = config_lib.from_file("configs/imagenet64.py", {"total_steps": "9"})
  assert (config.total_steps, config.total_epochs) == (9, None)


def test_values_in_quotes_may_have_commas():
  config = digits.get_config("data.source='folder:/a,b/it (1)',lr=0.5,wandb_project=\"x,y\",data_dir=/it's/c d")
  assert (config.data.source, config.lr) == ("folder:/a,b/it (1)", 0.5)
  assert (config.wandb_project, config.data.data_dir) == ("x,y", "/it's/c d")


def test_a_comma_in_a_path_without_quotes_is_explained():
  with pytest.raises(ValueError, match=r"variant 'b'.*belongs to data\.source, put that value in quotes.*--config"):
    digits.get_config("source=folder:/a,b")


def test_text_stays_text_whatever_it_looks_like():
  config = config_lib.from_file("configs/digits.py:data_dir=1_000,init_from=007", {"wandb_project": "1.50"})
  assert (config.data.data_dir, config.init_from, config.wandb_project) == ("1_000", "007", "1.50")


def test_flags_take_none_and_booleans_in_small_letters():
  flags = {"eval_steps": "None", "data.flip": "true", "model.layers": "('actnorm',)", "lr": "1", "mesh.fsdp": "1"}
  config = config_lib.from_file("configs/digits.py", flags)
  assert (config.eval_steps, config.data.flip, config.model.layers) == (None, True, ("actnorm",))
  assert (config.lr, config.mesh.fsdp) == (1.0, 1)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"couplings": "4"}, "unknown flag --config.couplings, did you mean '--config.model.couplings'"),
    ({"batchsize": "4"}, "did you mean '--config.batch_size'"),
    ({"model.depth": "4"}, "did you mean '--config.model.block_depth'"),
    ({"batch_size": "many"}, "batch_size='many' has the wrong type; give a value of type int"),
    ({"model.layers": "actnorm"}, r"give a value of type tuple, such as \('one',\) or \(\)"),
    ({"sample_num": "None"}, "sample_num=None has the wrong type; give a value of type int"),
  ],
)
def test_wrong_flags_of_fields_are_one_line(flags, message):
  with pytest.raises(ValueError, match=message) as error:
    config_lib.from_file("configs/digits.py", flags)
  assert "\n" not in str(error.value)


def test_a_config_file_may_take_no_argument_and_its_path_may_have_colons(tmp_path):
  file = tmp_path / "a:b" / "my config.py"
  file.parent.mkdir()
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config():\n  return ConfigDict({'total_steps': 3, 'model': {'couplings': 2}})\n"
  )
  config = config_lib.from_file(str(file))
  assert (config.total_steps, config.model.couplings, config.batch_size) == (3, 2, 1024)
  assert config_lib.from_file(f"{file}:couplings=5,source=npz:/x:y", {"lr": "0.5"}).data.source == "npz:/x:y"


def test_a_duration_in_two_units_of_the_command_line_is_refused():
  flags = {"total_steps": "9", "total_epochs": "0.5"}
  with pytest.raises(ValueError, match=r"--config.total_steps and --config.total_epochs are both given; keep one"):
    config_lib.from_file("configs/imagenet64.py", flags)
  assert config_lib.from_file("configs/imagenet64.py", flags | {"total_epochs": "None"}).total_steps == 9


def test_fields_that_are_read_from_the_data_may_not_be_given_otherwise():
  config = resolve(override(digits.get_config(), {"num_examples": 10}))
  config_lib.set_from_data(config, {"data.num_examples": 9, "image_shape": (8, 8, 1)})  # of a config, for tools.cost
  assert (config.data.num_examples, config.image_shape) == (9, (8, 8, 1))
  config_lib.set_from_data(config, {"data.num_examples": 9}, ["data.num_examples"])
  for values, flags in (({"data.num_examples": 7}, ["data.num_examples"]), ({"image_shape": (4, 4, 1)}, [])):
    with pytest.raises(ValueError, match="but the data has .*; it is read from the data, so leave it away"):
      config_lib.set_from_data(config, values, flags)


@pytest.mark.parametrize(
  ("unit", "value", "expected"), [("steps", 30, 30), ("examples", 200, 20), ("epochs", 0.5, 50), ("percent", 10, 40)]
)
def test_durations_are_the_same_in_every_unit(unit, value, expected):
  config = override(default_config(), {"batch_size": 10, "total_steps": 400, f"eval_{unit}": value})
  assert config_lib.duration_in_steps(config, "eval", num_examples=1000) == expected
  assert config_lib.duration_in_steps(config, "log", num_examples=1000) == 0


def test_a_config_survives_its_json_file(tmp_path):
  config = resolve(digits.get_config("ema_decay=0.99,data.size=8"))
  config.image_shape = (8, 8, 1)
  config_lib.save(config, tmp_path / "config.json")
  assert config_lib.load(tmp_path) == config


@pytest.mark.parametrize(("value", "expected"), [(8, 8), ("8", 8), (-1, -1), ("auto", "auto")])
def test_the_split_of_the_state_is_a_number_or_auto_in_a_file_a_flag_and_json(tmp_path, value, expected):
  (tmp_path / "mine.py").write_text(
    "from configs import digits\n"
    f"def get_config():\n  config = digits.get_config()\n  config.mesh.fsdp = {value!r}\n  return config\n"
  )
  config = config_lib.from_file(str(tmp_path / "mine.py"))
  assert config == config_lib.from_file("configs/digits.py", {"mesh.fsdp": str(value)})
  assert config.mesh.fsdp == expected
  config.image_shape = (8, 8, 1)
  config.mesh.fsdp = value  # "8" is that of a run of before
  config_lib.save(config, tmp_path / "config.json")
  assert config_lib.load(tmp_path).mesh.fsdp == expected


def test_plain_configs_with_some_fields_are_completed():
  config = resolve(ConfigDict({"total_steps": 5, "model": {"couplings": 3}}))
  assert config.model.couplings == 3
  assert config.model.width == default_config().model.width


@pytest.mark.fault(23)
@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"totl_steps": 3}, "did you mean 'total_steps'"),
    ({"model.couplngs": 3}, "did you mean 'model.couplings'"),
    ({"batch_size": "many"}, "batch_size='many' has the wrong type; give a value of type int"),
    ({"model.width": 3.5}, "type int"),
    ({"clip_norm": None}, "type float"),
    ({"sample_num": None}, "type int"),
  ],
)
def test_unknown_names_and_wrong_types_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    override(default_config(), values)


@pytest.mark.fault(23)
def test_unknown_variants_are_refused():
  with pytest.raises(ValueError, match="did you mean 'runlocal'"):
    with_argument(default_config(), "runlocl", imagenet64.VARIANTS)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"levels": 257}, "levels=257 must be at least 2 and at most 256"),
    ({"lr": -1.0}, "lr=-1.0"),
    ({"seed": -1}, "seed=-1"),
    ({"ema_decay": 1.5}, "at most 0.99"),
    ({"adam_b2": 1.0}, "at most 0.99"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"total_steps": None, "total_epochs": float("inf")}, "total_epochs=inf must be finite"),
    ({"adam_mu_dtype": "bfloat61"}, "'float32' or 'bfloat16'"),
    ({"model.dtype": "float64"}, "model.dtype='float64' must be 'float32' or 'bfloat16'"),
    ({"clip_norm": 0.0}, "clip_norm"),
    ({"eval_steps": -5}, "eval_steps=-5"),
    ({"total_steps": 0}, "no length"),
    ({"mesh.fsdp": 0}, "mesh.fsdp=0 must be a number of devices, -1 for all that mesh.data leaves, or auto"),
    ({"mesh.fsdp": "many"}, "mesh.fsdp='many' must be"),
    ({"mesh.fsdp": 2.0}, "mesh.fsdp=2.0 must be"),
    ({"mesh.fsdp": None}, "mesh.fsdp=None must be"),
    ({"mesh.fsdp": "auto", "mesh.data": 2}, "mesh.data=2 leaves mesh.fsdp=auto no choice"),
    ({"total_percent": 3.0}, "no length; set total_steps, total_epochs or total_examples"),
  ],
)
def test_values_that_no_run_could_use_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    resolve(override(digits.get_config(), values))


@pytest.mark.fault(23)
def test_a_duration_in_two_units_is_refused():
  config = digits.get_config()
  config.total_epochs = 3.0
  with pytest.raises(ValueError, match="total_steps and total_epochs are both set"):
    resolve(config)
