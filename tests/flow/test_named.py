"""A config names a builtin part or an object in a file of the user, and an error says how to mend it."""

import pytest

from jet_jax.flow import named


@pytest.fixture
def own(tmp_path, monkeypatch):
  (tmp_path / "own_names.py").write_text("thing = 7\n_hidden = 8\n")
  (tmp_path / "own_broken.py").write_text("import math\nthing = math.pie\n")
  (tmp_path / "own_torn.py").write_text("thing = (\n")
  (tmp_path / "own_lacking.py").write_text("import own_absent\n")
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def test_a_builtin_part_and_an_object_of_a_file_are_found_by_name(own):
  assert named.find("model.prior", "normal", {"normal": 1}) == 1
  assert named.find("model.prior", "own_names:thing", {"normal": 1}) == 7
  assert named.find("model.prior", "own_names.py:thing", {"normal": 1}) == 7


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("norml", "model.prior='norml' must be normal, or module:name, as mine:best"),
    ("own_names:", "must be normal, or module:name"),
    ("a/own_names.py:thing", "must be normal, or module:name"),
    ("own_names:thin", r"model.prior='own_names:thin': .*own_names.py has no thin; it has thing$"),
    ("own_nowhere:thing", "No module named 'own_nowhere'.; run in the folder of its file, or add that folder to PY"),
    ("own_lacking:thing", "cannot be imported .*No module named 'own_absent'.; install own_absent, or mend"),
    ("own_broken:thing", r"AttributeError: module 'math' has no attribute 'pie', line 2 of .*own_broken.py\); mend"),
    ("own_torn:thing", r"SyntaxError: .*own_torn.py, line 1\)\); mend that line"),
  ],
)
def test_a_name_that_leads_nowhere_is_refused_in_a_line_with_the_fix(own, name, message):
  with pytest.raises(ValueError, match=message) as error:
    named.find("model.prior", name, {"normal": 1})
  assert len(str(error.value).splitlines()) == 1
