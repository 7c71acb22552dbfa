"""What makes a run of the suite red beside failures, by runs of small suites."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
CONFTEST = """
from tests.verdict import Verdict

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Verdict())
"""
TESTS = """
import pathlib
import pytest

@pytest.mark.parametrize("number", range(4))
def test_unsteady(number):
    mark = pathlib.Path(__file__).with_name(f"tried-{{number}}")
    first = number < {unsteady} and not mark.exists()
    mark.touch()
    assert not first, "too early"

@pytest.mark.skipif({skipped}, reason="nothing here")
def test_skipped():
    pass
"""


@pytest.mark.parametrize(
    ("unsteady", "skipped", "ci", "words", "is_red"),
    [
        (0, False, True, ["5 passed"], False),
        (2, False, True, ["run once more: ", "too early", "5 passed", "2 rerun"], False),
        (3, False, True, ["5 passed", "red: 3 tests were run once more; 2 at most may be"], True),
        (0, True, False, ["1 skipped"], False),
        (0, True, True, ["1 skipped", "were skipped: test_small.py::test_skipped"], True),
    ],
)
def test_verdict(tmp_path, unsteady, skipped, ci, words, is_red):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_small.py").write_text(TESTS.format(unsteady=unsteady, skipped=skipped))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != "CI"}
    env |= {"PYTHONPATH": str(REPO)} | ({"CI": "true"} if ci else {})
    argv = [sys.executable, "-m", "pytest", "-q", "-n0", "--reruns=1", "-p", "no:cacheprovider"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == is_red, done.stdout
    for word in words:
        assert word in done.stdout
