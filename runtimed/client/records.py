"""What the client returns: plain, immutable values. Times are in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

_GO_ZERO = -62_135_596_800  # seconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name for a descriptor; ``size`` is that of the document it points to, in bytes."""

    name: str
    digest: str
    media_type: str
    size: int
    labels: Mapping[str, str]
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes by their digest."""

    digest: str
    size: int  # bytes
    labels: Mapping[str, str]
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """A blob that is being written."""

    ref: str
    offset: int  # bytes so far
    total: int  # bytes; 0: not known
    expected: str  # the digest; "": not known
    started_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A tree of files; ``kind`` is ``active``, ``view`` or ``committed``."""

    name: str
    parent: str  # "": none
    kind: str
    labels: Mapping[str, str]
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot takes by itself."""

    size: int  # bytes
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One of the mounts that make a snapshot's tree, as of mount(8)."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What holds things against garbage collection."""

    id: str
    labels: Mapping[str, str]
    created_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a lease holds: ``type`` is ``content``, ``ingests``, ``images`` or ``snapshots/<snapshotter>``."""

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a process is: ``created``, ``running``, ``stopped``, ``paused``, ``pausing`` or ``unknown``."""

    status: str
    pid: int
    exit_status: int  # of one that is stopped; 128 and the number of a signal that ended it
    exited_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A process that has run to its end."""

    exit_status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step of a transfer: what happened (``event``) to ``name``; bytes done, and of how many (0: not known)."""

    event: str
    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened: ``value`` is the event's message as JSON has it."""

    timestamp: datetime | None
    namespace: str
    topic: str
    type: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A part of the daemon; ``error`` is why it could not be loaded, or None."""

    type: str
    id: str
    capabilities: tuple[str, ...]
    exports: Mapping[str, str]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who answers."""

    version: str
    revision: str
    uuid: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a registry may want: a user's password, or a token (identity token) with an empty user name."""

    username: str
    secret: str = field(repr=False)


def moment(message: Timestamp) -> datetime | None:
    """Return a Timestamp as a datetime; None for one that is not set, in protobuf or in Go (the year 1)."""
    if not (message.seconds or message.nanos) or message.seconds <= _GO_ZERO:
        return None
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
