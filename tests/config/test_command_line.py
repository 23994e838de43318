"""The command line of every command: help, unknown flags, and flags that set fields."""

import importlib
import pathlib
import re
import sys

import pytest

import tools
from jet_jax import config as config_lib
from jet_jax.config import describe, durations, overrides
from tools.__main__ import commands

COMMANDS = ["jet_jax.train", "jet_jax.evaluate", "jet_jax.sample", *(f"tools.{name}" for name in commands())]


class Found(Exception):
  """Carries the parser of a command."""


def parser_of(command, monkeypatch):
  def caught(parser, *_):
    raise Found(parser)

  monkeypatch.setattr(config_lib.Parser, "parse_args", caught)
  with pytest.raises(Found) as found:
    importlib.import_module(command).main([])
  return found.value.args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_docstring_and_a_meaning_for_each_flag(command, monkeypatch):
  parser = parser_of(command, monkeypatch)
  text, docstring = parser.format_help(), importlib.import_module(command).__doc__
  assert docstring.strip() in text
  assert f"python -m {command} " in docstring
  assert [action.option_strings for action in parser._actions if not action.help] == []
  named = {flag for action in parser._actions for flag in action.option_strings} | {"--config.model.couplings"}
  assert set(re.findall(rf"python -m {command} .*?(--\w[\w.]*)", docstring)) <= named


def test_the_list_of_commands_is_that_of_the_files():
  assert set(commands()) == {file.stem for file in pathlib.Path("tools").glob("*.py")} - {"__init__", "__main__"}
  assert all(summary.endswith(".") for summary in commands().values())


def test_helper_modules_are_no_commands(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["-m"])  # as Python has it while `python -m` looks for a module
  with pytest.raises(SystemExit, match=r"modules of tools\.preparing are no commands; python -m tools lists"):
    tools.no_command("tools.preparing")
  monkeypatch.setattr(sys, "argv", ["/x/tools/prepare_data.py"])
  tools.no_command("tools.preparing")


def parser():
  parser = config_lib.Parser("x", "Does 100% of it.\n")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--num", type=int, help="50% of it")
  return parser


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--wokdir=a"], "error: unknown flag --wokdir=a, did you mean '--workdir'; --help lists all"),
    (["--workdir=a", "--nums", "3"], "error: unknown flag --nums, did you mean '--num'"),
    (["--workdir=a", "--n=3"], "error: unknown flag --n=3, did you mean '--num'"),  # no abbreviations
    (["--workdir=a", "b"], "error: unknown arguments b; a flag is --NAME=VALUE"),
    (["--workdir=a", "\x1b[31m\n\u202eb"], "error: unknown arguments \\x1b[31m\\n\\u202eb; a flag"),
    (["--workdir=a", "--num=x"], "error: argument --num: invalid int value: 'x'"),
    ([], "error: the following arguments are required: --workdir"),
  ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    parser().parse_args(arguments)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(message)
  assert stopped.value.code == 2


def test_flags_of_fields_are_kept_apart():
  line = ["--config.lr=1e-3", "--workdir", "a", "--config.data.source=folder:/a=b", "--config.wd", "0", "--num=2"]
  args, fields = parser().parse_with_fields([*line, "--config.data.flip"])
  assert (args.workdir, args.num) == ("a", 2)
  assert fields == {"lr": "1e-3", "data.source": "folder:/a=b", "wd": "0", "data.flip": "True"}


def test_every_field_has_a_meaning_in_the_help():
  units = {f"{duration}_{unit}" for duration in durations.DURATIONS for unit in durations.UNITS}
  fields = set(overrides.flatten(config_lib.default_config()))
  meanings = describe.meanings()
  assert set(meanings) | units == fields
  assert [name for name, meaning in meanings.items() if not meaning] == []
  text = config_lib.describe_fields()
  assert re.search(r"^  seed +0 +of the parameters, permutations", text, re.MULTILINE)
  assert re.search(r"^  eval_steps +None +interval between evaluations; or eval_examples", text, re.MULTILINE)
  assert max(map(len, text.splitlines())) <= 120
