"""Sandboxes that a task holds which does nothing: it keeps namespaces and a cgroup for the containers that join them.

The task is one like any other, of a container record with the sandbox's ID. What the client leaves open is filled in:
the program is the ``pause`` that comes with the package, in a root file system with nothing else.
"""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtimed import config
from runtimed.embedded.programs import program
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimedError, os_errors
from runtimed.metadata import containers
from runtimed.metadata.containers import Container
from runtimed.metadata.db import Database
from runtimed.metadata.opaque import Opaque
from runtimed.mounts import Mount
from runtimed.oci import platform
from runtimed.oci.container_spec import Options, container_spec
from runtimed.oci.descriptor import Platform
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import TYPE_URL, User
from runtimed.rollback import Rollback
from runtimed.sandboxes.controller import NOT_READY, READY, NewSandbox, Started, State
from runtimed.tasks.client import Exit, Status
from runtimed.tasks.making import NewTask
from runtimed.tasks.manager import TaskManager
from runtimed.tasks.metrics import Metric
from runtimed.threads import blocking

_GROUP = "io.containerd.runc.v2.group"  # the containers that name it, too, are served by the same shim
_ENDS_WITHIN_S = 10.0
_NOBODY = 65535


class PauseController:
    """See :class:`runtimed.sandboxes.controller.Controller`."""

    def __init__(self, db: Database, tasks: TaskManager, directory: Path) -> None:
        """*directory* is where the root file system of sandboxes without one is made."""
        self._db = db
        self._tasks = tasks
        self._directory = directory

    async def create(self, namespace: str, new: NewSandbox) -> None:
        sandbox = new.sandbox
        rootfs = new.rootfs or [await blocking(self._own_rootfs)]
        container = Container(
            id=sandbox.id,
            runtime=sandbox.runtime or config.DEFAULT_RUNTIME,
            runtime_options=sandbox.runtime_options,
            spec=Opaque(TYPE_URL, _spec(namespace, new)),
            sandbox=sandbox.id,
            labels=sandbox.labels,
        )
        async with Rollback() as steps:
            await self._db.write(containers.create, namespace, container)
            steps.undo("delete the container", self._db.write, containers.delete, namespace, sandbox.id)
            await self._tasks.create(namespace, NewTask(id=sandbox.id, rootfs=rootfs))
            steps.commit()

    async def start(self, namespace: str, id: str) -> Started:
        container = await self._held(namespace, id)
        pid = await self._tasks.start(namespace, id, "")
        return Started(pid=pid, created_at=container.created_at, spec=container.spec)

    async def platform(self, namespace: str, id: str) -> Platform:
        await self._held(namespace, id)
        return platform.host()

    async def stop(self, namespace: str, id: str, timeout_s: float) -> None:
        try:
            container = await self._held(namespace, id)
            await self._end(namespace, container.id, signal.SIGTERM, timeout_s or _ENDS_WITHIN_S)
        except NotFound:
            return

    async def wait(self, namespace: str, id: str) -> Exit:
        await self._held(namespace, id)
        return await self._tasks.wait(namespace, id, "")

    async def status(self, namespace: str, id: str, *, verbose: bool) -> State:
        container = await self._held(namespace, id)
        info = {"spec": container.spec.value.decode(errors="replace")} if verbose else {}
        try:
            task = await self._tasks.get(namespace, id)
        except NotFound:  # its shim has gone
            return State(state=NOT_READY, info=info, created_at=container.created_at, exited_at=container.updated_at)
        is_ready = task.status in {Status.RUNNING, Status.PAUSED, Status.PAUSING}
        return State(
            pid=task.pid,
            state=READY if is_ready else NOT_READY,
            info=info,
            created_at=container.created_at,
            exited_at=task.exited_at,
        )

    async def shutdown(self, namespace: str, id: str) -> None:
        await self._held(namespace, id)
        with suppress(NotFound):
            await self._end(namespace, id, signal.SIGKILL, _ENDS_WITHIN_S)
            await self._tasks.delete(namespace, id)
        await self._db.write(containers.delete, namespace, id)

    async def metrics(self, namespace: str, id: str) -> Metric:
        await self._held(namespace, id)
        found = await self._tasks.metrics(namespace, [f"id=={id}"])
        if not found:
            raise NotFound(f"sandbox {id!r}: its shim tells no metrics")
        return found[0]

    async def _held(self, namespace: str, id: str) -> Container:
        try:
            container = await self._db.read(containers.get, namespace, id)
        except NotFound:
            container = None
        if container is None or container.sandbox != id:
            raise NotFound(f"sandbox {id!r}")
        return container

    async def _end(self, namespace: str, id: str, number: signal.Signals, timeout_s: float) -> None:
        """See the task end. Raises NotFound: there is none."""
        task = await self._tasks.get(namespace, id)
        if task.status in {Status.STOPPED, Status.CREATED}:
            return
        waiting = asyncio.create_task(self._tasks.wait(namespace, id, ""))
        try:
            for each in dict.fromkeys((number, signal.SIGKILL)):
                with suppress(NotFound):
                    await self._tasks.kill(namespace, id, "", each, all=False)
                done, _ = await asyncio.wait([waiting], timeout=timeout_s)
                if done:
                    return
            raise FailedPrecondition(f"sandbox {id!r}: its task has not ended within {timeout_s:g} s of SIGKILL")
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, RuntimedError):
                await waiting

    def _own_rootfs(self) -> Mount:
        """Return the mount of the root file system with nothing but ``/pause``, which is made at the first use."""
        executable = self._directory / "pause"
        if not executable.exists():
            with os_errors(f"directory {self._directory}"):
                self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                for name in ("dev", "proc", "sys", "etc"):
                    (self._directory / name).mkdir(exist_ok=True)
                temporary = executable.with_name(f".pause.{os.getpid()}")
                temporary.write_bytes(program("pause", platform.host().architecture))
                temporary.chmod(0o755)
                temporary.rename(executable)
        return Mount("bind", str(self._directory), options=("rbind", "ro"))


def _spec(namespace: str, new: NewSandbox) -> bytes:
    """Return the OCI runtime spec of the task, as JSON. Raises InvalidArgument."""
    id = new.sandbox.id
    if new.sandbox.spec and new.sandbox.spec.value:
        spec = _decoded(new.sandbox.spec.value, id)
    else:
        options = Options(
            cgroups_path=f"/{namespace}/{id}",
            hostname=id[:63],
            user=User(uid=_NOBODY, gid=_NOBODY),
            capabilities=(),
            read_only=True,
        )
        spec = json.loads(container_spec(Execution(entrypoint=("/pause",)), options).encode())
    if new.netns_path:
        linux = spec.setdefault("linux", {})
        others = [one for one in linux.get("namespaces") or [] if one.get("type") != "network"]
        linux["namespaces"] = [*others, {"type": "network", "path": new.netns_path}]
    annotations = {**(spec.get("annotations") or {}), **new.annotations}
    spec["annotations"] = {_GROUP: id, **annotations}
    return json.dumps(spec).encode()


def _decoded(value: bytes, id: str) -> dict[str, Any]:
    try:
        spec = json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"sandbox {id!r}: its spec is not JSON: {exc}") from None
    if not isinstance(spec, Mapping) or not isinstance(spec.get("linux", {}), Mapping):
        raise InvalidArgument(f"sandbox {id!r}: its spec is not an OCI runtime spec")
    return dict(spec)
