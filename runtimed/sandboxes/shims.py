"""Sandboxes of shims that implement the Sandbox API: virtual machines, for the most part.

A shim is started for the sandbox, in a bundle below ``io.containerd.sandbox.controller.v1.shim/`` of the state and root
directories, and tasks join it at its address. It outlives the daemon; the next one finds it by the bundle.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runtimed import config
from runtimed.errors import AlreadyExists, NotFound, RuntimedError, Unavailable, Unimplemented
from runtimed.metadata.opaque import Opaque
from runtimed.oci.descriptor import Platform
from runtimed.rollback import Rollback
from runtimed.sandboxes.client import SandboxClient
from runtimed.sandboxes.controller import NOT_READY, NewSandbox, Started, State
from runtimed.tasks import bundle as bundles
from runtimed.tasks import client as shims
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit
from runtimed.tasks.groups import Groups
from runtimed.tasks.launch import Launcher
from runtimed.tasks.metrics import Metric
from runtimed.tasks.remains import clean_up, kill_shim, named
from runtimed.threads import blocking

log = logging.getLogger(__name__)

DIRECTORY = "io.containerd.sandbox.controller.v1.shim"
_CONNECT_WITHIN_S = 5.0
_FOUND_WITHIN_S = 2.0
_SHUTDOWN_WITHIN_S = 5.0


@dataclass(eq=False, kw_only=True)
class _Held:
    bundle: Bundle
    endpoint: Endpoint
    client: SandboxClient
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class ShimController:
    """See :class:`runtimed.sandboxes.controller.Controller`."""

    def __init__(self, launcher: Launcher, groups: Groups, *, root: Path, state: Path) -> None:
        """*groups* are those of the tasks: none that leaves is to end the shim of a sandbox."""
        self._launcher = launcher
        self._groups = groups
        self._root = root
        self._state = state
        self._held: dict[tuple[str, str], _Held | None] = {}  # None: being made

    async def load(self) -> None:
        """Find the sandboxes of an earlier daemon again, before tasks are; what is left of others is removed."""
        found = await blocking(lambda: list(bundles.found(self._root, self._state, DIRECTORY)))
        await asyncio.gather(*map(self._load, found))

    async def _load(self, bundle: Bundle) -> None:
        try:
            endpoint = await blocking(bundle.endpoint)
            if endpoint is None:
                raise NotFound(f"sandbox {bundle.id!r}: has no shim")
            client = await SandboxClient.connect(endpoint, bundle.id, _FOUND_WITHIN_S)
        except (NotFound, Unavailable):
            try:
                await self._clean_up(bundle)
            except RuntimedError as exc:
                log.warning("a sandbox is left over", extra=named(bundle) | {"error": str(exc)})
        except RuntimedError as exc:
            log.warning("the shim of a sandbox cannot be reached", extra=named(bundle) | {"error": str(exc)})
        else:
            self._add(_Held(bundle=bundle, endpoint=endpoint, client=client), await blocking(bundle.shim))

    async def close(self) -> None:
        """Let go of the shims; they go on."""
        for held in self._held.values():
            if held is not None:
                await held.client.close()
        self._held.clear()

    def endpoint(self, namespace: str, id: str) -> Endpoint | None:
        """Return where the tasks of a sandbox are served; None if it is not one of a shim."""
        held = self._held.get((namespace, id))
        return held.endpoint if held else None

    async def create(self, namespace: str, new: NewSandbox) -> None:
        sandbox = new.sandbox
        program = self._launcher.resolve(sandbox.runtime or config.DEFAULT_RUNTIME)
        if not program.binary:
            raise Unimplemented(
                f"sandbox {sandbox.id!r}: the shim of {program.runtime} has no sandbox API; take the sandboxer `pause`"
            )
        bundle = Bundle.at(self._root, self._state, namespace, sandbox.id, DIRECTORY)
        key = (namespace, sandbox.id)
        if key in self._held:
            raise AlreadyExists(f"sandbox {sandbox.id!r}: already exists")
        self._held[key] = None
        try:
            await self._create(bundle, program.binary, new)
        finally:
            if self._held.get(key, 0) is None:
                del self._held[key]

    async def _create(self, bundle: Bundle, binary: str, new: NewSandbox) -> None:
        sandbox = new.sandbox
        program = self._launcher.resolve(sandbox.runtime or config.DEFAULT_RUNTIME)
        options = self._launcher.options(program, sandbox.runtime_options or Opaque("", b""))
        if bundle.path.exists():
            await self._clean_up(bundle)
        async with Rollback() as steps:
            await blocking(bundle.create, sandbox.spec.value if sandbox.spec else b"{}")
            steps.undo("clean up after the shim", self._clean_up, bundle)
            endpoint = await self._launcher.start(bundle, program, options, group=bundle.id, joins=None)
            client = await SandboxClient.connect(endpoint, bundle.id, _CONNECT_WITHIN_S)
            steps.undo("disconnect from the shim", client.close)
            try:
                await client.create(bundle.path, new)
            except RuntimedError as exc:
                raise type(exc)(f"failed to create sandbox {bundle.id}: {exc}") from exc
            steps.commit()
        self._add(_Held(bundle=bundle, endpoint=endpoint, client=client), binary)

    async def start(self, namespace: str, id: str) -> Started:
        return await self._get(namespace, id).client.start()

    async def platform(self, namespace: str, id: str) -> Platform:
        return await self._get(namespace, id).client.platform()

    async def stop(self, namespace: str, id: str, timeout_s: float) -> None:
        with suppress(NotFound, Unavailable):
            await self._get(namespace, id).client.stop(timeout_s)

    async def wait(self, namespace: str, id: str) -> Exit:
        """A shim that goes away has ended with its sandbox."""
        while True:
            held = self._get(namespace, id)
            try:
                return await held.client.wait()
            except Unavailable:
                if not held.client.closed.done():
                    raise
                if not await self._reconnected(held):
                    return shims.killed(held.endpoint.pid)

    async def status(self, namespace: str, id: str, *, verbose: bool) -> State:
        """A shim that has gone leaves a sandbox that is not ready."""
        held = self._get(namespace, id)
        try:
            return await held.client.status(verbose=verbose)
        except Unavailable:
            if await self._reconnected(held):
                return await held.client.status(verbose=verbose)
            return State(state=NOT_READY, exited_at=time.time_ns())

    async def shutdown(self, namespace: str, id: str) -> None:
        held = self._get(namespace, id)
        async with held.changing:
            self._get(namespace, id)  # it may have gone meanwhile
            with suppress(Unavailable):
                await held.client.shutdown(_SHUTDOWN_WITHIN_S)
            await asyncio.wait([held.client.closed], timeout=_SHUTDOWN_WITHIN_S)
            await held.client.close()
            del self._held[namespace, id]
            await self._clean_up(held.bundle)

    async def metrics(self, namespace: str, id: str) -> Metric:
        return await self._get(namespace, id).client.metrics()

    async def _reconnected(self, held: _Held) -> bool:
        """Connect again, if only the connection was lost; return whether there is a shim."""
        if not held.client.closed.done():
            return True
        try:
            client = await SandboxClient.connect(held.endpoint, held.bundle.id, _FOUND_WITHIN_S)
        except RuntimedError:
            return False
        held.client = client
        return True

    def _add(self, held: _Held, program: str) -> None:
        self._groups.use(held.bundle, held.bundle.id, program, held.endpoint)
        self._held[held.bundle.namespace, held.bundle.id] = held

    def _get(self, namespace: str, id: str) -> _Held:
        held = self._held.get((namespace, id))
        if held is None:
            raise NotFound(f"sandbox {id!r}")
        return held

    async def _clean_up(self, bundle: Bundle) -> None:
        endpoint = await blocking(bundle.endpoint)
        self._groups.leave(bundle, bundle.id, endpoint)
        if endpoint is not None:
            await kill_shim(endpoint, bundle.id)
        await clean_up(self._launcher, bundle)
