"""What a check of the machine finds."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """Something that nothing explains. `mend` puts it right and says what it did; None: people must decide."""

    kind: str  # bundle, cgroup, fifo, mount, record, runc, shim, socket, task
    what: str  # a path, a pid, namespace/id
    detail: str
    mend: Callable[[], Awaitable[str]] | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A stray, and what has become of it. since is in nanoseconds since the epoch, UTC."""

    kind: str
    what: str
    detail: str
    since: int
    action: str = ""
    error: str = ""

    @property
    def is_left(self) -> bool:
        return not self.action or bool(self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something about the machine that is worth knowing; `warning` says what is wrong with it."""

    name: str
    value: str
    warning: str = ""
