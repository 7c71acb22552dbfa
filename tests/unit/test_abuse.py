"""docs/abuse.md and docs/faults.md name tests that exist."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ABUSE = [f"S{number}" for number in range(1, 31)]
FAULTS = [f"F{number}" for number in (*range(1, 9), 16, 17, 18, 19, 22, 24, 25)]


@pytest.mark.parametrize(("document", "expected"), [("abuse.md", ABUSE), ("faults.md", FAULTS)])
def test_every_row_has_tests_and_they_exist(document, expected):
    there = {
        name
        for path in (REPO / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    rows = re.findall(r"^\| ([SF]\d+) \|.*\| (.*) \|$", (REPO / "docs" / document).read_text(), re.MULTILINE)
    assert [row for row, _ in rows] == expected
    for row, shown in rows:
        named = set(re.findall(r"`(test_\w+)`", shown))
        assert named, row
        assert named <= there, f"{row}: {named - there}"
