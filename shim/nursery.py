"""The warm parent that forks shims for the daemon: ``python -m shim.nursery FD``.

Importing Python's standard library costs 20 ms and some megabytes; here both are paid once. The daemon starts one
nursery by exec, with one end of a ``SOCK_SEQPACKET`` socket pair as FD, and asks it for shims. A request and its answer
are one packet each, one JSON object each, one after the other::

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

The nursery binds the socket (mode 0600) and listens before it forks, so the daemon may connect as soon as it has the
answer. A socket file that nobody listens on is replaced; one that somebody listens on is an error.

The shim is in a session of its own and outlives both the nursery and the daemon. The nursery ends when the other end of
its socket is closed. Shims that end leave no zombies here.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import NotFound
from runtimed.linux import process
from runtimed.rpc import ttrpc
from shim import server
from shim.events import Publisher
from shim.exits import Children
from shim.task import TaskService

_TASK = "containerd.task.v3.Task"
_MAX_PACKET = 64 << 10  # bytes of a request

# Settings of a shim that a request must have, and those it may have.
_REQUIRED = ("id", "namespace", "bundle", "socket")
_OPTIONAL = {"ttrpc_address": str, "runc_root": str, "debug": bool}


def main() -> None:
    """Fork shims until the daemon's end of the socket is closed."""
    # Shims that end are nobody's concern here. Signals for the daemon's group must not end the next shim's parent.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    process.set_name("runtimed-nursery")
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    asyncio.run(_rehearse())
    # A collection would write to the header of every object there is, and so give each shim its own copy of them.
    gc.collect()
    gc.freeze()
    while packet := _receive(requests):
        answer: dict[str, Any]
        try:
            settings = _settings(packet)
            answer = {"pid": _fork(settings, server.listen(settings.socket_path))}
        except (OSError, ValueError) as exc:
            answer = {"error": str(exc)}
        with suppress(OSError):  # nobody there any more: the next receive says so, too
            requests.send(json.dumps(answer).encode())


async def _rehearse() -> None:
    """Do here what every shim does.

    Python makes much on first use: caches, specialised bytecode, message classes. Made before the fork it costs memory
    once, made after it once for each shim (a tenth of what a shim has for itself).
    """
    children = Children()
    publisher = Publisher("", "rehearsal")
    tasks = TaskService("rehearsal", "/nonexistent", children, publisher)
    service = ttrpc.Server({_TASK: tasks.service()})
    ours, theirs = socket.socketpair()
    await service.attach(theirs)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    client = ttrpc.Client(reader, writer, "rehearsal")
    await client.call(_TASK, "Connect", pb.ConnectRequest(), pb.ConnectResponse, timeout_s=5)
    with suppress(NotFound):
        await client.call(_TASK, "Start", pb.StartRequest(id="none"), pb.StartResponse, timeout_s=5)
    await client.close()
    await service.close()
    await publisher.close(0)


def _receive(requests: socket.socket) -> bytes:
    try:
        return requests.recv(_MAX_PACKET)
    except ConnectionError:
        return b""


def _settings(packet: bytes) -> server.Settings:
    """Return what a request asks for. Raises ValueError."""
    request = json.loads(packet)
    if not isinstance(request, dict):
        raise ValueError("a request is a JSON object")
    for key in _REQUIRED:
        if not isinstance(request.get(key), str) or not request[key]:
            raise ValueError(f"a request needs {key!r}, a string")
    for key, kind in _OPTIONAL.items():
        if not isinstance(request.get(key, kind()), kind):
            raise ValueError(f"{key!r} must be of type {kind.__name__}")
    return server.Settings(
        id=request["id"],
        namespace=request["namespace"],
        bundle=request["bundle"],
        socket_path=request["socket"],
        **{key: request[key] for key in _OPTIONAL if request.get(key)},
    )


def _fork(settings: server.Settings, sock: socket.socket) -> int:
    """Return the pid of a new shim. The nursery's copy of *sock* is closed."""
    try:
        os.chdir(settings.bundle)  # here, so that what is wrong with it is an answer and not a shim that dies
        pid = os.fork()
    except OSError:
        os.unlink(settings.socket_path)  # noqa: PTH108 - a string all the way
        sock.close()
        raise
    if pid == 0:
        _shim(settings, sock)
    os.chdir("/")
    sock.close()
    return pid


def _shim(settings: server.Settings, sock: socket.socket) -> NoReturn:
    """Be the shim, and never come back to the nursery's loop."""
    status = 1
    try:
        server.become(settings, sock)
        server.run(settings, sock)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
