"""What a URL of the streaming server stands for: once, and for a minute."""

import secrets
import time
from dataclasses import dataclass
from typing import Literal

from runtimed.errors import NotFound, ResourceExhausted

LIFETIME_S = 60.0
_MOST = 1000  # that wait at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A request that a client may make."""

    kind: Literal["exec", "attach", "portforward"]
    target: str  # container, or pod
    command: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    ports: tuple[int, ...] = ()


class Tickets:
    def __init__(self) -> None:
        self._waiting: dict[str, tuple[float, Ticket]] = {}  # in the order they were issued

    def issue(self, ticket: Ticket) -> str:
        """Return the token for one request. Raises ResourceExhausted: too many wait."""
        now = time.monotonic()
        while self._waiting and next(iter(self._waiting.values()))[0] <= now:
            del self._waiting[next(iter(self._waiting))]
        if len(self._waiting) >= _MOST:
            raise ResourceExhausted(f"{_MOST} streaming requests wait for their clients already; try again in a minute")
        token = secrets.token_urlsafe(24)
        self._waiting[token] = (now + LIFETIME_S, ticket)
        return token

    def redeem(self, kind: str, token: str) -> Ticket:
        """Return what the token stands for; it is used up then. Raises NotFound: it stands for nothing (any more)."""
        expires, ticket = self._waiting.get(token, (0.0, None))
        if ticket is None or ticket.kind != kind or expires <= time.monotonic():
            raise NotFound("no such streaming request: its URL serves once, within a minute")
        del self._waiting[token]
        return ticket
