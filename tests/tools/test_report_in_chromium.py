"""A page in Chromium draws, zooms and slides, requests nothing, executes nothing of a run, and is accessible.

Without Chromium or Chrome, these tests are skipped; that of accessibility also without npm or a network.
"""

import pathlib
import shutil
import subprocess
import tarfile

import pytest

import chromium
from tools import report
from written_runs import HOSTILE, lines_of, write_run, write_whole_run

pytestmark = [
  pytest.mark.process,
  pytest.mark.slow,
  pytest.mark.skipif(chromium.find() is None, reason="no Chromium or Chrome: apt-get install chromium"),
]
AXE = "axe-core@4.10.3"  # Deque's checker of accessibility, from npm
DRAWN = "document.body.dataset.drawn"
# Colours of the lines of the first chart that can be seen, and the smallest and largest step of its axis.
LINES = "[...document.querySelectorAll('#chart-0 .mark-line path')].filter(p => p.getAttribute('d')).length"
AXIS = "JSON.stringify(views[{}].scale('x').domain())"
SOURCE = "document.getElementById('picture-0').src"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  with chromium.Page(tmp_path_factory.mktemp("profile")) as page:
    yield page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The page of three runs, one of which has NaNs and fewer pictures."""
  folder = tmp_path_factory.mktemp("runs")
  nan = [values | {"train/bits_per_dim": None} if values["step"] > 60 else values for values in lines_of(100, 2)]
  workdirs = [
    write_run(folder / "one", lines_of(100, 0), pictures=(50, 100)),
    write_run(folder / "two", lines_of(100, 1), pictures=(50, 100), lr=1e-3),
    write_run(folder / "three", nan, pictures=(50,), seed=3),
  ]
  report.report(workdirs, folder / "page.html")
  return folder / "page.html"


@pytest.fixture
def page(browser, written):
  browser.size(1200, 900)
  browser.scheme("light")
  for seen in (browser.requests, browser.errors, browser.dialogs):
    seen.clear()
  browser.open(written)
  browser.wait(DRAWN)
  yield browser
  assert (browser.requests, browser.errors, browser.dialogs) == ([], [], [])


def middle(page, selector):
  """Place in the window of the middle of an element."""
  box = f"document.querySelector('{selector}')"
  page.run(f"{box}.scrollIntoView({{block: 'center'}})")
  return page.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box}.getBoundingClientRect())")


def test_every_chart_is_drawn_and_all_runs_are_in_it(page):
  assert page.run("document.querySelectorAll('.chart svg').length") == 5
  assert page.run(LINES) == 6  # three runs, each in training and validation


def test_the_wheel_with_control_zooms_all_charts_and_alone_scrolls(page):
  before = page.run(AXIS.format(0))
  x, y = middle(page, "#chart-0 svg")
  scrolled = page.run("scrollY")
  page.wheel(x, y, 100)
  page.wait(f"scrollY > {scrolled}")
  page.wait("new Promise((done) => (y => setTimeout(() => done(y === scrollY), 300))(scrollY))")  # it scrolls smoothly
  assert page.run(AXIS.format(0)) == before == "[1,100]"
  x, y = middle(page, "#chart-0 svg")
  page.wheel(x, y, -300, control=True)
  page.wait(f"{AXIS.format(0)} !== '{before}'")
  page.wait(f"{AXIS.format(1)} === {AXIS.format(0)}")
  start, end = page.run("views[0].scale('x').domain()")
  assert 1 < start < 50 < end < 100
  assert page.run("document.getElementById('from').value") == str(round(start))
  page.run("document.getElementById('all').click()")
  page.wait(f"{AXIS.format(1)} === '{before}'")


def test_steps_are_typed_too(page):
  page.run("document.getElementById('from').value = 20")
  page.run("document.getElementById('from').dispatchEvent(new Event('change'))")
  page.wait(f"{AXIS.format(2)} === '[20,100]'")


def test_a_key_on_the_legend_switches_the_lines_of_a_run_off_and_on(page):
  page.run("document.querySelector('input[name=run][value=\"1\"]').focus()")
  page.press(" ")
  page.wait(f"{LINES} === 4")
  page.press(" ")
  page.wait(f"{LINES} === 6")


def test_a_key_on_the_slider_changes_the_picture(page):
  last = page.run(SOURCE)
  page.run("document.getElementById('slider').focus()")
  page.press("ArrowLeft")
  page.wait(f"{SOURCE} !== {last!r}")
  assert page.run("document.getElementById('at-step').value") == "50"
  assert page.run("document.getElementById('slider').getAttribute('aria-valuetext')") == "step 50"
  missing = "document.getElementById('none-2').hidden"
  assert page.run(missing) is True
  page.press("ArrowRight")
  page.wait(f"{SOURCE} === {last!r}")
  assert page.run(missing) is False


def test_colours_follow_the_system(page):
  color = "document.querySelector('#chart-0 .mark-line path').getAttribute('stroke')"
  light = page.run(color)
  page.scheme("dark")
  page.wait(f"{color} !== '{light}'")
  background = "getComputedStyle(document.body).backgroundColor"
  assert page.run(background) == "rgb(20, 23, 27)"


def test_a_phone_needs_no_scrolling_sideways(page):
  page.size(360, 740)
  page.wait("document.documentElement.scrollWidth === 360")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_run_is_inert(browser, tmp_path, text):
  workdir = write_whole_run(tmp_path / "run", text)
  report.report([workdir], tmp_path / "page.html")
  for seen in (browser.requests, browser.errors, browser.dialogs):
    seen.clear()
  browser.open(tmp_path / "page.html")
  browser.wait(DRAWN)
  assert (browser.requests, browser.errors, browser.dialogs) == ([], [], [])


def test_the_policy_stops_what_would_get_into_the_page(browser, written, tmp_path):
  inside = (
    "<script>alert(1)</script><img src=https://example.com/x.png onerror=alert(2)><iframe src=https://a.org></iframe>"
  )
  text = written.read_text()
  for seen in (browser.requests, browser.errors, browser.dialogs):
    seen.clear()
  (tmp_path / "attacked.html").write_text(text.replace("<main>", f"<main>{inside}"))
  browser.open(tmp_path / "attacked.html")
  browser.wait(DRAWN)
  assert browser.dialogs == []
  # Chromium reports a request that it then blocks, so the console tells.
  assert len([error for error in browser.errors if "Content Security Policy" in error]) >= 4
  without = text.replace('http-equiv="Content-Security-Policy"', 'name="x"').replace("<main>", f"<main>{inside}")
  (tmp_path / "attacked.html").write_text(without)
  browser.open(tmp_path / "attacked.html")
  browser.until(lambda: browser.run("1") and "1" in browser.dialogs)  # which proves that the attack is one


def test_ten_runs_of_3000_lines_with_pictures_stay_below_3_megabytes(browser, tmp_path):
  steps = range(100, 3001, 100)
  workdirs = [write_run(tmp_path / f"run{i}", lines_of(3000, i), pictures=steps, seed=i) for i in range(10)]
  assert report.report(workdirs, tmp_path / "page.html")["bytes"] < 3e6
  browser.open(tmp_path / "page.html")
  browser.wait(DRAWN)


@pytest.fixture(scope="module")
def axe():
  """JavaScript of axe-core, which npm fetches once."""
  folder = pathlib.Path(".cache/axe")
  if not shutil.which("npm"):
    pytest.skip("no npm to fetch axe-core with")
  if not list(folder.glob("*.tgz")):
    folder.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    if fetched.returncode:
      pytest.skip(f"npm cannot fetch {AXE}: {fetched.stderr.strip()[-200:]}")
  with tarfile.open(next(folder.glob("*.tgz"))) as archive:
    return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, axe, scheme, width):
  page.scheme(scheme)
  page.size(width, 900)
  page.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
  page.wait("document.querySelectorAll('.chart svg').length === 5")
  page.run(axe)
  found = page.run(
    "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations.map("
    "(one) => [one.impact, one.id, one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]))"
  )
  assert [one for one in found if one[0] in ("serious", "critical")] == []
