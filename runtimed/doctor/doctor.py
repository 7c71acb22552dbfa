"""Compares, at the start and every now and then, what is recorded with what is there, and puts right what is stray.

A single look can meet an operation half-way. So a stray is acted on only if two looks, at least a second apart, have
seen it; the second look is the next periodic one, or follows at once when somebody asks for a check.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from runtimed.doctor import facts
from runtimed.doctor.findings import Fact, Finding, Stray
from runtimed.doctor.survey import Name, Places, look
from runtimed.metadata.db import Database, Tx
from runtimed.tasks.client import Status
from runtimed.tasks.manager import TaskManager
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_BETWEEN_LOOKS_S = 1.0
_FIRST_LOOK_AFTER_S = 5.0  # what is slow to be found again at the start is no stray
_AGAIN_AFTER_S = 60.0  # when there was something


class Doctor:
    """Looks after one daemon's things."""

    def __init__(
        self,
        db: Database,
        tasks: TaskManager,
        *,
        root: Path,
        state: Path,
        runc_root: Path,
        oci_runtimes: Mapping[str, str],
        interval_s: int,
    ) -> None:
        self._db = db
        self._tasks = tasks
        self._root = root
        self._state = state
        self._runc_root = runc_root
        self._oci_runtimes = oci_runtimes
        self._interval_s = interval_s
        self._seen: dict[tuple[str, str], int] = {}  # strays of the last look: when they were first seen, ns
        self._looked = 0.0  # when that was, time.monotonic()
        self._checking = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check periodically while the block runs, if an interval is configured."""
        checking = asyncio.create_task(self._check_periodically())
        try:
            yield
        finally:
            checking.cancel()
            await asyncio.wait([checking])

    async def check(self, *, repair: bool) -> list[Finding]:
        """Look twice if need be, and return what both looks have seen; put it right if *repair*."""
        async with self._checking:
            if await self._look():
                await asyncio.sleep(_BETWEEN_LOOKS_S)
            return await self._look_again(repair=repair)

    async def facts(self) -> list[Fact]:
        """Return what the machine can do, and what it is short of."""
        return await blocking(facts.gather, self._root, self._state, self._oci_runtimes)

    async def _check_periodically(self) -> None:
        await asyncio.sleep(_FIRST_LOOK_AFTER_S)
        while True:
            try:
                async with self._checking:
                    await self._look_again(repair=True)
            except Exception:
                log.exception("looking for strays failed")
            if not self._interval_s:
                return
            await asyncio.sleep(min(self._interval_s, _AGAIN_AFTER_S) if self._seen else self._interval_s)

    async def _look_again(self, *, repair: bool) -> list[Finding]:
        before = dict(self._seen) if time.monotonic() - self._looked >= _BETWEEN_LOOKS_S else {}
        findings = []
        for stray in await self._look():
            if stray.key not in before:
                continue
            finding = Finding(kind=stray.kind, what=stray.what, detail=stray.detail, since=self._seen[stray.key])
            if repair and stray.mend is not None:
                finding = await self._mended(stray, finding)
            log.warning("a stray was found", extra={"stray": f"{stray.kind} {stray.what}", "action": finding.action})
            findings.append(finding)
        return findings

    async def _mended(self, stray: Stray, finding: Finding) -> Finding:
        assert stray.mend is not None
        action, error = "", ""
        try:
            action = await stray.mend()
            self._seen.pop(stray.key, None)
        except Exception as exc:
            error = str(exc)
            log.warning("a stray could not be put right", extra={"stray": f"{stray.kind} {stray.what}", "error": error})
        return Finding(
            kind=finding.kind, what=finding.what, detail=finding.detail, since=finding.since, action=action, error=error
        )

    async def _look(self) -> list[Stray]:
        # First what is held: what comes into being after it is at worst seen once.
        held = self._tasks.holdings()
        recorded, cgroups = await self._db.read(_containers, held.names)
        places = Places(
            root=self._root,
            state=self._state,
            runc_root=self._runc_root,
            cgroups=cgroups,
            adopt=self._tasks.adopt,
        )
        strays = await blocking(look, places, held)
        strays += [
            Stray(kind="task", what="/".join(name), detail="has no container record; end it with a kill and a delete")
            for name in sorted(held.tasks - recorded)
        ]
        for namespace in sorted({namespace for namespace, _ in held.tasks}):
            strays += [
                Stray(kind="task", what=f"{namespace}/{state.container_id}", detail="its shim does not answer; SIGKILL")
                for state in await self._tasks.list(namespace)
                if state.status is Status.UNKNOWN
            ]
        strays += [
            Stray(kind="record", what=what, detail=f"container without its snapshot {snapshot}; it cannot be started")
            for what, snapshot in await self._db.read(_without_snapshot)
        ]
        now = time.time_ns()
        self._seen = {stray.key: self._seen.get(stray.key, now) for stray in strays}
        self._looked = time.monotonic()
        return strays


def _containers(tx: Tx, held: frozenset[Name]) -> tuple[set[Name], dict[str, Name]]:
    """Return the name of every container, and the cgroups of those that are not *held*."""
    names, cgroups = set(), {}
    for namespace, id in tx.execute("SELECT namespace, id FROM containers"):
        names.add((namespace, id))
    for namespace, id in names - held:
        (spec,) = tx.execute(
            "SELECT spec FROM containers WHERE namespace = ? AND id = ?", (namespace, id)
        ).fetchone() or (b"",)
        try:
            path = (json.loads(spec).get("linux") or {}).get("cgroupsPath")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(path, str) and path:
            cgroups[path] = (namespace, id)
    return names, cgroups


def _without_snapshot(tx: Tx) -> list[tuple[str, str]]:
    rows = tx.execute(
        "SELECT c.namespace || '/' || c.id, c.snapshotter || '/' || c.snapshot_key FROM containers c"
        " WHERE c.snapshot_key <> '' AND c.snapshotter <> '' AND NOT EXISTS (SELECT 1 FROM snapshots s"
        " WHERE s.namespace = c.namespace AND s.snapshotter = c.snapshotter AND s.key = c.snapshot_key)"
    )
    return [(what, snapshot) for what, snapshot in rows]
