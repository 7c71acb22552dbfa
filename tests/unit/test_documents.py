"""Documents that name tests name such as there are."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENTS = ("docker.md", "shim.md")
_NAMED = re.compile(r"`((?:\w+/)*(?:test_\w+\.py)?)(?:::(\w+))?`")


def names() -> list[tuple[str, str]]:
    """Return file and test of what the documents name in tables; a name alone is of the directory before it."""
    found, path = [], ""
    texts = [(TESTS.parent / "docs" / document).read_text() for document in DOCUMENTS]
    for line in "\n".join(texts).splitlines():
        for file, test in _NAMED.findall(line) if line.startswith("| ") else ():
            if "test_" not in f"{file}{test}":
                continue
            if file:
                path = file if "/" in file else f"{path.rpartition('/')[0]}/{file}"
            found.append((path, test))
    return found


def test_the_tables_are_read():
    assert len(names()) > 160
    assert ("e2e/test_docker.py", "test_top_lists_the_processes") in names()
    assert ("integration/shim/test_crilog.py", "") in names()


@pytest.mark.parametrize(("path", "test"), names())
def test_what_is_named_is_there(path, test):
    tree = ast.parse((TESTS / path).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not test or test in defined
