"""Plain English in docstrings and pages, as far as a test can tell: CONTRIBUTING.md has the rules."""

import ast
import pathlib
import re

PYTHON = sorted(path for top in ("jet_jax", "tools", "configs", "tests") for path in pathlib.Path(top).rglob("*.py"))
MARKDOWN = sorted(
  {*pathlib.Path().glob("*.md"), *(p for d in ("docs", "configs") for p in pathlib.Path(d).rglob("*.md"))}
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
HEADLESS = re.compile(r"(What|Whether|Which|How|All that|That)\b")  # starts a clause without its noun
BANNED = (
  "learned by heart", "learns by heart", "goes by", "be they", "nobody's way", "condemn", "not to be had",
  "what it took", "1/1.3 of the",
)  # fmt: skip


def test_summary_lines_name_the_thing():
  headless = []
  for path in PYTHON:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    summaries = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
    headless += [f"{path}: {line}" for line in summaries if HEADLESS.match(line)]
  assert headless == [], "start with a verb or a noun: CONTRIBUTING.md, style of prose"


def test_no_file_has_a_banned_phrase():
  found = []
  for path in PYTHON + MARKDOWN:
    if path.name == pathlib.Path(__file__).name:
      continue
    text = " ".join(path.read_text().lower().replace("#", " ").split())  # a phrase may continue on the next line
    found += [f"{path}: {phrase}" for phrase in BANNED if re.search(rf"\b{re.escape(phrase)}", text)]
  assert found == [], "use the words of the glossary in CONTRIBUTING.md"
