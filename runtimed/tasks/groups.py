"""Which shim serves which tasks. The containers of a pod share one: a *group*.

The group is what the annotations of a container's spec say, as containerd's shim for runc reads them, or the container
itself. Who starts the shim of a group, joins it or ends it holds the group's lock, so that a task never joins a shim
that is asked to end at that moment. The lock is not held while a container is made or ended: a task *uses* its shim
from when the shim is known to when the shim has forgotten the task, and only a shim that nobody else uses is ended.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint


@dataclass(eq=False)
class _Group:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holders: int = 0  # those that have the lock or wait for it
    uses: dict[Bundle, tuple[str, Endpoint]] = field(default_factory=dict)  # the shim's program, and where it serves


class Groups:
    """The groups there are, each as long as somebody needs it."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        self._users: dict[Path, set[Bundle]] = {}  # by socket: a shim that is not ours may have other groups than we

    @asynccontextmanager
    async def locked(self, namespace: str, group: str) -> AsyncIterator[None]:
        """Be the only one to start, join or end a shim of *group*."""
        held = self._groups.setdefault((namespace, group), _Group())
        held.holders += 1
        try:
            async with held.lock:
                yield
        finally:
            held.holders -= 1
            self._tidy(namespace, group)

    def use(self, bundle: Bundle, group: str, program: str, endpoint: Endpoint) -> None:
        """Note that *bundle* is served at *endpoint*, by the shim *program* ("" is our own)."""
        self._groups.setdefault((bundle.namespace, group), _Group()).uses[bundle] = program, endpoint
        self._users.setdefault(endpoint.path, set()).add(bundle)

    def shim(self, namespace: str, group: str, program: str) -> Endpoint | None:
        """Return where the shim *program* of *group* serves; None if there is none."""
        held = self._groups.get((namespace, group))
        return next((endpoint for of, endpoint in held.uses.values() if of == program), None) if held else None

    def leave(self, bundle: Bundle, group: str, endpoint: Endpoint | None) -> bool:
        """Note that *bundle* needs its shim no longer; return whether others do, or the shim is a sandbox's."""
        held = self._groups.get((bundle.namespace, group))
        used = held.uses.pop(bundle, None) if held else None
        endpoint = used[1] if used else endpoint
        self._tidy(bundle.namespace, group)
        if endpoint is None:
            return False
        users = self._users.get(endpoint.path, set())
        users.discard(bundle)
        if not users:
            self._users.pop(endpoint.path, None)
        return bool(users) or endpoint.is_of_sandbox

    def sockets(self) -> frozenset[Path]:
        """Return where shims that have a task serve."""
        return frozenset(self._users)

    def _tidy(self, namespace: str, group: str) -> None:
        held = self._groups.get((namespace, group))
        if held is not None and not held.holders and not held.uses:
            del self._groups[namespace, group]
