"""What a sandbox controller promises: it makes, watches and ends what the containers of a group run in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtimed.metadata.opaque import Opaque
from runtimed.metadata.sandboxes import Sandbox
from runtimed.mounts import Mount
from runtimed.oci.descriptor import Platform
from runtimed.tasks.client import Exit
from runtimed.tasks.metrics import Metric

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """What a client says of a sandbox to be made."""

    sandbox: Sandbox
    rootfs: Sequence[Mount] = ()
    options: Opaque | None = None  # for a shim: what it makes of them is its own business
    netns_path: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """`address` is where the tasks of the sandbox are served, "unix:///..."; "" if that is left to the daemon."""

    pid: int
    created_at: int  # ns since the epoch, UTC
    address: str = ""
    version: int = 0  # of the Task API there
    spec: Opaque | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`state` is SANDBOX_READY or SANDBOX_NOTREADY, or a shim's own word. Times are ns since the epoch; 0: not yet."""

    pid: int = 0
    state: str
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    exited_at: int = 0
    extra: Opaque | None = None
    address: str = ""
    version: int = 0


class Controller(Protocol):
    """Sandboxes by namespace and ID. What is not there is NotFound, unless a method says otherwise."""

    async def create(self, namespace: str, new: NewSandbox) -> None:
        """Make it, and start nothing in it. Raises AlreadyExists, InvalidArgument, Unimplemented, RuntimedError."""

    async def start(self, namespace: str, id: str) -> Started: ...

    async def platform(self, namespace: str, id: str) -> Platform: ...

    async def stop(self, namespace: str, id: str, timeout_s: float) -> None:
        """End it, by force after *timeout_s*. One that is not there has ended."""

    async def wait(self, namespace: str, id: str) -> Exit: ...

    async def status(self, namespace: str, id: str, *, verbose: bool) -> State: ...

    async def shutdown(self, namespace: str, id: str) -> None:
        """Remove it, ending it first if it has to be."""

    async def metrics(self, namespace: str, id: str) -> Metric: ...
