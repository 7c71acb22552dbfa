"""Clocks that jump: what the shim waits for, it waits for by the monotonic clock."""

import ast
import time
from pathlib import Path

import pytest

from shim import loop, poller
from tests.unit.shim.loops import on_loop

SHIM = Path(__file__).parents[3] / "shim"
YEAR_S = 365 * 24 * 3600

# Where the time of day is told to somebody; nowhere is it waited for.
TELLING = {"crilog.py", "events.py", "exits.py", "keeper.py", "main.py"}


@pytest.mark.parametrize("jump_s", [-YEAR_S, -3600, 3600, YEAR_S])
@on_loop
async def test_a_jump_neither_shortens_nor_lengthens_a_wait(monkeypatch, jump_s):
    began = time.monotonic()
    real, real_ns = time.time, time.time_ns
    poller.call_later(0.02, lambda: monkeypatch.setattr(time, "time", lambda: real() + jump_s))
    poller.call_later(0.02, lambda: monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump_s * 10**9))
    with pytest.raises(TimeoutError), loop.timeout(0.2):
        await loop.Event().wait()
    assert abs(time.time() - real() - jump_s) < 1  # it has jumped
    assert 0.19 < time.monotonic() - began < 30  # not at once, and not in an hour


def test_the_time_of_day_is_only_told():
    using = set()
    for path in SHIM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"time", "time_ns"}:
                using.add(path.name)
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {alias.name for alias in node.names} <= {"monotonic"}, path
    assert using <= TELLING
