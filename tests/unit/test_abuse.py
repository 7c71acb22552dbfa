"""docs/abuse.md names tests that exist."""

import re
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_every_row_has_tests_and_they_exist():
    there = {
        name
        for path in (REPO / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    rows = re.findall(r"^\| (S\d+) \|.*\| (.*) \|$", (REPO / "docs/abuse.md").read_text(), re.MULTILINE)
    assert [row for row, _ in rows] == [f"S{number}" for number in [*range(1, 15), *range(19, 24)]]
    for row, shown in rows:
        named = set(re.findall(r"`(test_\w+)`", shown))
        assert named, row
        assert named <= there, f"{row}: {named - there}"
