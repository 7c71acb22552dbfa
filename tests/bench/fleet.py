"""Suite ``fleet``: many containers at once, started eight at a time, and the memory of their shims."""

import argparse
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.bench.commands import pulled
from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.bench.sides import Ours, Theirs, both, run

_AT_ONCE = 8
_REST_WITHIN_S = 60


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of starting a fleet and of its memory; a round takes seconds, so a sixth of the runs."""
    with both() as (ours, theirs):
        image = pulled(ours, theirs)
        ways = {GO: lambda: _round(theirs, image, args.containers), OURS: lambda: _round(ours, image, args.containers)}
        found = alternate("fleet", max(1, args.runs // 6), ways)
    start = f"{args.containers} started, {_AT_ONCE} at a time"
    rows = [
        Row.timed(start, who, [sample for sample, _, _ in found[who]], aim=aim)
        for who, aim in ((GO, ""), (OURS, "0.80 wall"))
    ]
    for who, aim in ((GO, ""), (OURS, "0.50")):
        rows.append(Row("USS of a shim", who, [uss for _, uss, _ in found[who]], unit="MB", aim=aim))
    for who, aim in ((GO, ""), (OURS, "0.50")):
        rows.append(Row("PSS of a shim", who, [pss for _, _, pss in found[who]], unit="MB", aim=aim))
    return rows


def _round(side: Ours | Theirs, image: str, count: int) -> tuple[Sample, float, float]:
    """Start *count* idle containers, look at their shims, end them; return the start and a shim's USS and PSS in MB."""
    ids = [f"f{number}" for number in range(count)]

    def start(id: str) -> None:
        cgroup = f"{side.account.containers}/{id}"
        run(side.ctr("run", "-d", "--cgroup", cgroup, image, id, "/bin/sleep", "3600"), side)

    def start_all() -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(start, ids))

    try:
        sample = side.account.run(start_all, settle=False)
        found = [memory(pid) for pid in at_rest(side.state, count)]
    finally:
        for command in (("task", "rm", "-f"), ("container", "rm")):
            subprocess.run(side.ctr(*command, *ids), capture_output=True, timeout=120, check=False)
    return sample, sum(uss for uss, _ in found) / count, sum(pss for _, pss in found) / count


def at_rest(state: Path, count: int) -> list[int]:
    """Return the *count* shims below *state*, once those that start a further process to work have ended it."""
    for _ in range(_REST_WITHIN_S * 10):
        found = list(shims_of(state))
        if len(found) == count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} shims for {count} containers")


def shims_of(state: Path) -> Iterator[int]:
    """Yield the pids of the shims that serve bundles below *state*: their working directory is the bundle."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str((entry / "cwd").readlink()).startswith(os.fspath(state)):
                yield int(entry.name)


def memory(pid: int) -> tuple[float, float]:
    """Return USS and PSS of a process in MB (proc_pid_smaps(5))."""
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name] = int(size)
    return (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) / 1000, sizes["Pss:"] / 1000
