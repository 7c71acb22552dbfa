import socket
import threading
from collections.abc import Iterator

import pytest

from runtimed.workers.watchdog import Watchdog


class Connection:
    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_who_sends_nothing_is_let_go(ends):
    with Watchdog(min_rate=1, window_s=0.02) as watchdog:
        watchdog.watch(Connection(ends[0]))
        assert ends[0].recv(1) == b""  # comes back because the watchdog has ended it
        assert watchdog.has_barked


def test_who_sends_enough_is_not(ends):
    with Watchdog(min_rate=1000, window_s=0.02) as watchdog:
        watchdog.watch(Connection(ends[0]))
        for _ in range(20):
            watchdog.received(100_000)
            threading.Event().wait(0.01)
        assert not watchdog.has_barked


def test_what_a_slow_disk_takes_is_nobodys_fault(ends):
    with Watchdog(min_rate=1, window_s=0.02) as watchdog:
        watchdog.watch(Connection(ends[0]))
        with watchdog.away():
            threading.Event().wait(0.2)
            assert not watchdog.has_barked
        assert ends[0].recv(1) == b""
