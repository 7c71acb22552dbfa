"""NRI's plugins asked about pods and containers, and what they want done. Imported only where they are configured."""

import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import msgspec

from runtimed.api import cri_pb2
from runtimed.api import nri_pb2 as pb
from runtimed.config import Nri
from runtimed.cri import cdi, classes, nri_messages, records
from runtimed.cri.container_stop import stop_container
from runtimed.cri.container_update import change, merge
from runtimed.cri.core import Core
from runtimed.cri.hooks import Change, Hooks
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container, Sandbox
from runtimed.errors import FailedPrecondition, NotFound, RuntimedError
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.nri import calls, resources
from runtimed.nri.plugins import Plugins
from runtimed.nri.spec import adjusted
from runtimed.nri.updates import Updates
from runtimed.oci.runtime_spec import Spec
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_EVICTED_WITHIN_S = 10  # from the stop signal to SIGKILL


class NriHooks(Hooks):
    """The hooks, and for the plugins the runtime that they change."""

    def __init__(self, core: Core, settings: Nri) -> None:
        self._core = core
        self._plugins = Plugins(settings, self, "runtimed", version("runtimed"))
        # What plugins have been told the end of.
        self._stopped = {one.id for one in core.state.containers if one.state == cri_pb2.CONTAINER_EXITED}
        self._coming: dict[str, dict[str, Any]] = {}  # specs of containers that are not recorded yet
        self._stopped |= {one.id for one in core.state.sandboxes if one.record.is_stopped}

    async def begin(self) -> None:
        """Bring the plugins up. Raises FailedPrecondition."""
        await self._plugins.start()

    async def close(self) -> None:
        await self._plugins.close()

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        async with self._plugins.making():
            yield

    # Pods

    async def run_pod(self, sandbox: Sandbox) -> None:
        if not self._plugins.is_idle:
            await self._plugins.tell(calls.RUN_POD, pb.RunPodSandboxRequest(pod=nri_messages.pod(sandbox)))

    async def update_pod(self, sandbox: Sandbox, request: cri_pb2.UpdatePodSandboxResourcesRequest) -> None:
        if not self._plugins.is_idle:
            told = pb.UpdatePodSandboxRequest(
                pod=nri_messages.pod(sandbox),
                overhead_linux_resources=nri_messages.from_cri(request.overhead),
                linux_resources=nri_messages.from_cri(request.resources),
            )
            await self._plugins.tell(calls.UPDATE_POD, told)

    async def updated_pod(self, sandbox: Sandbox) -> None:
        if not self._plugins.is_idle:
            told = pb.PostUpdatePodSandboxRequest(pod=nri_messages.pod(sandbox))
            await _only_logged(self._plugins.tell(calls.POST_UPDATE_POD, told))

    async def stop_pod(self, sandbox: Sandbox) -> None:
        if self._is_first(sandbox.id):
            told = pb.StopPodSandboxRequest(pod=nri_messages.pod(sandbox))
            await _only_logged(self._plugins.tell(calls.STOP_POD, told))

    async def remove_pod(self, sandbox: Sandbox) -> None:
        await self.stop_pod(sandbox)
        self._stopped.discard(sandbox.id)
        if not self._plugins.is_idle:
            told = pb.RemovePodSandboxRequest(pod=nri_messages.pod(sandbox))
            await _only_logged(self._plugins.tell(calls.REMOVE_POD, told))

    # Containers

    async def create(self, container: Container, record: containers.Container) -> containers.Container:
        if self._plugins.is_idle:
            return record
        before = msgspec.json.decode(record.spec.value)
        self._coming[container.id] = before
        request = pb.CreateContainerRequest(
            pod=nri_messages.pod(container.sandbox), container=nri_messages.container(container, before)
        )
        adjusting = await self._plugins.create(request)
        await self._apply(adjusting.updates)
        wanted = adjusting.result
        if not wanted.ByteSize():
            return record
        encoded = await blocking(self._adjusted, container.sandbox, record.spec.value, wanted)
        given, _ = nri_messages.to_cri(wanted.linux.resources)
        current = cri_pb2.LinuxContainerResources.FromString(container.record.resources)
        container.record.resources = merge(current, given).SerializeToString()
        extensions = {**record.extensions, **records.extensions(container.record)}
        return replace(record, spec=Opaque(record.spec.type_url, encoded), extensions=extensions)

    async def created(self, container: Container) -> None:
        self._coming.pop(container.id, None)
        await self._tell_past(calls.POST_CREATE, container)

    async def start(self, container: Container) -> None:
        await self._tell(calls.START, container)

    async def started(self, container: Container) -> None:
        await self._tell_past(calls.POST_START, container)

    async def update(self, container: Container, given: cri_pb2.LinuxContainerResources) -> Change:
        if self._plugins.is_idle:
            return given, {}
        wanted = nri_messages.from_cri(given)
        request = pb.UpdateContainerRequest(
            pod=nri_messages.pod(container.sandbox), container=await self._message(container), linux_resources=wanted
        )
        updates = await self._plugins.update(request)
        resources.merge(wanted, updates.take(container.id))
        await self._apply(updates)
        changed, extra = nri_messages.to_cri(wanted)
        changed.oom_score_adj = given.oom_score_adj
        return changed, extra

    async def updated(self, container: Container) -> None:
        await self._tell_past(calls.POST_UPDATE, container)

    async def stop(self, container: Container) -> None:
        if self._is_first(container.id):
            await _only_logged(self._stop(container))

    async def _stop(self, container: Container) -> None:
        told = pb.StopContainerRequest(
            pod=nri_messages.pod(container.sandbox), container=await self._message(container)
        )
        await self._apply(await self._plugins.stop(told))

    async def remove(self, container: Container) -> None:
        if container.id not in self._coming:
            await self.stop(container)
        self._stopped.discard(container.id)
        await self._tell_past(calls.REMOVE, container)
        self._coming.pop(container.id, None)

    # What plugins ask of the runtime

    async def existing(self) -> tuple[Sequence[pb.PodSandbox], Sequence[pb.Container]]:
        pods = [nri_messages.pod(one) for one in self._core.state.sandboxes]
        found = []
        for container in self._core.state.containers:
            try:
                found.append(await self._message(container))
            except NotFound:  # being removed
                continue
        return pods, found

    async def update_containers(self, updates: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        failed = []
        for update in updates:
            try:
                await self._change(update)
            except RuntimedError as exc:
                log.warning("what an NRI plugin wants of a container cannot be done",
                            extra={"container": update.container_id, "error": str(exc)})  # fmt: skip
                failed.append(update)
        return failed

    async def evict(self, evictions: Iterable[pb.ContainerEviction]) -> None:
        for one in evictions:
            log.warning("an NRI plugin has a container end",
                        extra={"container": one.container_id, "reason": one.reason[:1024]})  # fmt: skip
            await _only_logged(stop_container(self._core, one.container_id, _EVICTED_WITHIN_S))

    # How

    def _is_first(self, id: str) -> bool:
        """Say whether an end is still to be told; from now on it is not."""
        is_first = id not in self._stopped
        self._stopped.add(id)
        return is_first and not self._plugins.is_idle

    async def _tell(self, call: calls.Call, container: Container) -> None:
        if not self._plugins.is_idle:
            request: Any = call.request(
                pod=nri_messages.pod(container.sandbox), container=await self._message(container)
            )
            await self._plugins.tell(call, request)

    async def _tell_past(self, call: calls.Call, container: Container) -> None:
        await _only_logged(self._tell(call, container))

    async def _message(self, container: Container) -> pb.Container:
        """Return what plugins are told of a container. Raises NotFound: its record is gone."""
        spec = self._coming.get(container.id)
        if spec is None:
            record = await self._core.db.read(containers.get, NAMESPACE, container.id)
            spec = msgspec.json.decode(record.spec.value)
        return nri_messages.container(container, spec)

    async def _apply(self, updates: Updates) -> None:
        """Do what plugins want of other containers. Raises FailedPrecondition: it cannot be done, and must be."""
        for update in updates.all():
            try:
                await self._change(update)
            except RuntimedError as exc:
                if not update.ignore_failure:
                    raise FailedPrecondition(
                        f"container {update.container_id[:80]}, which an NRI plugin wants updated: {exc}"
                    ) from None
                log.warning("what an NRI plugin wants of a container cannot be done",
                            extra={"container": update.container_id, "error": str(exc)})  # fmt: skip
        await self.evict(updates.evictions)

    async def _change(self, update: pb.ContainerUpdate) -> None:
        container = self._core.state.containers.get(update.container_id)
        await change(self._core, container, *nri_messages.to_cri(update.linux.resources))

    def _adjusted(self, sandbox: Sandbox, encoded: bytes, wanted: pb.ContainerAdjustment) -> bytes:
        """Return the spec with all that plugins want. Blocks: it reads CDI's files."""
        rules = self._core.handlers.get(sandbox.handler).rules
        if names := [device.name for device in wanted.CDI_devices]:
            given = cri_pb2.ContainerConfig(CDI_devices=[cri_pb2.CDIDevice(name=name) for name in names])
            whole = msgspec.json.decode(encoded, type=Spec)
            encoded = cdi.inject(whole, cdi.names_of(given), rules.cdi_directories).encode()
        changed = adjusted(msgspec.json.decode(encoded), wanted)
        asked = wanted.linux.resources
        if asked.HasField("blockio_class"):
            block_io = classes.block_io_class(rules.block_io_classes, asked.blockio_class.value)
            changed["linux"]["resources"]["blockIO"] = msgspec.to_builtins(block_io)
        if asked.HasField("rdt_class"):
            changed["linux"]["intelRdt"] = {"closID": classes.rdt_class(asked.rdt_class.value)}
        return msgspec.json.encode(changed)


async def _only_logged(work: Awaitable[None]) -> None:
    try:
        await work
    except RuntimedError as exc:
        log.warning("an NRI plugin has not been told, or objects to what has happened", extra={"error": str(exc)})
