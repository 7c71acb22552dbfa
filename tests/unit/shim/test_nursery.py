"""A nursery's fork, with this process in the nursery's place."""

import errno
import json
import os
import socket

import pytest

from shim import nursery, server


@pytest.fixture
def daemon():
    """Both ends of a nursery's socket: the daemon's, and its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def answer_to(daemon, request):
    ours, theirs = daemon
    nursery._fork(theirs, json.dumps(request).encode())
    os.wait()
    return json.loads(ours.recv(65536))


def test_one_that_cannot_become_a_shim_says_so_and_leaves_nothing(daemon, monkeypatch, tmp_path):
    def cannot():
        raise OSError(errno.EPERM, "setsid: Operation not permitted")

    monkeypatch.setattr(server, "become", cannot)
    request = {"id": "c1", "namespace": "test", "bundle": str(tmp_path), "socket": str(tmp_path / "s")}
    assert "setsid: Operation not permitted" in answer_to(daemon, request)["error"]
    assert list(tmp_path.iterdir()) == []


def test_one_without_a_worker_says_so(daemon, monkeypatch, tmp_path):
    fork, forks = os.fork, []

    def once():
        forks.append(1)
        if len(forks) > 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", once)
    request = {"id": "c1", "namespace": "test", "bundle": str(tmp_path), "socket": str(tmp_path / "s")}
    assert "temporarily unavailable" in answer_to(daemon, request)["error"]
    assert list(tmp_path.iterdir()) == []
