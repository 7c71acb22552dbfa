"""A nursery's forks, with this process in the nursery's place."""

import errno
import json
import os
import socket

import pytest

from shim import nursery, server


@pytest.fixture
def requests():
    """A nursery's own end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield theirs


def answer_to(requests, request):
    answer = nursery._answer_of_new(requests, json.dumps(request).encode())
    os.wait()
    return json.loads(answer)


def test_one_that_cannot_become_a_shim_says_so_and_leaves_nothing(requests, monkeypatch, tmp_path):
    def cannot():
        raise OSError(errno.EPERM, "setsid: Operation not permitted")

    monkeypatch.setattr(server, "become", cannot)
    request = {"id": "c1", "namespace": "test", "bundle": str(tmp_path), "socket": str(tmp_path / "s")}
    assert "setsid: Operation not permitted" in answer_to(requests, request)["error"]
    assert list(tmp_path.iterdir()) == []


def test_one_without_a_worker_says_so(requests, monkeypatch, tmp_path):
    fork, forks = os.fork, []

    def once():
        forks.append(1)
        if len(forks) > 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", once)
    request = {"id": "c1", "namespace": "test", "bundle": str(tmp_path), "socket": str(tmp_path / "s")}
    assert "temporarily unavailable" in answer_to(requests, request)["error"]
    assert list(tmp_path.iterdir()) == []


def test_one_that_ends_before_it_answers_is_told_of(requests, monkeypatch):
    monkeypatch.setattr(nursery, "_keep", lambda packet, asking: os._exit(3))
    assert answer_to(requests, {"id": "c1"}) == {"error": "it ended before it answered"}


def test_one_that_cannot_be_forked_is_told_of_when_there_is_a_request(requests, monkeypatch):
    def cannot():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", cannot)
    assert nursery._spare(requests) is None
    assert "temporarily unavailable" in json.loads(nursery._answer_of_new(requests, b"{}"))["error"]
