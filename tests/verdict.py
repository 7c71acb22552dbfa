"""What makes a whole run red beside tests that fail: skips in CI, and more than a few tests that passed only again.

The tests drive real daemons, kernels and clients on shared machines, thousands of them. One that looks at something a
moment too early once in a hundred runs must not stand for the whole, nor be hidden: it is run once more,
and told with what it failed by. It is a fault to be mended, in it or in what it tests.
"""

import os
from typing import Any

import pytest

# Of some six thousand. More is no accident.
_MOST_RERUN = 2


class Verdict:
    """A plugin of the process that judges the run."""

    def __init__(self) -> None:
        self._rerun: list[pytest.TestReport] = []
        self._skipped: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome
        if outcome == "rerun":  # by pytest-rerunfailures
            self._rerun.append(report)
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._objections():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for report in self._rerun:
            terminalreporter.section(f"run once more: {report.nodeid}")
            terminalreporter.write_line(report.longreprtext)
        for objection in self._objections():
            terminalreporter.write_line(objection, red=True)

    def _objections(self) -> list[str]:
        """Why the run is red though no test may have failed."""
        objections = []
        if len(self._rerun) > _MOST_RERUN:
            objections.append(f"red: {len(self._rerun)} tests were run once more; {_MOST_RERUN} at most may be")
        if self._skipped and os.environ.get("CI"):
            names = ", ".join(report.nodeid for report in self._skipped)
            objections.append(f"red: CI has what every test needs, and these were skipped: {names}")
        return objections
