"""Every fault of docs/reference/reliability.md has a test, and no test is marked with another number."""

import ast
import pathlib

from faults import FAULTS


def marked(function):
  """Numbers of the `@pytest.mark.fault(...)` on a function."""
  for decorator in function.decorator_list:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
      yield from map(ast.literal_eval, decorator.args)


def test_every_fault_of_the_page_has_a_test():
  files = [ast.parse(path.read_text()) for path in pathlib.Path(__file__).parents[1].rglob("test_*.py")]
  functions = [node for file in files for node in file.body if isinstance(node, ast.FunctionDef)]
  numbers = {number for function in functions for number in marked(function)}
  assert len(FAULTS) >= 31
  assert numbers == set(FAULTS)
