"""The tasks there are, by namespace and ID; and the names that those take which are being made or found again."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from runtimed.errors import AlreadyExists, NotFound
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit, TaskClient


@dataclass(eq=False, kw_only=True)
class Task:
    """A bundle and a connection to the shim that serves it. Its state is the shim's."""

    bundle: Bundle
    group: str  # of tasks that share a shim
    endpoint: Endpoint
    client: TaskClient
    pid: int
    watch: "asyncio.Task[Exit | None]" = field(init=False)  # ends with the connection; what became of the task
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the one that deletes it
    stuck: asyncio.Event = field(default_factory=asyncio.Event)  # its shim is there, and cannot be connected to
    is_leaving: bool = False  # it is being deleted, so that the end of its shim is nothing unusual


class Table:
    """Tasks by name. A name is claimed before the first await of the operation that takes it."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], Task | None] = {}  # None: claimed

    def claim(self, bundle: Bundle) -> None:
        """Take the name of *bundle*, until it is added or released. Raises AlreadyExists."""
        if (bundle.namespace, bundle.id) in self._tasks:
            raise AlreadyExists(f"task {bundle.id}: already exists")
        self._tasks[bundle.namespace, bundle.id] = None

    def release(self, bundle: Bundle) -> None:
        """Give up a claim."""
        del self._tasks[bundle.namespace, bundle.id]

    def add(self, task: Task) -> None:
        """Put *task* where its name has been claimed."""
        self._tasks[task.bundle.namespace, task.bundle.id] = task

    def remove(self, task: Task) -> None:
        """Free the name of *task*, if it still is the one that has it."""
        if self.has(task):
            del self._tasks[task.bundle.namespace, task.bundle.id]

    def has(self, task: Task) -> bool:
        return self._tasks.get((task.bundle.namespace, task.bundle.id)) is task

    def get(self, namespace: str, id: str) -> Task:
        """Raises NotFound."""
        task = self._tasks.get((namespace, id))
        if task is None:
            raise not_found(id)
        return task

    def names(self) -> frozenset[tuple[str, str]]:
        """Return namespace and ID of every task and every claim."""
        return frozenset(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return (task for task in list(self._tasks.values()) if task is not None)

    def clear(self) -> None:
        self._tasks.clear()


def not_found(id: str) -> NotFound:
    return NotFound(f"task {id}: not found")
