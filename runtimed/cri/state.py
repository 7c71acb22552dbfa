"""The pods and containers there are, in memory: what the list calls answer from, without reading anything."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from runtimed.api import cri_pb2 as pb
from runtimed.cri.records import ContainerRecord, SandboxRecord
from runtimed.errors import AlreadyExists, FailedPrecondition, NotFound

T = TypeVar("T", "Sandbox", "Container")


@dataclass(eq=False, slots=True, kw_only=True)
class Sandbox:
    """A pod. Changed only by who holds ``lock``, but for what an exit event says."""

    id: str
    config: pb.PodSandboxConfig
    record: SandboxRecord
    handler: str
    snapshotter: str
    pid: int = 0  # of the pause process; 0 once it has ended
    is_ready: bool = False
    is_stopping: bool = False  # takes no containers any more
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    containers: "dict[str, Container]" = field(default_factory=dict)

    @property
    def name(self) -> str:
        return sandbox_name(self.config.metadata)

    @property
    def namespace_options(self) -> pb.NamespaceOption:
        return self.config.linux.security_context.namespace_options

    @property
    def state(self) -> "pb.PodSandboxState":
        return pb.SANDBOX_READY if self.is_ready else pb.SANDBOX_NOTREADY

    @property
    def labels(self) -> Mapping[str, str]:
        return self.config.labels

    def summary(self) -> pb.PodSandbox:
        """Return what the list has of it."""
        return pb.PodSandbox(
            id=self.id,
            metadata=self.config.metadata,
            state=self.state,
            created_at=self.record.created_at,
            labels=self.config.labels,
            annotations=self.config.annotations,
            runtime_handler=self.record.handler,
        )


@dataclass(eq=False, slots=True, kw_only=True)
class Container:
    """A container. Changed only by who holds ``lock``, but for what an exit event says."""

    id: str
    sandbox: Sandbox
    config: pb.ContainerConfig
    record: ContainerRecord
    state: "pb.ContainerState" = pb.CONTAINER_CREATED
    pid: int = 0
    is_oom: bool = False
    is_input_taken: bool = False  # by the one client that ``stdin_once`` allows
    process: dict[str, Any] | None = None  # of its spec, once an exec has asked for it
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return container_name(self.config.metadata, self.sandbox.config.metadata)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.config.labels

    @property
    def log_path(self) -> str:
        """Where the log is; "" if there is to be none."""
        directory, path = self.sandbox.config.log_directory, self.config.log_path
        return f"{directory.rstrip('/')}/{path}" if directory and path else ""

    @property
    def image(self) -> pb.ImageSpec:
        """What its files are of."""
        return pb.ImageSpec(image=name) if (name := self.record.restored_image) else self.config.image

    def summary(self) -> pb.Container:
        """Return what the list has of it."""
        return pb.Container(
            id=self.id,
            pod_sandbox_id=self.sandbox.id,
            metadata=self.config.metadata,
            image=self.image,
            image_ref=self.record.image,
            image_id=self.record.image,
            state=self.state,
            created_at=self.record.created_at,
            labels=self.config.labels,
            annotations=self.config.annotations,
        )


class Table(Generic[T]):
    """Objects by ID, of which the unique beginning does; and names, each taken by one of them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._objects: dict[str, T] = {}
        self._names: dict[str, str] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def find(self, id: str) -> T | None:
        """Return what *id*, or what begins with it and is the only one, means."""
        if (found := self._objects.get(id)) is not None or not id or len(id) >= 64:
            return found
        matches = [one for key, one in self._objects.items() if key.startswith(id)]
        return matches[0] if len(matches) == 1 else None

    def get(self, id: str) -> T:
        """Like :meth:`find`. Raises NotFound."""
        found = self.find(id)
        if found is None:
            raise NotFound(f"{self._kind} {id[:80]!r}")
        return found

    def holder(self, name: str) -> T | None:
        """Return whose *name* is, if that is made already."""
        return self._objects.get(self._names.get(name, ""))

    def reserve(self, name: str, id: str) -> None:
        """Take *name* for *id*. Raises AlreadyExists."""
        owner = self._names.setdefault(name, id)
        if owner != id:
            raise AlreadyExists(f"{self._kind} name {name!r} is that of {self._kind} {owner}: remove it first")

    def release(self, name: str, id: str) -> None:
        """Give *name* back, if it is that of *id*."""
        if self._names.get(name) == id:
            del self._names[name]

    def add(self, one: T) -> None:
        self._objects[one.id] = one

    def remove(self, one: T) -> None:
        self._objects.pop(one.id, None)


class State:
    """All of them."""

    def __init__(self) -> None:
        self.sandboxes: Table[Sandbox] = Table("sandbox")
        self.containers: Table[Container] = Table("container")
        self.coming: dict[str, Sandbox] = {}  # pods that are being made: not listed yet, but their end may be told

    def ready_sandbox(self, id: str) -> Sandbox:
        """Return the pod. Raises NotFound; FailedPrecondition: it is not running."""
        sandbox = self.sandboxes.get(id)
        if not sandbox.is_ready or sandbox.is_stopping:
            raise FailedPrecondition(f"sandbox {sandbox.id} is not running")
        return sandbox

    def list_sandboxes(self, wanted: pb.PodSandboxFilter) -> list[Sandbox]:
        """Return the pods that match."""
        state = wanted.state.state if wanted.HasField("state") else None
        return [
            one
            for one in self._chosen(self.sandboxes, wanted.id)
            if (state is None or one.state == state) and matches(one.config.labels, wanted.label_selector)
        ]

    def list_containers(self, wanted: pb.ContainerFilter) -> list[Container]:
        """Return the containers that match."""
        state = wanted.state.state if wanted.HasField("state") else None
        pod = self.sandboxes.find(wanted.pod_sandbox_id) if wanted.pod_sandbox_id else None
        if wanted.pod_sandbox_id and pod is None:
            return []
        return [
            one
            for one in self._chosen(self.containers, wanted.id)
            if (state is None or one.state == state)
            and (pod is None or one.sandbox is pod)
            and matches(one.config.labels, wanted.label_selector)
        ]

    def _chosen(self, table: Table[T], id: str) -> Iterator[T]:
        if not id:
            yield from table
        elif (found := table.find(id)) is not None:
            yield found


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Say whether *labels* has all of *selector*."""
    return all(labels.get(key) == value for key, value in selector.items())


def sandbox_name(metadata: pb.PodSandboxMetadata) -> str:
    """Return what a pod is, by what a kubelet calls it: the same for a second try."""
    return "_".join([metadata.name, metadata.namespace, metadata.uid, str(metadata.attempt)])


def container_name(metadata: pb.ContainerMetadata, pod: pb.PodSandboxMetadata) -> str:
    """Return what a container is, by what a kubelet calls it."""
    return "_".join([metadata.name, pod.name, pod.namespace, pod.uid, str(metadata.attempt)])
