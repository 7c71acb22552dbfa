"""Killing the process that is meant, and no other."""

import os
import resource
import subprocess

from runtimed.tasks import pids


def test_the_process_that_is_meant_is_killed():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert pids.kill(process.pid, pids.started(process.pid))
        assert process.wait() == -9


def test_a_later_process_with_the_same_pid_is_left_alone():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert pids.kill(process.pid, pids.started(process.pid) - 1)
        assert process.poll() is None
        process.kill()


def test_one_that_is_gone_is_gone():
    with subprocess.Popen(["true"]) as process:
        start = pids.started(process.pid)
    assert pids.started(process.pid) == 0
    assert pids.kill(process.pid, start)


def test_without_knowing_when_it_started_nothing_is_killed():
    assert not pids.kill(os.getpid(), 0)
    assert not pids.kill(0, 1)
    assert not pids.kill(1, pids.started(1))


def test_a_name_with_parentheses_and_blanks_does_not_confuse():
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 1 (x'); import sys; print(flush=True); sys.stdin.read()"
    command = ["python3", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        before = pids.started(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert pids.started(process.pid) == before > 0
        process.kill()


def test_one_is_killed_where_many_descriptors_are_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            assert pids.kill(process.pid, pids.started(process.pid))
            assert process.wait() == -9
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_at_its_end_is_told_from_one_that_lives():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not pids.is_ending(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pids.is_ending(process.pid)
    assert pids.is_ending(process.pid)
