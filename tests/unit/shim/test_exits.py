"""Children of the test's own."""

import os
import signal

import pytest

from runtimed.errors import InvalidArgument, NotFound
from shim import loop
from shim.exits import Children
from tests.unit.shim.loops import on_loop


@pytest.fixture
def children():
    return Children()


@pytest.fixture
def null():
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


async def end_of(child):
    with loop.timeout(10):
        return await child.exited


def shell(children, null, script):
    return children.spawn(["sh", "-c", script], {"PATH": os.environ["PATH"]}, (null, null, null))


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
@on_loop
async def test_the_status_is_the_code_or_128_and_the_signal(children, null, script, status):
    assert (await end_of(shell(children, null, script))).status == status


@on_loop
async def test_a_signal_reaches_a_child_until_it_has_ended(children, null):
    child = shell(children, null, "exec sleep 60")
    child.send_signal(0)
    with pytest.raises(InvalidArgument):
        child.send_signal(12345)
    child.send_signal(signal.SIGTERM)
    assert (await end_of(child)).status == 143
    with pytest.raises(NotFound, match="already finished"):
        child.send_signal(signal.SIGTERM)


@on_loop
async def test_a_program_that_is_not_there_is_an_oserror(children, null):
    with pytest.raises(FileNotFoundError):
        children.spawn(["/no/such"], {}, (null, null, null))


@on_loop
async def test_a_descriptor_that_is_not_named_is_not_passed_on(children, null):
    read, write = os.pipe()
    leaked = os.open(os.devnull, os.O_RDONLY)
    child = children.spawn(["ls", "/proc/self/fd"], {"PATH": os.environ["PATH"]}, (null, write, null))
    os.close(write)
    await end_of(child)
    passed = {int(number) for number in os.read(read, 1000).split()}
    assert not passed & {leaked, read, write, null} - {3}  # 3 is the directory that is listed
    os.close(read)
    os.close(leaked)


@on_loop
async def test_ignored_signals_are_not_passed_on(children, null):
    read, write = os.pipe()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = children.spawn(["grep", "SigIgn", "/proc/self/status"], {}, (null, write, null))
    finally:
        signal.signal(signal.SIGHUP, before)
    os.close(write)
    await end_of(child)
    assert int(os.read(read, 100).split()[1], 16) & 0x7FFFFFFF == 0  # two signals above are the C library's own
    os.close(read)
