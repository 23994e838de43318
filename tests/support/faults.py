"""The faults of docs/reference/reliability.md by number; `@pytest.mark.fault(7)` stands on each test of number 7."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "reliability.md"
FAULTS = {int(number): text for number, text in re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)}
