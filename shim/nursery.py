"""The warm parent that forks shims for the daemon: ``python -m shim.nursery FD DIRECTORY``.

Importing Python's standard library costs 20 ms and some megabytes; here both are paid once. The daemon starts one
nursery by exec, with one end of a ``SOCK_SEQPACKET`` socket pair as FD, and asks it for shims. DIRECTORY is made for
the time of its start (``shim.rehearsal``). A request and its answer are one packet each, one JSON object each, one
after the other::

    {"id": "c1",                    the container, or the group of a pod's containers
     "namespace": "default",
     "bundle": "/...",              the shim's working directory; exists already
     "socket": "/.../s",            path to bind, at most 107 bytes; its directory exists already
     "ttrpc_address": "/...",       where events go; "" sends none
     "grpc_address": "/...",        the daemon's own socket; only told on
     "runtime": "io.containerd.runtimed.v1",
     "runc_root": "/...",           where runc keeps its state unless a task says otherwise
     "debug": false}

    {"pid": 4711}                   the shim; its socket listens already
    {"error": "..."}                nothing was started

The socket (mode 0600) is bound before the answer, so the daemon may connect as soon as it has that. A socket file that
nobody listens on is replaced; one that somebody listens on is an error.

A shim serves any number of containers, so those of a pod need one only. The nursery knows nothing of groups; who asks
it does: the group is the annotation ``io.containerd.runc.v2.group`` of the container's spec, or else
``io.kubernetes.cri.sandbox-id``. Where there is a shim of that group (in that namespace), its socket is asked for
Create instead of this process for a shim. ``Shutdown`` ends a shim only when it has no task left, so that it may follow
each Delete; until a Create that joins has been answered, the shim may still end with the last task that it had before.

The shim is in a session of its own and outlives both the nursery and the daemon. The nursery ends when the other end of
its socket is closed. Shims that end leave no zombies here.
"""

import _socket
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from runtimed.linux import process
from shim import rehearsal, server, shortcuts
from shim.keeper import Keeper
from shim.options import DEFAULT_ROOT

_TASK = "containerd.task.v3.Task"
_MAX_PACKET = 64 << 10  # bytes of a request

_REHEARSALS = 9  # the interpreter specialises a function after eight calls

_scan: Callable[[str, int], tuple[Any, int]] = vars(json.JSONDecoder())["scan_once"]  # what json.loads is in the end

_REQUIRED = ("id", "namespace", "bundle", "socket")


def main() -> None:
    """Fork shims until the daemon's end of the socket is closed."""
    # Shims that end are nobody's concern here. Signals for the daemon's group must not end the next shim's parent.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    server.detach({requests.fileno()}, stderr=False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process.set_name("runtimed-nursery")
    with suppress(OSError):  # /proc may be read-only, where the daemon is itself in a container
        process.raise_oom_score_adj(1)  # the daemon's plus one, for all shims to come
    shortcuts.learn()
    rehearsal.rehearse(sys.argv[2], _settings)
    # A collection would write to the header of every object there is, and so give each shim its own copy of them.
    gc.collect()
    gc.freeze()
    while packet := _receive(requests):
        _fork(requests, packet)


def _receive(requests: socket.socket) -> bytes:
    try:
        return requests.recv(_MAX_PACKET)
    except ConnectionError:
        return b""


def _settings(packet: bytes) -> server.Settings:
    """Return what a request asks for. Raises ValueError."""
    text = packet.decode()
    try:
        request, end = _scan(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):
        request = json.loads(text)  # says what is wrong with it
    if type(request) is not dict:
        raise ValueError("a request is a JSON object")
    for key in _REQUIRED:
        if type(request.get(key)) is not str or not request[key]:
            raise ValueError(f"a request needs {key!r}, a string")
    if type(request.get("ttrpc_address", "")) is not str or type(request.get("runc_root", "")) is not str:
        raise ValueError("'ttrpc_address' and 'runc_root' must be of type str")
    if type(request.get("debug", False)) is not bool:
        raise ValueError("'debug' must be of type bool")
    return server.Settings(
        request["id"],
        request["namespace"],
        request["bundle"],
        request["socket"],
        request.get("ttrpc_address", ""),
        request.get("runc_root") or DEFAULT_ROOT,
        request.get("debug", False),
    )


def _fork(requests: socket.socket, packet: bytes) -> None:
    """Fork a shim that answers *packet*, if there can be one; return when it is answered.

    The shim does all there is to do itself. What the nursery writes to in its memory between two forks each shim gets
    a copy of for its own, so that is as little as can be.
    """
    answered, answering = os.pipe()
    if os.fork() == 0:
        os.close(answered)
        _keep(requests, packet, answering)
    os.close(answering)
    os.read(answered, 1)
    os.close(answered)


def _keep(requests: socket.socket, packet: bytes, answering: int) -> NoReturn:
    """Be the keeper of a shim, whose first worker answers, and never come back to the nursery's loop."""
    status = 1
    given = [requests.fileno(), answering]
    try:
        try:
            server.become()
            keeper = Keeper(lambda start: server.work(lambda: _answer(given, packet), start), given)
            keeper.start()
        except OSError as exc:
            _send(requests, json.dumps({"error": str(exc)}))
            raise
        os.dup2(0, 2)  # what the nursery itself has to say is for the daemon
        status = keeper.run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _answer(given: list[int], packet: bytes) -> tuple[server.Settings, _socket.socket]:
    """Answer *packet* by what was *given* to the worker, which is over with it; return what it asks for."""
    requests = _socket.socket(fileno=given[0])
    try:
        settings = _settings(packet)
        os.chdir(settings.bundle)  # before there is a socket that would have to go again
        sock = server.listen(settings.socket_path)
    except (OSError, ValueError) as exc:
        _send(requests, json.dumps({"error": str(exc)}))
        os._exit(1)
    _send(requests, f'{{"pid": {os.getppid()}}}')
    requests.close()
    os.close(given[1])
    os.dup2(0, 2)
    return settings, sock


def _send(requests: _socket.socket, answer: str) -> None:
    with suppress(OSError):  # nobody there any more: the nursery's next receive says so, too
        requests.send(answer.encode())


if __name__ == "__main__":
    main()
