"""Pumps between pipes; the test has the other ends."""

import contextlib
import os
import select
import threading

import pytest

from shim import loop, poller
from shim.pump import Pump
from tests.unit.shim.loops import on_loop


@pytest.fixture
def pipes():
    """Make non-blocking pipes; what is still open at the end is closed."""
    fds: list[int] = []

    def make():
        pair = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fds.extend(pair)
        return pair

    yield make
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


async def pumped(source, target, *, splice):
    done = loop.Event()
    pump = Pump(source, target, done.set, splice=splice)
    with loop.timeout(10):
        await done.wait()
    assert pump.ended.is_set()


@pytest.mark.parametrize("splice", [True, False])
@on_loop
async def test_a_pump_moves_all_and_ends_with_its_source(pipes, splice):
    source, fill = pipes()
    drain, target = pipes()
    os.write(fill, b"hello")
    os.close(fill)
    await pumped(source, target, splice=splice)
    assert os.read(drain, 100) == b"hello"


@pytest.mark.parametrize("splice", [True, False])
@on_loop
async def test_a_pump_waits_for_a_target_that_is_full_and_loses_nothing(pipes, splice):
    source, fill = pipes()
    drain, target = pipes()
    data = os.urandom(400_000)

    os.set_blocking(fill, True)
    os.set_blocking(drain, True)

    def write():
        with os.fdopen(fill, "wb") as file:
            file.write(data)

    read = []

    def read_all():
        with os.fdopen(drain, "rb") as file:
            read.append(file.read())

    # More than two pipes hold: the writer is not done before the reader begins, and that is long after the pump began.
    writing = threading.Thread(target=write)
    writing.start()
    pump = Pump(source, target, lambda: None, splice=splice)
    await filled(target)
    assert writing.is_alive()
    reading = threading.Thread(target=read_all)
    reading.start()
    with loop.timeout(10):
        await pump.ended.wait()
    os.close(target)
    writing.join()
    reading.join()
    assert read == [data]


async def filled(fd):
    """Wait until a pipe takes no more."""
    with loop.timeout(10):
        while select.select([], [fd], [], 0)[1]:
            await loop.sleep(0)


@pytest.mark.parametrize("splice", [True, False])
@on_loop
async def test_a_pump_ends_when_nobody_reads_its_target(pipes, splice):
    source, fill = pipes()
    drain, target = pipes()
    os.close(drain)
    os.write(fill, b"hello")
    await pumped(source, target, splice=splice)


@on_loop
async def test_a_pump_without_a_target_drops(pipes):
    source, fill = pipes()
    os.write(fill, b"hello")
    os.close(fill)
    await pumped(source, -1, splice=False)


@on_loop
async def test_a_target_that_fails_loses_output_and_holds_nobody_up(pipes):
    source, fill = pipes()
    full = os.open("/dev/full", os.O_WRONLY)
    os.write(fill, b"hello")
    os.close(fill)
    await pumped(source, full, splice=False)
    os.close(full)


@on_loop
async def test_stopping_twice_does_not_touch_a_descriptor_that_has_its_number_by_now(pipes):
    source, _ = pipes()
    pump = Pump(source, -1, lambda: None)
    pump.stop()
    poller.add_reader(source, lambda: None)
    pump.stop()
    assert poller.remove_reader(source)  # it was still there
