"""What the tasks of a namespace use, as their shims tell."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtimed import filters
from runtimed.errors import NotFound, RuntimedError
from runtimed.metadata.containers import Opaque
from runtimed.tasks.client import TaskClient

log = logging.getLogger(__name__)

_STATS_WITHIN_S = 5.0  # a shim that needs longer is left out, rather than all others with it
_ASKED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Metric:
    """What task *id* used at the time *collected_at* (nanoseconds since the epoch): a message that names its type."""

    id: str
    collected_at: int
    data: Opaque


async def collect(namespace: str, tasks: Mapping[str, TaskClient], expressions: Sequence[str]) -> list[Metric]:
    """Return the metrics of those *tasks*, by ID, that the filters mean; fields are ``id`` and ``namespace``.

    One that has no metrics, or fails, is left out, as clients expect.

    Raises:
        InvalidArgument: a filter is not well formed.
    """
    wanted = filters.parse(expressions)
    fields = {"namespace": namespace}
    meant = [id for id in sorted(tasks) if wanted.match(lambda path, id=id: {**fields, "id": id}.get(".".join(path)))]  # type: ignore[misc]
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(id: str) -> Metric | None:
        async with limit:
            collected_at = time.time_ns()
            try:
                return Metric(id, collected_at, await tasks[id].stats(_STATS_WITHIN_S))
            except NotFound:
                return None
            except RuntimedError as exc:
                log.warning("a task told no metrics", extra={"namespace": namespace, "task": id, "error": str(exc)})
                return None

    found = await asyncio.gather(*map(ask, meant))
    return [metric for metric in found if metric is not None]
