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

After the first request it forks each shim ahead: a *spare* waits, as keeper and worker, for the request that it is to
serve. It has the nursery's name until then, and ends with the nursery. One that has ended is done without.
"""

import _socket
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from runtimed.linux import process
from shim import rehearsal, sealed, server, shortcuts
from shim.keeper import Keeper, Start
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
    sealed.load(shortcuts.trusted())
    rehearsal.rehearse(sys.argv[2], _settings)
    # A collection would write to the header of every object there is, and so give each shim its own copy of them.
    gc.collect()
    gc.freeze()
    spare: _socket.socket | None = None  # not before the first request: the daemon sets limits after the start
    while packet := _receive(requests):
        answer = _ask(spare, packet) if spare else b""
        _send(requests, answer or _answer_of_new(requests, packet))
        spare = _spare(requests)


def _receive(requests: _socket.socket) -> bytes:
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


def _ask(shim: _socket.socket, packet: bytes) -> bytes:
    """Return the answer to *packet* of a shim that has answered none yet; nothing if it has ended."""
    try:
        shim.send(packet)
        return shim.recv(_MAX_PACKET)
    except OSError:
        return b""
    finally:
        shim.close()


def _answer_of_new(requests: _socket.socket, packet: bytes) -> bytes:
    """Return the answer of a shim that is forked for it, or why there is none."""
    try:
        shim = _fork(requests, packet)
    except OSError as exc:
        return _error(exc)
    try:
        return shim.recv(_MAX_PACKET) or _error("it ended before it answered")
    finally:
        shim.close()


def _spare(requests: _socket.socket) -> _socket.socket | None:
    try:
        return _fork(requests)
    except OSError:
        return None  # it is tried again when there is a request, to which the error can be told


def _fork(requests: _socket.socket, packet: bytes = b"") -> _socket.socket:
    """Fork a shim that answers *packet*, or, if that is empty, the one that comes by the socket; return the socket.

    The shim does all there is to do itself. What the nursery writes to in its memory between two forks each shim gets
    a copy of for its own, so that is as little as can be. Raises OSError.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        if os.fork() == 0:
            ours.close()
            requests.close()
            _keep(packet, theirs.detach())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def _keep(packet: bytes, asking: int) -> NoReturn:
    """Be the keeper of a shim, whose first worker answers, and never come back to the nursery's loop."""
    status = 1
    try:
        try:
            server.become()
            keeper = Keeper(
                lambda start: server.work(lambda: _answer(packet, asking, start), start), [asking], sealed.fds()
            )
            keeper.start()
        except OSError as exc:
            if packet:  # else the nursery finds that there is no spare
                _send(_socket.socket(fileno=asking), _error(exc))
            raise
        os.dup2(0, 2)  # what the nursery itself has to say is for the daemon
        status = keeper.run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _answer(packet: bytes, asking: int, start: Start) -> tuple[server.Settings, _socket.socket]:
    """Answer *packet*, or the one that comes by *asking*; return what it asks for, and the socket to serve it on."""
    nursery = _socket.socket(fileno=asking)
    try:
        settings = _settings(packet or _awaited(nursery, start))
        os.chdir(settings.bundle)  # before there is a socket that would have to go again
        sock = server.listen(settings.socket_path)
    except (OSError, ValueError) as exc:
        _send(nursery, _error(exc))
        os._exit(1)
    _send(nursery, b'{"pid": %d}' % start.keeper)
    nursery.close()
    os.dup2(0, 2)
    return settings, sock


def _awaited(nursery: _socket.socket, start: Start) -> bytes:
    """Return the request that a spare is to serve; end, and its keeper with it, when there will be none."""
    poller = select.poll()
    poller.register(nursery.fileno(), select.POLLIN)
    poller.register(start.link.fileno(), select.POLLIN)  # the keeper says when somebody wants to end it
    ready = [fd for fd, _ in poller.poll()]
    if nursery.fileno() in ready and (packet := _receive(nursery)):
        return packet
    os._exit(0)


def _error(reason: object) -> bytes:
    return json.dumps({"error": str(reason)}).encode()


def _send(sock: _socket.socket, answer: bytes) -> None:
    with suppress(OSError):  # nobody there any more
        sock.send(answer)


if __name__ == "__main__":
    main()
