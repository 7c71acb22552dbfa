"""What a failpoint does, term by term."""

import signal
import subprocess
import sys
import time

import pytest

from runtimed import failpoints
from runtimed.errors import InvalidArgument, RuntimedError


@pytest.fixture
def program(monkeypatch):
    return lambda text: monkeypatch.setattr(failpoints, "_points", failpoints.parse(text))


def outcomes(name: str, times: int) -> list[str]:
    """Reach the point so many times; return the texts of the errors, "" where there was none."""
    found = []
    for _ in range(times):
        try:
            failpoints.hit(name)
            found.append("")
        except RuntimedError as exc:
            found.append(str(exc))
    return found


def test_nothing_happens_by_default():
    assert outcomes("create.bundle", 2) == ["", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=error(no)", ["no", "no", "no", "no"]),
        ("a=1*error(no)", ["no", "", "", ""]),
        ("a=2*error(x)->off", ["x", "x", "", ""]),
        ("a=error(x)->error(y)", ["x", "y", "y", "y"]),
        ("a = 1 * off -> 1*error(later) ; b=error(other)", ["", "later", "", ""]),
        ("a=0*error(never)->error(now)", ["now", "now", "now", "now"]),
        ("a=error(with (parentheses) = and * in it)", ["with (parentheses) = and * in it"] * 4),
        ("a=1*error()", ["failpoint a", "", "", ""]),
        ("b=error(x)", ["", "", "", ""]),
        ("a=off;a=1*error(the last one counts)", ["the last one counts", "", "", ""]),
    ],
)
def test_terms_follow_each_other(program, text, expected):
    program(text)
    assert outcomes("a", 4) == expected


@pytest.mark.parametrize(
    "text", ["a", "=panic", "a=", "a=explode", "a=-1*panic", "a=delay(x)", "a=panic(1)", "a=1*", "a=panic->"]
)
def test_what_is_not_a_program_is_refused(text):
    with pytest.raises(InvalidArgument, match="RUNTIMED_FAILPOINTS"):
        failpoints.parse(text)


async def test_a_delay_waits(program):
    program("a=2*delay(20)")
    began = time.monotonic()
    failpoints.hit("a")
    await failpoints.hit_async("a")
    failpoints.hit("a")
    assert 0.04 <= time.monotonic() - began < 1


def test_a_panic_is_a_crash():
    code = "from runtimed import failpoints; failpoints.hit('a'); failpoints.hit('a'); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={failpoints.VARIABLE: "a=1*off->panic"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
