"""Lists the commands: python -m tools."""

import ast
import pathlib


def commands() -> dict[str, str]:
  """Returns the name of each command and the first line of its docstring."""
  files = sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py"))
  texts = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
  return {name: text.partition("\n")[0] for name, text in texts.items()}


if __name__ == "__main__":
  for name, summary in commands().items():
    print(f"python -m {__package__}.{name:20} {summary}")
  print("--help after each shows its flags; python -m jet_jax.train, .evaluate and .sample train, evaluate and sample")
