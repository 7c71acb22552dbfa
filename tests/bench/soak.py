"""Suite ``soak``: a thousand containers one after the other; what the daemon and its helpers keep of them."""

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.bench.commands import pulled
from tests.bench.samples import Row, progress
from tests.bench.sides import Ours, run, side

_WARM = 50  # containers before the first look: caches, threads and connections are there from then on
_REPORT_EVERY = 100


def suite(args: argparse.Namespace) -> list[Row]:
    """Return memory, descriptors, threads and children of daemon and warm parent before and after."""
    with side(Ours) as ours:
        image = pulled(ours)
        _one_after_the_other(ours, image, min(_WARM, args.soak))
        before = _look(ours.pid)
        _one_after_the_other(ours, image, args.soak)
        after = _look(ours.pid)
    rows = []
    for what in sorted(before.keys() | after.keys()):
        unit = "MB" if what.startswith("RSS") else ""
        rows += [
            Row(f"{what}, {args.soak} containers", "before", [before.get(what, 0.0)], unit=unit),
            Row(f"{what}, {args.soak} containers", "after", [after.get(what, 0.0)], unit=unit),
        ]
    return rows


def _one_after_the_other(ours: Ours, image: str, count: int) -> None:
    for number in range(count):
        if number % _REPORT_EVERY == 0:
            progress(f"soak: {number}/{count}")
        cgroup = f"{ours.account.containers}/s{number}"
        done = ours.ctr("run", "--rm", "--cgroup", cgroup, image, f"s{number}", "/bin/true")
        run(done, ours)


def _look(daemon: int) -> dict[str, float]:
    """Return what the daemon and its children have, added up for children of one name."""
    found: dict[str, float] = {}
    for pid in (daemon, *_children(daemon)):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        name = status["Name"].strip()
        for what, value in (
            ("RSS", int(status["VmRSS"].split()[0]) / 1000),
            ("descriptors", len(list(Path(f"/proc/{pid}/fd").iterdir()))),
            ("threads", int(status["Threads"])),
            ("processes", 1),
        ):
            found[f"{what} of {name}"] = found.get(f"{what} of {name}", 0.0) + value
    return found


def _children(pid: int) -> Iterator[int]:
    listed = subprocess.run(["ps", "--no-headers", "-o", "pid", "--ppid", str(pid)], capture_output=True, check=False)
    for word in listed.stdout.split():
        with suppress(FileNotFoundError):
            Path(f"/proc/{int(word)}/status").read_text()
            yield int(word)
