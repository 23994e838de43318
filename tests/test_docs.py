"""README and docs agree with the figures in docs/results, and with the files that they name."""

import ast
import pathlib
import re

import pytest

from tools import results
from tools.measuring import tables

PAGES = sorted({*results.pages(), pathlib.Path("CONTRIBUTING.md"), pathlib.Path("CHANGELOG.md")})
ROWS = results.evidence()
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?<![\w/.])((?:jet_jax|tests|configs|tools|docs)/[\w/.-]+\.(?:py|sh|md|json|png))")
BETWEEN_MARKERS = re.compile(r"(<!-- results:\w+ -->).*?(?=<!-- /results -->)", re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
WITH_ERROR = re.compile(r"\d+\.\d+ ± \d+\.\d+")


def anchors(page):
  """Anchors of the headings of a page, as GitHub makes them."""
  headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def figures_with_errors():
  """All figures with an error that docs/results has, at any number of decimals down to 3."""
  for row in ROWS:
    if row.get("bits_per_dim") is not None and "decimals" in row:
      yield from (tables.figure(row, most) for most in range(3, row["decimals"] + 1))


def test_readme_is_short():
  assert len(pathlib.Path("README.md").read_text().splitlines()) <= 140


def test_tables_are_those_of_the_figures():
  assert results.drifted(ROWS) == [], "run `python -m tools.results`"


def test_every_table_is_shown_and_every_row_has_its_own_id():
  shown = {name for page in PAGES for _, name, _ in results.BLOCK.findall(page.read_text())}
  assert shown == set(tables.TABLES)
  ids = [row["id"] for row in ROWS]
  assert len(ids) == len(set(ids))
  assert all(name in tables.TABLES for row in ROWS for name in row.get("tables", ()))


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("cited_in")], ids=lambda row: row["id"])
def test_files_that_cite_a_figure_have_it(row):
  for path in row["cited_in"]:
    text = pathlib.Path(path).read_text()
    missing = [number for number in tables.figure(row).split(" ± ") if number not in text]
    assert missing == [], f"{path} must cite {tables.figure(row)}, see {results.RUNS}"


def numbers(value):
  """All numbers in a row of docs/results."""
  if isinstance(value, dict | list):
    return {number for part in (value.values() if isinstance(value, dict) else value) for number in numbers(part)}
  return {float(value)} if isinstance(value, int | float) else set()


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("quoted")], ids=lambda row: row["id"])
def test_a_measurement_in_the_text_of_a_page_is_that_of_the_results(row):
  for page, text in row["quoted"].items():
    assert text in " ".join(pathlib.Path(page).read_text().split()), (
      f"{page} must say {text!r}, see {results.PERFORMANCE}"
    )
    quoted = {float(number.replace(",", "")) for number in NUMBER.findall(text)}
    assert quoted <= numbers(row), f"{text!r} in {page} is not in the row {row['id']}"


@pytest.mark.parametrize("path", [*PAGES, *sorted(pathlib.Path("configs").rglob("*.py"))], ids=str)
def test_figures_with_an_error_are_in_the_results(path):
  text = BETWEEN_MARKERS.sub("", path.read_text())
  if path.name == "CHANGELOG.md":
    pytest.skip("a changelog names figures of the past")
  assert set(WITH_ERROR.findall(text)) <= set(figures_with_errors())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page):
  for link in LINK.findall(FENCE.sub("", page.read_text())):
    if not re.match(r"https?:", link):
      target, _, anchor = link.partition("#")
      path = (page.parent / target) if target else page
      assert path.exists(), f"{page} links to {link}"
      assert not anchor or anchor in anchors(path), f"{page} links to {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_named_files_exist(page):
  assert [name for name in sorted(set(NAMED.findall(page.read_text()))) if not pathlib.Path(name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_table_cells_are_short(page):
  lines = [line for line in FENCE.sub("", page.read_text()).splitlines() if line.startswith("|")]
  assert [cell for line in lines for cell in line.split("|") if len(cell.split()) > 40] == []


def test_readme_shows_the_allowed_imports():
  """README's map and the table of tests/test_house.py, which the test of imports enforces, are the same."""
  house = ast.parse(pathlib.Path("tests/test_house.py").read_text())
  (allowed,) = (node.value for node in house.body if isinstance(node, ast.Assign) and node.targets[0].id == "ALLOWED")
  allowed = {wing: set(imports) for wing, imports in ast.literal_eval(allowed).items() if wing != "__init__"}
  rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \| [^|]+ \|([^|]*)\|$", pathlib.Path("README.md").read_text(), re.MULTILINE)
  assert {wing: set(re.findall(r"\w+", imports)) for wing, imports in rows} == allowed
