"""A keeper and a worker in one process: the worker's loop has the keeper do its part."""

import os
import select
import signal
import time
from contextlib import contextmanager

import pytest

from runtimed.errors import NotFound
from runtimed.linux import process
from shim import loop, poller
from shim.exits import Children, Exit
from shim.keeper import Keeper
from tests.unit.shim.loops import on_loop


class Worker:
    """The worker's side: children, and what the keeper says of them."""

    def __init__(self, keeper):
        self.keeper = keeper
        self.children = Children(keeper.link)
        self.heard = []
        poller.add_reader(keeper.fileno(), keeper.attend)
        poller.add_reader(keeper.link.fileno(), lambda: keeper.link.hear(self.hear))

    def hear(self, words):
        self.heard.append(words)
        if words[0] == b"exit":
            self.children.ended(int(words[1]), Exit(int(words[2]), int(words[3])))
        elif words[0] == b"lost":
            self.children.lost(int(words[1]))


@contextmanager
def kept():
    keeper = Keeper(lambda start: None)
    try:
        yield Worker(keeper)
    finally:
        poller.remove_reader(keeper.fileno())
        poller.remove_reader(keeper.link.fileno())
        keeper.close()


def sleeper():
    return os.spawnvp(os.P_NOWAIT, "sleep", ["sleep", "60"])


def zombie(program="true"):
    """Return the pid of a child that has ended and that nobody has waited for."""
    return has_ended(os.spawnvp(os.P_NOWAIT, program, [program]))


def has_ended(pid):
    """Wait until a child has ended, and leave it unreaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


@contextmanager
def grandchild():
    """The pid of a process that is a child's."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        pid = sleeper()
        os.write(writer, b"%d" % pid)
        os.waitpid(pid, 0)
        os._exit(0)
    yield int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    os.waitpid(parent, 0)


def is_reaped(pid):
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return True


async def end_of(child):
    with loop.timeout(10):
        return await child.exited


@on_loop
async def test_a_child_that_ended_before_it_was_adopted_is_not_missed():
    with kept() as worker:
        worker.children.expect()
        child = worker.children.adopt(zombie("false"))
        worker.children.expect_no_more()
        assert (await end_of(child)).status == 1
        with pytest.raises(NotFound):
            child.send_signal(signal.SIGTERM)


@on_loop
async def test_children_that_nobody_adopts_are_reaped_unless_they_are_expected():
    with kept() as worker:
        worker.children.expect()
        pid, orphan = zombie(), zombie()
        worker.keeper.attend()
        assert not is_reaped(pid)
        assert not is_reaped(orphan)
        child = worker.children.adopt(pid)
        worker.children.expect_no_more()
        assert (await end_of(child)).status == 0
        assert is_reaped(orphan)
        assert [words[0] for words in worker.heard] == [b"exit"]


@on_loop
async def test_a_known_child_behind_one_that_may_be_expected_is_not_held_up():
    with kept() as worker:
        known = worker.children.adopt(sleeper())
        await loop.sleep(0.01)
        worker.children.expect()
        worker.children.expect()
        other = zombie()
        known.send_signal(signal.SIGKILL)
        has_ended(known.pid)
        worker.keeper.attend()
        assert (await end_of(known)).status == 137
        assert not is_reaped(other)
        worker.children.expect_no_more()
        worker.keeper.attend()
        assert not is_reaped(other)  # somebody else still expects one
        worker.children.expect_no_more()
        worker.keeper.attend()
        assert is_reaped(other)


@on_loop
async def test_the_end_of_a_process_that_is_nobodys_child_has_no_status():
    with kept() as worker, grandchild() as pid:
        child = worker.children.adopt(pid)
        await loop.sleep(0.01)
        assert not child.exited.done()
        child.send_signal(signal.SIGKILL)
        assert (await end_of(child)).status == 255


@on_loop
async def test_what_is_taken_keeps_its_numbers_and_is_let_go_again():
    with kept() as worker:
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(150)]
        fds = [fd for pair in pipes for fd in pair]
        there = [os.fstat(fd).st_ino for fd in fds]
        worker.keeper.link.give(fds)
        for fd in fds:
            os.close(fd)
        worker.keeper.attend()
        assert [os.fstat(fd).st_ino for fd in fds] == there
        assert not any(os.get_inheritable(fd) for fd in fds)
        worker.keeper.link.say("drop")
        worker.keeper.attend()
        for fd in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


def shim_of(work):
    """Run a keeper whose workers call *work* in a process of its own; return its status."""
    pid = os.fork()
    if pid == 0:
        process.set_child_subreaper()
        keeper = Keeper(work)
        keeper.start()
        os._exit(keeper.run())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def reports():
    """A pipe for what workers have to say; a function returns all of it."""
    reader, writer = os.pipe()
    yield writer, lambda: os.read(reader, 4096).split()
    os.close(reader)
    os.close(writer)


def rest(start, fds=(), watched=(), ms=-1):
    """Have the keeper take over, and end."""
    state = os.memfd_create("state")
    start.link.give([*fds, state])
    start.link.watch(watched)
    start.link.say("rest", state, ms)
    os._exit(0)


@pytest.mark.parametrize("status", [0, 3])
def test_a_keeper_ends_with_its_worker(status):
    assert shim_of(lambda start: os._exit(status)) == status


def test_a_worker_that_is_killed_or_fails_is_not_replaced(capfd):
    assert shim_of(lambda start: os.kill(os.getpid(), signal.SIGKILL)) == 137
    assert shim_of(lambda start: 1 / 0) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_a_worker_has_not_heard_wakes_the_next_one(reports):
    writer, said = reports

    def work(start):
        if start.state < 0:
            # A child of the keeper's: its own parent ends first.
            reader, told = os.pipe()
            parent = os.fork()
            if parent == 0:
                os.write(told, b"%d" % sleeper())
                os._exit(0)
            os.waitpid(parent, 0)
            pid = int(os.read(reader, 20))
            start.link.say("adopt", pid)
            os.kill(pid, signal.SIGKILL)
            select.select([start.link.fileno()], [], [])
            rest(start, [reader, told])
        start.link.hear(lambda words: os.write(writer, b" ".join(words)))

    before = time.time_ns()
    assert shim_of(work) == 0
    word, _, status, at = said()
    assert (word, int(status)) == (b"exit", 137)
    assert before <= int(at) <= time.time_ns()


@pytest.mark.parametrize("before_rest", [True, False], ids=["before", "after"])
def test_the_end_of_a_child_that_outlasts_its_worker_is_told_to_the_next_one(reports, before_rest):
    writer, said = reports

    def work(start):
        if start.state < 0:
            pid = zombie("false") if before_rest else os.spawnvp(os.P_NOWAIT, "sh", ["sh", "-c", "sleep 0.1; exit 7"])
            start.link.say("inherit", pid)
            rest(start)
        start.link.hear(lambda words: os.write(writer, b" ".join(words[:1] + words[2:3])))

    assert shim_of(work) == 0
    assert said() == ([b"exit", b"1"] if before_rest else [b"exit", b"7"])


def test_a_worker_is_woken_when_its_time_has_come_and_not_before(reports):
    writer, said = reports
    began = time.monotonic()

    def work(start):
        if start.state < 0:
            rest(start, ms=200)
        os.write(writer, b"woken")

    assert shim_of(work) == 0
    assert said() == [b"woken"]
    assert time.monotonic() - began >= 0.2


def test_what_is_watched_wakes_and_is_the_next_ones_alone(reports):
    writer, said = reports

    def work(start):
        if start.state < 0:
            reader, end = os.pipe()
            os.dup2(reader, 90)
            os.dup2(end, 91)
            if os.fork() == 0:
                os.write(end, b"now")
                os._exit(0)
            rest(start, [90, 91], [90])
        os.write(writer, os.read(90, 10))
        os.close(90)
        broken = select.poll()
        broken.register(91, 0)
        os.write(writer, b" alone" if broken.poll(10_000) else b" shared")  # the last reader has gone

    assert shim_of(work) == 0
    assert said() == [b"now", b"alone"]


def test_sigterm_is_said_to_the_next_worker(reports):
    writer, said = reports

    def work(start):
        if start.state < 0:
            os.kill(start.keeper, signal.SIGTERM)
            rest(start)
        start.link.hear(lambda words: os.write(writer, b" ".join(words)))

    assert shim_of(work) == 0
    assert said() == [b"terminate"]


def test_a_worker_ends_with_its_keeper():
    reader, writer = os.pipe()

    def work(start):
        os.write(writer, b"%d %d" % (os.getpid(), start.keeper))
        signal.pause()

    keeping = os.fork()
    if keeping == 0:
        os._exit(shim_of(work))
    worker, keeper = map(int, os.read(reader, 50).split())
    pidfd = os.pidfd_open(worker)
    os.kill(keeper, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.waitpid(keeping, 0)
    for fd in (reader, writer, pidfd):
        os.close(fd)
