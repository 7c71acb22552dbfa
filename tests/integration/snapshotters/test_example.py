"""The snapshotter of docs/snapshotters.md: it keeps the contract, and the page shows the file that does."""

# mypy: disable-error-code="no-redef"

import sys
from importlib import import_module
from pathlib import Path

import pytest

from runtimed.snapshots.conformance import *  # noqa: F403

pytestmark = pytest.mark.root

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(DOCS / "examples"))
    try:
        yield import_module("elsewhere")
    finally:
        sys.path.remove(str(DOCS / "examples"))


@pytest.fixture
def implementation(example, tmp_path):
    config = example.ElsewhereSnapshotter.Config(directory=str(tmp_path))
    return lambda root: example.ElsewhereSnapshotter(root, config)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "snapshots"


@pytest.mark.parametrize("name", ["elsewhere.py", "test_elsewhere.py"])
def test_the_page_shows_the_file(name):
    text = (DOCS / "examples" / name).read_text()
    assert f"```python\n{text}```" in (DOCS / "snapshotters.md").read_text()
    assert len(text.splitlines()) < 100
