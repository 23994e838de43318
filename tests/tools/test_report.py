"""A page has the figures of its runs, nothing of a run becomes an element or a script, and no request leaves it."""

import html.parser
import json
import math
import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jet_jax import evaluate, train
from jet_jax.config import override
from jet_jax.data import sources
from jet_jax.training.evaluator import with_interval
from tools import report
from tools.reporting import charts, curves, page, runs, tables
from tools.reporting import files as files_lib
from tools.reporting.measure import Measured
from written_runs import HOSTILE, lines_of, write_run, write_whole_run

LIBRARIES = "window.vegaEmbed = null;"  # in place of those of vl-convert, which take seconds to bundle


class Document(html.parser.HTMLParser):
  """The elements of a page, with the names of their attributes; its texts; and the rows of its tables."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts, self.headings, self.tables, self.blocks = [], [], [], [], {}
    self._inside = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, *(name for name, _ in attributes)))
    self._inside.append((tag, dict(attributes)))
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])

  def handle_endtag(self, tag):
    while self._inside and self._inside.pop()[0] != tag:
      pass

  def handle_data(self, text):
    tag, attributes = self._inside[-1] if self._inside else ("", {})
    self.texts.append(text)
    if tag in ("th", "td"):
      self.tables[-1][-1].append(text)
    elif tag == "h2":
      self.headings.append(text)
    elif "id" in attributes:
      self.blocks[attributes["id"]] = text

  @property
  def data(self):
    """The block of JSON that the page's script reads."""
    return json.loads(self.blocks["data"])


@pytest.fixture
def document(monkeypatch, tmp_path, capsys):
  """Makes the page of work directories by the command: `(Document, its text, the object that the command prints)`."""
  monkeypatch.setattr(charts, "libraries", lambda: LIBRARIES)

  def make(*workdirs):
    out = tmp_path / "page.html"
    report.main([*(f"--workdir={workdir}" for workdir in workdirs), f"--out={out}"])
    text = out.read_text()
    return Document(text), text, json.loads(capsys.readouterr().out.splitlines()[-1])

  return make


def rejected(capsys, *arguments):
  """The one line with which the command rejects its arguments."""
  with pytest.raises(SystemExit) as end:
    report.main(list(arguments))
  assert end.value.code == 2
  return str(end.value) or capsys.readouterr().err


def test_the_points_of_the_page_are_those_of_the_metrics(tmp_path, document):
  lines = [list(lines_of(50, seed)) for seed in range(2)]
  workdirs = [write_run(tmp_path / f"run{i}", of_run) for i, of_run in enumerate(lines)]
  data = document(*workdirs)[0].data
  of_metric = ["bits_per_dim", "lr", "grad_norm", "images_per_second", "bits_per_dim_stderr"]  # in the page's order
  assert len(data["charts"]) == len(of_metric)
  for tag, chart in zip(of_metric, data["charts"], strict=True):
    seen = set()
    for line in chart["lines"]:
      name = f"{('val', 'train')[line['kind']]}/{tag}"
      known = [(values["step"], values[name]) for values in lines[line["run"]] if name in values]
      assert line["steps"] == [step for step, _ in known]
      # Half a unit in the seventh digit.
      np.testing.assert_allclose(line["values"], [value for _, value in known], rtol=5e-7)
      seen.add((line["run"], name))
    assert seen == {(run, name) for run in (0, 1) for name in lines[0][9] | lines[0][10] if name.endswith(f"/{tag}")}


@given(arrays.arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_thinning_keeps_the_lowest_the_highest_a_gap_and_both_ends(values):
  for most in (5, 50, 1500):
    places = curves.thinned(values, most)
    assert len(places) <= most
    assert np.all(np.diff(places) > 0)
    assert {0, len(values) - 1} <= set(places.tolist())
    kept = values[places]
    assert np.isnan(kept).any() == np.isnan(values).any()
    if not np.isnan(values).all():
      assert (np.nanmin(kept), np.nanmax(kept)) == (np.nanmin(values), np.nanmax(values))


def test_every_spike_of_a_long_line_is_drawn(tmp_path, document):
  rng = np.random.default_rng(0)
  spikes = set(rng.choice(np.arange(50, 20_000, 100), 100, replace=False).tolist())
  lines = [{"step": step, "train/grad_norm": 9.0 if step in spikes else rng.uniform(1, 2)} for step in range(20_000)]
  (line,) = document(write_run(tmp_path / "run", lines))[0].data["charts"][0]["lines"]
  assert len(line["steps"]) <= curves.POINTS
  assert {step for step, value in zip(line["steps"], line["values"], strict=True) if value == 9.0} == spikes


def test_numbers_that_are_not_finite_are_gaps_and_are_counted(tmp_path, document):
  values = [1.5, None, "NaN", "-Infinity", "1e400", "1" + "0" * 400, "1e31", 2.5]
  lines = [f'{{"step": {i}, "train/x": {json.dumps(v) if v is None else v}}}'.encode() for i, v in enumerate(values)]
  all_nan = [{"step": step, "train/x": None, "val/bits_per_dim": None} for step in range(3)]
  made, text, _ = document(write_run(tmp_path / "some", lines), write_run(tmp_path / "all", all_nan))
  of_title = {chart["lines"][0]["run"]: chart["lines"] for chart in made.data["charts"]}
  drawn = {line["run"]: line["values"] for line in of_title[0]}
  assert drawn == {0: [1.5, *[None] * 6, 2.5], 1: [None] * 3}
  assert "some: 6 values are NaN or infinite, from step 1 to 6" in text
  assert "all: 3 values are NaN or infinite, from step 0 to 2" in text
  (row,) = [row for table in made.tables for row in table if row[0] == "best validation bits/dim"]
  assert row == ["best validation bits/dim", "–", "NaN"]


def test_fields_that_differ_come_first_and_alone(tmp_path, document):
  one = write_run(tmp_path / "one", lines_of(20), lr=1e-3, seed=1)
  other = write_run(tmp_path / "other", lines_of(20), lr=2e-3, seed=1, kinds=("channels",))
  made, *_ = document(one, other)
  assert made.headings[0] == "Differences"
  header, *rows = made.tables[0]
  assert header == ["field", "one", "other"]
  kinds = '["channels", "channels", "channels", "channels", "spatial"]'
  assert sorted(rows) == [["lr", "0.001", "0.002"], ["model.kinds", kinds, '["channels"]']]
  assert "Differences" not in document(one)[0].headings


def test_pictures_of_runs_stand_at_equal_steps(tmp_path, document):
  one = write_run(tmp_path / "one", [], pictures=(10, 20, 30))
  other = write_run(tmp_path / "other", [], pictures=(20, 30, 40))
  samples = document(one, other)[0].data["samples"]
  assert samples["steps"] == [20, 30, 40]
  assert [[bool(picture) for picture in of_run] for of_run in samples["pictures"]] == [[1, 1, 0], [1, 1, 1]]
  assert all(picture.startswith("data:image/webp;base64,") for picture in samples["pictures"][1])
  assert len(set(samples["pictures"][1])) == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_of_a_run_become_no_element_no_attribute_and_no_script(tmp_path, document, text):
  name = re.sub(r"[/\\\[*?\0\ud800]", "", text)  # the others cannot be in the path of a run
  hostile, written, _ = document(write_whole_run(tmp_path / name, text))
  harmless, *_ = document(write_whole_run(tmp_path / "harmless", "harmless"))
  assert hostile.elements == harmless.elements
  assert hostile.data["charts"] == harmless.data["charts"]  # points and specifications have no string of a run
  rows = {row[0]: row[1] for table in hostile.tables for row in table if len(row) == 2}
  assert rows["data source"] == rows["wandb_project"] == files_lib.shown(text)
  assert not [c for c in written if not c.isprintable() and c != "\n"]


def test_a_script_runs_only_with_its_digest_in_the_policy(tmp_path, document):
  made, text, _ = document(write_run(tmp_path / "run", lines_of(20)))
  policy = text.split('Content-Security-Policy" content="')[1].split('"')[0].replace("&#39;", "'")
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  assert rules["default-src"] == "'none'"
  assert rules["img-src"] == "data:"
  assert "unsafe" not in rules["script-src"]
  scripts = [part.split("</script>")[0] for part in text.split("<script>")[1:]]
  assert rules["script-src"].split() == [page._digest(script) for script in scripts]
  assert made.elements.index(("meta", "http-equiv", "content")) < made.elements.index(("style",))


def test_files_that_no_run_has_are_left_out_and_named(tmp_path, document):
  (tmp_path / "secret.json").write_text('{"token": "hunter2"}')
  (tmp_path / "outside").mkdir()
  workdir = write_run(tmp_path / "run", lines_of(20), pictures=(1, 2))
  shutil.copy(workdir / "samples" / "1.png", tmp_path / "private.png")
  (workdir / "init_from.json").symlink_to(tmp_path / "secret.json")
  (workdir / "samples" / "2.png").unlink()
  (workdir / "samples" / "2.png").symlink_to(tmp_path / "private.png")
  (workdir / "samples" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
  (workdir / "samples" / "4.png").symlink_to("4.png")
  os.mkfifo(workdir / "versions.jsonl")
  (workdir / "bad_images.txt").write_bytes(bytes(files_lib.SMALL + 1))
  (workdir / "data.json").write_text("[" * 100_000)
  made, text, result = document(workdir)
  assert "hunter2" not in text
  assert made.data["samples"]["steps"] == [1]
  left_out = "\n".join(result["left_out"])
  for words in (
    "init_from.json is a link to a file outside", "samples/2.png is a link to a file outside",
    "samples/3.png cannot be shown", "samples/4.png", "versions.jsonl is not a regular file",
    "bad_images.txt has 1,048,577 bytes, more than 1,048,576", "data.json is damaged",
  ):  # fmt: skip
    assert words in left_out
    assert words in text
  (workdir / "metrics.jsonl").unlink()
  (workdir / "metrics.jsonl").symlink_to(tmp_path / "secret.json")
  assert document(workdir)[0].data["charts"] == []


def test_a_line_of_100_megabytes_is_left_out_and_never_in_memory(tmp_path):
  workdir = write_run(tmp_path / "run", [{"step": 1, "train/x": 1.0}])
  with (workdir / "metrics.jsonl").open("r+b") as file:
    file.truncate(100 * 2**20)
    file.seek(0, os.SEEK_END)
    file.write(b'\n{"step": 2, "train/x": 2.0}\n[[[\n{"step": 1e999}\n' + b"[" * 50_000 + b'\n{"step": -1}\n{"step": 3')
  tracemalloc.start()
  files = files_lib.Files(workdir)
  series, _ = runs.read_metrics(files)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert series["train/x"].steps.tolist() == [1, 2]
  assert files.notes == ["6 lines of metrics.jsonl are torn, too long or have no step"]
  assert peak < 10 * 2**20


def test_a_thousand_metrics_make_no_thousand_charts(tmp_path, document):
  lines = [{"step": step} | {f"train/x{i}": step + 0.5 for i in range(1000)} for step in range(3)]
  made, _, result = document(write_run(tmp_path / "run", lines))
  assert len(made.data["charts"]) == curves.CHARTS
  assert result["left_out"] == ["run: metrics.jsonl has more than 60 metrics; the first 60 are shown"]


def test_names_tell_runs_apart(tmp_path):
  paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
  assert runs.names_of(paths) == ["a/run", "b/run"]
  assert runs.names_of(paths[:1]) == ["run"]


def test_commands_that_make_no_page_say_why(tmp_path, capsys, monkeypatch):
  workdir = write_run(tmp_path / "run", lines_of(20))
  out = f"--out={tmp_path}/page.html"
  reject = lambda *arguments: rejected(capsys, *arguments)
  assert "is given twice; give each run once" in reject(f"--workdir={workdir}", f"--workdir={workdir}/../run", out)
  assert "must end in .html" in reject(f"--workdir={workdir}", "--out=page.pdf")
  assert "has no config.json" in reject(f"--workdir={tmp_path}", out)
  assert "add --evaluate, or leave out --step" in reject(f"--workdir={workdir}", out, "--step=3")
  assert "11 runs are more than the 10" in reject(*[f"--workdir={workdir}"] * 11, out)
  (workdir / "config.json").rename(tmp_path / "config.json")
  (workdir / "config.json").symlink_to(tmp_path / "config.json")
  assert "config.json is a link to a file outside of the run" in reject(f"--workdir={workdir}", out)
  monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
  fix = "install them: pip install altair vl-convert-python jinja2"
  assert f"pages need altair and vl_convert and jinja2; {fix}" in reject(f"--workdir={workdir}", out)
  assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
  ("bits", "expected"),
  [
    ([3.0, 5.0], ["4.0000 ± 1.0000", "-8.7062 to 16.7062", None]),
    ([3.0], ["3.0000", None, None]),  # one image has no error
    ([3.0, math.nan], ["NaN", None, "1"]),
  ],
)
def test_a_measured_figure_says_what_is_unknown_of_it(tmp_path, bits, expected):
  summary = {"step": 4, "num_images": len(bits), "num_nonfinite": int(np.isnan(bits).sum()), "weights": "params"}
  figures = summary | {"weights_sha256": "0"} | with_interval("bits_per_dim", np.array(bits))
  rows = tables.evaluation(runs.read_runs([write_run(tmp_path / "run", [])]), [Measured(figures, "", {}, [])]).rows
  names = ["measured for this page", "95% interval", "measured images with a NaN or infinite result"]
  assert [dict(rows).get(name) for name in names] == expected


@pytest.mark.process  # a whole run, and its evaluation
def test_a_page_measures_as_the_commands_do(tmp_path, tiny_config, document, capsys):
  workdir, digits = tmp_path / "run", sources.open_source("digits", 0, 17, "validation").images
  train.train(train.prepare(override(tiny_config(), {"ema_decay": 0.5}), workdir))
  capsys.readouterr()
  evaluate.main([f"--workdir={workdir}"])
  known = json.loads(capsys.readouterr().out.splitlines()[-1])
  out = tmp_path / "measured.html"
  report.main([f"--workdir={workdir}", f"--out={out}", "--evaluate"])
  capsys.readouterr()
  measured = {row[0]: row[1] for table in Document(out.read_text()).tables for row in table if len(row) == 2}
  assert measured["measured for this page"] == f"{known['bits_per_dim']:.4f} ± {known['bits_per_dim_stderr']:.4f}"
  assert measured["95% interval"] == "{:.4f} to {:.4f}".format(*known["bits_per_dim_interval"])
  assert measured["measured weights_sha256"] == known["weights_sha256"]
  # Rounding in float32, after 2 couplings.
  assert float(measured["images and back: largest error"]) < 1e-4
  recorded = {row[0]: row[1] for table in document(workdir)[0].tables for row in table if len(row) == 2}
  assert recorded["latest checkpoint: weights_sha256"] == known["weights_sha256"]
  assert recorded["latest checkpoint: weights"] == "ema"
  assert "measured for this page" not in recorded
  for other, said in ((digits[::-1], "measured on other images than the run had"), (digits[:, :4], "the flow is for")):
    np.savez(tmp_path / "other.npz", train_images=digits, validation_images=other)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"] = f"npz:{tmp_path}/other.npz"
    (workdir / "config.json").write_text(json.dumps(config))
    if said.startswith("measured"):
      report.main([f"--workdir={workdir}", f"--out={out}", "--evaluate"])
      assert said in out.read_text()
    else:
      with pytest.raises(SystemExit) as end:
        report.main([f"--workdir={workdir}", f"--out={out}", "--evaluate"])
      assert re.search(f"{workdir}: .*{said}", str(end.value))
