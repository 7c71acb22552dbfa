"""As much of a daemon as tasks need, which can stop and start again, and helpers around its shims."""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtimed.config import Config
from runtimed.content.local import LocalStore
from runtimed.events import EventBus, Subscription
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.rpc import ttrpc
from runtimed.services.events import TTRPC_NAME, ttrpc_service
from runtimed.tasks.bundle import DIRECTORY
from runtimed.tasks.launch import Launcher
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager
from runtimed.tasks.nursery import Nursery
from tests.processes import children

NS = "default"
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


@contextmanager
def short_home() -> Iterator[Path]:
    """A directory whose path leaves room for socket names; what still runs in it at the end is killed."""
    home = Path(tempfile.mkdtemp(prefix="rt-"))
    try:
        yield home
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str((process / "cwd").readlink()).startswith(f"{home}/"):
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(home)


class TaskDaemon:
    """Database, events, warm parent and task manager, with `home` to themselves."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root, self.state = home / "root", home / "state"
        for directory in (self.root, self.state, self.state / "s"):
            directory.mkdir(exist_ok=True)

    async def start(self) -> "TaskDaemon":
        self.database = Database(self.root / "metadata.db")
        self.events = EventBus()
        address = str(self.home / "sock")
        self.nursery = Nursery(self.state / "rehearsal")
        self.nursery.start()
        self.launcher = launcher = Launcher(
            self.nursery,
            Config().runtimes,
            self.state / "s",
            address,
            f"{address}.ttrpc",
            runc_root=self.state / "runc",
        )
        self.content = Content(self.database, LocalStore(self.root / "content"))
        self.tasks = TaskManager(
            self.database,
            self.events,
            launcher,
            self.content,
            root=self.root,
            state=self.state,
            default_runtime="none.at.all",
        )
        await self.tasks.load()
        self._subscribed = self.events.subscribe()
        self.told: Subscription = self._subscribed.__enter__()
        self._server = ttrpc.Server({TTRPC_NAME: ttrpc_service(self.events)})
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{address}.ttrpc")
        sock.listen()
        await self._server.serve(sock)
        self.tasks.tell_lost()
        return self

    async def stop(self) -> None:
        await self._server.close()
        self.events.close()
        self._subscribed.__exit__(None, None, None)
        await self.tasks.close()
        self.launcher.logs.close_all()
        await self.nursery.close()
        self.database.close()
        (self.home / "sock.ttrpc").unlink()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def container(self, id: str, runtime: Path | str, **spec: Any) -> NewTask:
        """Make the record of a container with *spec*, and return what makes its task."""
        stored = Container(id=id, runtime=str(runtime), spec=Opaque(SPEC_TYPE, json.dumps(spec).encode()))
        await self.database.write(containers.create, NS, stored)
        return NewTask(id=id)

    def bundle(self, id: str) -> Path:
        return self.state / DIRECTORY / NS / id

    def shim_pid(self, id: str) -> int:
        pid: int = json.loads((self.bundle(id) / "bootstrap.json").read_text())["pid"]
        return pid

    async def topics(self, last: str) -> list[str]:
        """Return the topics told so far up to *last*."""
        topics = []
        async with asyncio.timeout(10):
            async for envelope in self.told:
                topics.append(envelope.topic)
                if envelope.topic == last:
                    break
        return topics


def process(script: str) -> dict[str, object]:
    """Return the ``process`` of a spec that has busybox run *script*."""
    return {"cwd": "/", "args": ["/bin/busybox", "sh", "-c", script], "user": {"uid": 0, "gid": 0}}


def signal_shim(pid: int, number: signal.Signals) -> None:
    """Send a signal to a shim of ours: its keeper *pid*, and the worker that serves for it, if it has one now."""
    for process in [pid, *children(pid)]:
        with suppress(OSError):
            if (Path(f"/proc/{process}/comm")).read_text() == "runtimed-shim\n":
                os.kill(process, number)


async def gone(pid: int) -> None:
    """Wait until the process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(10):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
