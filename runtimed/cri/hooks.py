"""Where something else may have its say on pods and containers. Here nobody does; ``cri/nri.py`` asks plugins."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtimed.api import cri_pb2 as pb
from runtimed.cri.state import Container, Sandbox
from runtimed.metadata import containers

Change = tuple[pb.LinuxContainerResources, dict[str, Any]]
"""New limits: those that CRI has, and others as ``linux.resources`` of the OCI runtime spec has them."""


class Hooks:
    """Called in the order of a life. What raises prevents what is to happen; the names in the past tense never raise,
    nor do those of ends."""

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """Held from before anybody is told of something new until it is listed."""
        yield

    async def run_pod(self, sandbox: Sandbox) -> None:
        """A pod is there, all but listed."""

    async def update_pod(self, sandbox: Sandbox, request: pb.UpdatePodSandboxResourcesRequest) -> None:
        """What a pod as a whole may use is to change."""

    async def updated_pod(self, sandbox: Sandbox) -> None:
        """It has."""

    async def stop_pod(self, sandbox: Sandbox) -> None:
        """A pod's containers have ended, and it is to. Told once."""

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """A pod is to be removed, or has come to nothing."""

    async def create(self, container: Container, record: containers.Container) -> containers.Container:
        """A container is to be made; return its record, changed."""
        return record

    async def created(self, container: Container) -> None:
        """A container is listed."""

    async def start(self, container: Container) -> None:
        """A container is to be started."""

    async def started(self, container: Container) -> None:
        """It runs."""

    async def update(self, container: Container, given: pb.LinuxContainerResources) -> Change:
        """The limits of a container are to change; return to what."""
        return given, {}

    async def updated(self, container: Container) -> None:
        """They have."""

    async def stop(self, container: Container) -> None:
        """A container is to be stopped, or has ended. Told once."""

    async def remove(self, container: Container) -> None:
        """A container is to be removed, or has come to nothing."""

    async def close(self) -> None:
        """The daemon ends."""
