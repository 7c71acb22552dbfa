"""All that shims do, done once in their warm parent, with a program that does nothing in the OCI runtime's place.

Python makes much on first use: caches, specialised bytecode, compiled patterns. Made before the fork it costs memory
once, made after it once for each shim.
"""

import _socket
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import ClassVar

# Loaded here to be shared, though only some shims have a use for it.
import shim.attach
import shim.crilog
import shim.logger  # noqa: F401
from runtimed.linux import process
from shim import files, loop, poller, server, ttrpc
from shim import messages as pb
from shim.events import EVENTS
from shim.keeper import Keeper, Start
from shim.proto import Message

_TASK = "containerd.task.v3.Task"
_TIMES = 9  # the interpreter specialises a function after eight calls


def rehearse(directory: str, settings_of: Callable[[bytes], server.Settings]) -> None:
    """Rehearse in a new *directory*, which is gone again afterwards. Shims are somewhat larger if that cannot be made.

    The process must be one that forks shims; SIGCHLD and SIGTERM are ignored in it afterwards.
    """
    try:
        os.mkdir(directory, 0o700)  # noqa: PTH102 - a string all the way
    except OSError:
        traceback.print_exc()
        return
    process.set_child_subreaper()
    try:
        for name in ("in", "out"):
            os.mkfifo(f"{directory}/{name}", 0o600)
        files.write(f"{directory}/config.json", b'{"linux": {"cgroupsPath": "/r"}}')
        _gather(_hot(lambda: _once(directory, settings_of)))
        for _ in range(_TIMES):
            _once(directory, settings_of)
    except Exception:
        traceback.print_exc()
    finally:
        process.set_child_subreaper(False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        gc.enable()
        for name in os.listdir(directory):  # noqa: PTH208
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
        os.rmdir(directory)  # noqa: PTH106


def _hot(act: Callable[[], None]) -> set[CodeType]:
    """Return the code that *act* runs."""
    run: set[CodeType] = set()
    sys.setprofile(lambda frame, event, argument: run.add(frame.f_code))
    try:
        act()
    finally:
        sys.setprofile(None)
    return run


def _gather(hot: set[CodeType]) -> None:
    """Move the code that shims run to one place, so that the counts of its users are on few pages."""
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__ in hot:
            function.__code__ = function.__code__.replace()


def _once(directory: str, settings_of: Callable[[bytes], server.Settings]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = {
        "id": "r",
        "namespace": "rehearsal",
        "bundle": directory,
        "socket": f"{directory}/s",
        "ttrpc_address": f"{directory}/events",
        "debug": False,
    }
    settings = settings_of(json.dumps(request).encode())
    loop.run(_live(settings, server.listen(settings.socket_path)))
    _keep()
    process.set_name("runtimed-nursery")  # not any more what a keeper is called


def _keep() -> None:
    """Keep a shim whose first worker rests at once, and whose second ends."""
    keeper = Keeper(_work)
    keeper.start()
    keeper.run()
    keeper.close()


def _work(start: Start) -> None:
    if start.state < 0:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.write(writer, b"x")
        orphan = os.posix_spawnp("sh", ["sh", "-c", "true &"], {"PATH": os.environ.get("PATH", os.defpath)})
        os.waitpid(orphan, 0)
        start.link.say("chdir", os.getcwd())  # noqa: PTH109 - a string all the way
        start.link.give([reader, writer])
        start.link.watch([reader])
        start.link.say("rest", writer, 60_000)


class _Events:
    """Takes the events of a rehearsal."""

    REQUESTS: ClassVar = {"Forward": pb.ForwardRequest}
    READS: ClassVar = frozenset({"Forward"})
    RESUMABLE: ClassVar = frozenset[str]()

    async def Forward(self, request: pb.ForwardRequest) -> pb.Empty:
        return pb.Empty()


async def _live(settings: server.Settings, sock: _socket.socket) -> None:
    path, bundle = settings.socket_path, settings.bundle
    events = ttrpc.Server({EVENTS: _Events()})
    events.serve(server.listen(settings.ttrpc_address))
    keeper = Keeper(lambda start: None)  # does its part on the worker's loop here
    poller.add_reader(keeper.fileno(), keeper.attend)
    shim = server.Shim(settings, sock, os.getpid())
    shim.attach(keeper.link)
    serving = loop.spawn(shim.serve())
    client = ttrpc.Client(ttrpc.connected(path))
    options = pb.Any.of(pb.Options(binary_name="true"))

    async def call(method: str, request: Message, response_type: type[Message] = pb.Empty) -> None:
        await client.call(_TASK, method, request, response_type, 10)

    # What the runtime would leave: a process that is a child of the keeper's by then.
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
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it has been killed
    keeper.attend()
    await call("Wait", pb.WaitRequest(id="r"), pb.WaitResponse)
    await call("Delete", pb.DeleteRequest(id="r"), pb.DeleteResponse)
    await call("Shutdown", pb.ShutdownRequest(id="r"))
    client.close()
    await serving
    poller.remove_reader(keeper.fileno())
    keeper.close()
    events.close()
    os.unlink(settings.ttrpc_address)  # noqa: PTH108
