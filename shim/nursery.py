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
from types import CodeType, FunctionType
from typing import Any, ClassVar, NoReturn

from runtimed.linux import process
from shim import files, loop, server, ttrpc
from shim import messages as pb
from shim.events import EVENTS, Publisher
from shim.exits import Children
from shim.options import DEFAULT_ROOT
from shim.proto import Message
from shim.task import TaskService

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
    hot = _rehearse(1)
    _gather(hot)
    _rehearse(_REHEARSALS)
    # A collection would write to the header of every object there is, and so give each shim its own copy of them.
    gc.collect()
    gc.freeze()
    while packet := _receive(requests):
        _fork(requests, packet)


def _gather(hot: set[CodeType]) -> None:
    """Move the code that shims run to one place, so that the counts of its users are on few pages."""
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__ in hot:
            function.__code__ = function.__code__.replace()


def _rehearse(times: int) -> set[CodeType]:
    """Do here what every shim does, with a program that does nothing in runc's place.

    Python makes much on first use: caches, specialised bytecode, compiled patterns. Made before the fork it costs
    memory once, made after it once for each shim. Returns the code that was run.
    """
    run: set[CodeType] = set()
    directory = f"/tmp/runtimed-rehearsal-{os.getpid()}"
    try:
        os.mkdir(directory, 0o700)  # noqa: PTH102 - a string all the way
    except OSError:
        return run  # shims will be somewhat larger
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process.set_child_subreaper()
    if times == 1:
        sys.setprofile(lambda frame, event, argument: run.add(frame.f_code))
    try:
        for name in ("in", "out"):
            os.mkfifo(f"{directory}/{name}", 0o600)
        loop.run(_rehearse_in(directory, times))
    except Exception:
        traceback.print_exc()  # shims will be somewhat larger
    finally:
        sys.setprofile(None)
        process.set_child_subreaper(False)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for name in os.listdir(directory):  # noqa: PTH208
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
        os.rmdir(directory)  # noqa: PTH106
    return run


class _Events:
    """Takes the events of a rehearsal."""

    REQUESTS: ClassVar = {"Forward": pb.ForwardRequest}
    READS: ClassVar = frozenset({"Forward"})

    async def Forward(self, request: pb.ForwardRequest) -> pb.Empty:
        return pb.Empty()


async def _rehearse_in(bundle: str, times: int) -> None:
    for _ in range(times):
        request = {"id": "r", "namespace": "rehearsal", "bundle": bundle, "socket": f"{bundle}/s", "debug": False}
        settings = _settings(json.dumps(request).encode())
        process.set_name("runtimed-nursery")
        await _rehearse_life(settings, server.listen(settings.socket_path))


async def _rehearse_life(settings: server.Settings, sock: _socket.socket) -> None:
    path, bundle = settings.socket_path, settings.bundle
    children = Children()
    children.reap_orphans()
    publisher = Publisher(path, settings.namespace)
    tasks = TaskService(settings.namespace, "/nonexistent", children, publisher)
    service = ttrpc.Server({_TASK: tasks, EVENTS: _Events()})
    service.serve(sock)
    client = ttrpc.Client(ttrpc.connected(path))
    options = pb.Any.of(pb.Options(binary_name="true"))

    async def call(method: str, request: Message, response_type: type[Message] = pb.Empty) -> None:
        await client.call(_TASK, method, request, response_type, 10)

    # What the runtime would leave: a process that is a child of the shim's by then.
    pid = os.posix_spawnp("sleep", ["sleep", "60"], {})  # noqa: ASYNC221 - returns at once
    files.write(f"{bundle}/init.pid", str(pid).encode())
    create = pb.CreateTaskRequest(
        id="r", bundle=bundle, stdin=f"{bundle}/in", stdout=f"{bundle}/out", stderr=f"{bundle}/out", options=options
    )
    await call("Create", create, pb.CreateTaskResponse)
    await call("Connect", pb.ConnectRequest(id="r"), pb.ConnectResponse)
    await call("Start", pb.StartRequest(id="r"), pb.StartResponse)
    await call("State", pb.StateRequest(id="r"), pb.StateResponse)
    await call("Kill", pb.KillRequest(id="r", signal=signal.SIGKILL))
    await call("Wait", pb.WaitRequest(id="r"), pb.WaitResponse)
    await call("Delete", pb.DeleteRequest(id="r"), pb.DeleteResponse)
    client.close()
    await publisher.close(1)
    service.close()
    os.unlink(path)  # noqa: PTH108


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
    """Fork a process that answers *packet*, and is the shim if that can be; return when it has answered.

    The shim does all there is to do itself. What the nursery writes to in its memory between two forks each shim gets
    a copy of for its own, so that is as little as can be.
    """
    answered, answering = os.pipe()
    if os.fork() == 0:
        os.close(answered)
        _answer(requests, packet, answering)
    os.close(answering)
    os.read(answered, 1)
    os.close(answered)


def _answer(requests: socket.socket, packet: bytes, answering: int) -> NoReturn:
    """Be the shim, and never come back to the nursery's loop."""
    status = 1
    try:
        try:
            settings = _settings(packet)
            os.chdir(settings.bundle)  # before there is a socket that would have to go again
            sock = server.listen(settings.socket_path)
            try:
                server.become(settings)
            except BaseException:
                os.unlink(settings.socket_path)  # noqa: PTH108 - a string all the way
                raise
        except (OSError, ValueError) as exc:
            _send(requests, json.dumps({"error": str(exc)}))
            os._exit(status)
        _send(requests, f'{{"pid": {os.getpid()}}}')
        requests.close()
        os.close(answering)
        os.dup2(0, 2)  # what the nursery itself has to say is for the daemon
        server.run(settings, sock)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _send(requests: socket.socket, answer: str) -> None:
    with suppress(OSError):  # nobody there any more: the nursery's next receive says so, too
        requests.send(answer.encode())


if __name__ == "__main__":
    main()
