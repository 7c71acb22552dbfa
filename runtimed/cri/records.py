"""How pods and containers are kept over restarts: as containers of the namespace ``k8s.io``, as containerd's CRI does.

What is particular to CRI stands in an extension, as JSON; the requests' own messages in it as protobuf, so that no
field of theirs is lost. A pod is the container of its pause process. The lease named after the pod holds the snapshots
of its containers from before they are recorded.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from runtimed import labels
from runtimed.cri.images import NAMESPACE
from runtimed.errors import NotFound
from runtimed.metadata import containers, leases, sandboxes
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.db import Tx, frees

KIND = "io.cri-containerd.kind"
SANDBOX, CONTAINER = "sandbox", "container"
_SANDBOXER = "podsandbox"  # containerd's name for a pod held by a pause process
_EXTENSIONS = {SANDBOX: "runtimed.io/cri.sandbox", CONTAINER: "runtimed.io/cri.container"}


class SandboxRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a restarted daemon has to know of a pod. Times are nanoseconds since the epoch, UTC."""

    config: bytes  # PodSandboxConfig
    handler: str = ""
    image: str = ""  # ID
    created_at: int = 0
    netns: str = ""
    userns: str = ""
    network: dict[str, Any] | None = None  # what it is, or may be, attached to
    result: dict[str, Any] | None = None  # of ADD
    ips: list[str] = []
    is_made: bool = False  # it was all there, and only its first process had to be started
    is_stopped: bool = False
    is_named: bool = True  # False: what is left of one that could not be made

    def pinned(self) -> list[str]:
        """Return the paths of the namespaces that are the pod's own and pinned."""
        return [path for path in (self.netns, self.userns) if path]


class ContainerRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a restarted daemon has to know of a container; zeros for what has not happened yet."""

    config: bytes  # ContainerConfig
    sandbox: str = ""
    image: str = ""  # ID
    image_ref: str = ""
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    user: list[int] | None = None  # uid, gid, supplementary groups
    stop_signal: int = 0
    image_mounts: dict[str, str] = {}  # IDs of images by their paths in the container
    resources: bytes = b""  # LinuxContainerResources, as changed last
    restored_image: str = ""  # the name of the image that the checkpoint was of which it goes on from; "": it does not


R = TypeVar("R", SandboxRecord, ContainerRecord)


def kind_of(container: Container) -> str:
    """Return ``sandbox`` or ``container``; "" for what CRI has not made."""
    kind = container.labels.get(KIND, "")
    return kind if kind in _EXTENSIONS and _EXTENSIONS[kind] in container.extensions else ""


def load(container: Container, cls: type[R]) -> R:
    """Return the CRI part of a record. Raises msgspec.DecodeError."""
    kind = SANDBOX if cls is SandboxRecord else CONTAINER
    return msgspec.json.decode(container.extensions[_EXTENSIONS[kind]].value, type=cls)


def extensions(record: SandboxRecord | ContainerRecord) -> dict[str, Opaque]:
    """Return the extension that holds *record*."""
    name = _EXTENSIONS[SANDBOX if isinstance(record, SandboxRecord) else CONTAINER]
    return {name: Opaque(name, msgspec.json.encode(record))}


def marks(kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that containerd's clients see; those that are too long for a label are left out."""
    fitting = {key: value for key, value in given.items() if len(key) + len(value) <= 4000 and value}
    return {**fitting, KIND: kind}


def create_sandbox(tx: Tx, container: Container) -> None:
    """Add the record of a pod, its lease, and what containerd's clients see of it among the sandboxes."""
    leases.create(tx, NAMESPACE, leases.Lease(id=container.id, labels={labels.GC_FLAT: "true"}))
    containers.create(tx, NAMESPACE, container)
    sandbox = sandboxes.Sandbox(
        id=container.id, runtime=container.runtime, sandboxer=_SANDBOXER, labels=container.labels
    )
    sandboxes.create(tx, NAMESPACE, sandbox)


def create_container(tx: Tx, container: Container) -> None:
    """Add the record of a container. It holds the snapshot from now on."""
    containers.create(tx, NAMESPACE, container)


def update(tx: Tx, id: str, record: SandboxRecord | ContainerRecord) -> None:
    """Replace the CRI part of a record; nothing if it is gone meanwhile."""
    with suppress(NotFound):
        current = containers.get(tx, NAMESPACE, id)
        changed = replace(current, extensions={**current.extensions, **extensions(record)})
        containers.update(tx, NAMESPACE, changed, ["extensions"])


@frees
def delete(tx: Tx, id: str) -> None:
    """Delete a record, and the lease and sandbox of that name if there are; fine if they are gone."""
    with suppress(NotFound):
        containers.delete(tx, NAMESPACE, id)
    with suppress(NotFound):
        sandboxes.delete(tx, NAMESPACE, id)
    with suppress(NotFound):
        leases.delete(tx, NAMESPACE, id)


def every(tx: Tx) -> list[Container]:
    """Return all records that CRI has made, pods first."""
    found = [one for one in containers.list(tx, NAMESPACE) if kind_of(one)]
    return sorted(found, key=lambda one: kind_of(one) != SANDBOX)
