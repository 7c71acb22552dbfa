"""Failpoints: named places in the code at which tests make things go wrong. Off unless the environment says otherwise.

``RUNTIMED_FAILPOINTS`` holds a program for each point that is to fail, in this grammar (blanks are ignored)::

    points  = [ point *( ";" point ) ]
    point   = name "=" term *( "->" term )
    term    = [ number "*" ] action
    action  = "off" / "error(" text ")" / "delay(" milliseconds ")" / "panic"

A point does, each time it is reached, what its current term says, and goes on to the next term after *number* times;
the default is once, and for ever in the last term. After the last one nothing happens any more. So
``create.bundle=1*error(no)->delay(50)->panic`` fails the first time, waits the second, and from then on ends the
process with SIGKILL, as a crash does: without any clean-up. Programs that the daemon starts inherit the variable; each
counts for itself.

A point that is off costs one look at an empty dictionary.
"""

import os
import re
import signal
import time
from dataclasses import dataclass

from runtimed.errors import InvalidArgument, RuntimedError

VARIABLE = "RUNTIMED_FAILPOINTS"

_TERM = re.compile(r"(?:(\d+)\s*\*)?\s*(off|panic|error\((.*)\)|delay\((\d+)\))", re.DOTALL)
_FOR_EVER = -1


@dataclass(slots=True)
class _Term:
    left: int  # times that it is still to be done
    action: str
    text: str = ""
    delay_s: float = 0.0


def parse(program: str) -> dict[str, list[_Term]]:
    """Return what each point does. Raises InvalidArgument."""
    points = {}
    for point in filter(None, (part.strip() for part in program.split(";"))):
        name, equals, terms = point.partition("=")
        if not equals or not name.strip():
            raise InvalidArgument(f"{VARIABLE}: {point!r} is not of the form name=term->term")
        points[name.strip()] = _terms(terms.split("->"))
    return points


def _terms(texts: list[str]) -> list[_Term]:
    terms = []
    for number, text in enumerate(texts, 1):
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise InvalidArgument(f"{VARIABLE}: {text.strip()!r} is not [N*]off, panic, error(text) or delay(ms)")
        count, action, message, delay_ms = match.groups()
        times = int(count) if count else _FOR_EVER if number == len(texts) else 1
        terms.append(_Term(times, action.partition("(")[0], message or "", int(delay_ms or 0) / 1000))
    return terms


_points = parse(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """Do what the point *name* is to do, in blocking code. Raises RuntimedError."""
    if _points and (delay_s := reached(name)):
        time.sleep(delay_s)


async def hit_async(name: str) -> None:
    """Like :func:`hit`, where waiting must not hold up the event loop."""
    if _points and (delay_s := reached(name)):
        import asyncio  # here: vocabulary knows no event loop, and who calls this has loaded it

        await asyncio.sleep(delay_s)


def reached(name: str) -> float:
    """Do the next thing that *name* is to do; return for how many seconds to wait then. Raises RuntimedError."""
    terms = _points.get(name)
    while terms and terms[0].left == 0:
        del terms[0]
    if not terms:
        return 0.0
    term = terms[0]
    if term.left != _FOR_EVER:
        term.left -= 1
    if term.action == "panic":
        os.kill(os.getpid(), signal.SIGKILL)
    if term.action == "error":
        raise RuntimedError(term.text or f"failpoint {name}")
    return term.delay_s
