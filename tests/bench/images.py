"""Suite ``images``: pull, unpack and remove, import, and reading cold, on a fresh ext4 for each run.

Image A has many files in several layers, made of what lies in /usr; B is the same in zstd; C has one large layer of few
files; D is busybox. ``directories`` is A with its layers extracted, ``import`` A from a docker-archive, ``cold`` its
root file system when nothing of it is in memory. Extraction fills the inode tables of a file system that has just seen
many deletes slowly, so a used one would punish whoever extracts.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests import processes
from tests.bench.image_cache import ImageCache, Sizes, image_cache
from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.bench.sides import Ours, Theirs, run, side

CASES = ("A", "B", "C", "D", "directories", "import", "cold")

_DISK = 12 << 30  # bytes, sparse
_REMOVED_WITHIN_S = 60.0
_SETTLED_WITHIN_S = 5.0
_AT_REST = 0.005  # CPU seconds in 0.2
_AIMS = {"A": "0.15 wall, 0.20 CPU", "B": "0.15 wall, 0.20 CPU", "C": "0.50 wall, 0.35 CPU", "D": "0.60 wall"}
_DIRECTORIES = '[snapshotters.overlayfs]\nlayers = "directories"'

Side = Callable[[Path, Path], Any]  # of a directory for its sockets and its root


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of each case that is asked for."""
    rows: list[Row] = []
    with image_cache(args.image_cache, Sizes(args.entries, args.layers, args.big_mb)) as cache:
        for name in args.images.split(","):
            if name == "import":
                rows += _import(cache, args.image_runs)
            elif name == "cold":
                rows += _cold(cache, args.image_runs)
            elif name == "directories":
                rows += _pull(cache, "A", args.image_runs, "A extracted", "0.60 wall, 0.60 CPU", _DIRECTORIES)
            else:
                rows += _pull(cache, name, args.image_runs, name, _AIMS[name])
    return rows


def _pull(cache: ImageCache, name: str, runs: int, what: str, aim: str, settings: str = "") -> list[Row]:
    reference = cache.image(name)
    found = alternate(f"image {what}", runs, _sides(partial(_round, reference), settings))
    rows = _rows(f"{what}: pull and unpack", {who: [pull for pull, _, _ in runs] for who, runs in found.items()}, aim)
    removals = {who: [removal for _, removal, _ in runs if removal] for who, runs in found.items()}
    if all(removals.values()):
        rows += _rows(f"{what}: remove", removals, "0.05 wall" if name == "A" and not settings else "")
    return [
        *rows,
        Row(f"{what}: peak memory of a worker", OURS, [peak for _, _, peak in found[OURS]], "MB", aim="100 MB"),
    ]


def _import(cache: ImageCache, runs: int) -> list[Row]:
    archive = cache.archive("A")

    def once(kind: Side) -> Sample:
        with _disk() as disk, _started(kind, disk) as daemon:
            sample: Sample = daemon.account.run(lambda: run(daemon.load(archive), daemon), settle=False)
            return sample

    return _rows("A: import of a docker-archive", alternate("import", runs, _sides(once)), "0.20 wall")


def _cold(cache: ImageCache, runs: int) -> list[Row]:
    reference = cache.image("A")

    def once(kind: Side) -> tuple[Sample, Sample]:
        with _disk() as disk, _started(kind, disk) as daemon, tempfile.TemporaryDirectory(prefix="rtd-root-") as root:
            run(daemon.pull(reference), daemon)
            run(daemon.ctr("images", "mount", reference, root), daemon)
            try:
                return (
                    _forgotten(daemon, ["find", root, "-printf", "%s %t\\n"]),
                    _forgotten(daemon, ["sh", "-c", f"tar -C {root} -cf - . | cat >/dev/null"]),
                )
            finally:
                run(daemon.ctr("images", "unmount", "--rm", root), daemon)

    found = alternate("cold", runs, _sides(once))
    finds = {who: [find for find, _ in runs] for who, runs in found.items()}
    reads = {who: [read for _, read in runs] for who, runs in found.items()}
    return [
        *_rows("A: find and stat, cold", finds, "0.70 wall"),
        *_rows("A: read of everything, cold", reads, "0.60 wall"),
    ]


def _sides(measure: Callable[[Side], Any], settings: str = "") -> Mapping[str, Callable[[], Any]]:
    return {GO: partial(measure, Theirs), OURS: partial(measure, partial(Ours, settings=settings))}


def _rows(what: str, found: Mapping[str, Sequence[Sample]], aim: str) -> list[Row]:
    return [Row.timed(what, who, samples, aim=aim if who == OURS else "") for who, samples in found.items()]


@contextmanager
def _started(kind: Side, disk: Path) -> Iterator[Any]:
    """One side, when it has done what a start leaves for afterwards."""
    with side(kind, disk / "root") as daemon:
        deadline = time.monotonic() + _SETTLED_WITHIN_S
        used = -1.0
        while (now := daemon.account.seconds()) - used > _AT_REST and time.monotonic() < deadline:
            used = now
            time.sleep(0.2)
        yield daemon


def _forgotten(daemon: Any, command: Sequence[str]) -> Sample:
    """Run *command* when nothing that can be read again is in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    work = partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True)
    sample: Sample = daemon.account.run(work, settle=False)
    return sample


def _round(reference: str, kind: Side) -> tuple[Sample, Sample | None, float]:
    """Pull to a fresh file system and remove it again; also return the peak memory of a worker in MB.

    The second is None if that did not give the space back.
    """
    with _disk() as disk, _started(kind, disk) as daemon:
        empty = os.statvfs(disk)
        pull = daemon.account.run(lambda: run(daemon.pull(reference), daemon), settle=False)
        peak = _peak_of_children(daemon.pid)
        full = os.statvfs(disk)
        removal = daemon.account.run(lambda: _removed(daemon, reference, disk, empty, full), settle=False)
        gone = _used(disk, empty) < 0.1 * (empty.f_bfree - full.f_bfree)
    return pull, removal if gone else None, peak


def _peak_of_children(pid: int) -> float:
    """Return the most memory that a descendant of process *pid* has had, in MB: of ours, that is a worker."""
    peaks = [0]
    for child in processes.descendants(pid):
        status = Path(f"/proc/{child}/status").read_text()
        peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks) / 1e3


def _removed(daemon: Any, reference: str, disk: Path, empty: os.statvfs_result, full: os.statvfs_result) -> None:
    """Remove the image with all that only it needs, and wait until the disk has nine tenths of its space again."""
    run(daemon.ctr("images", "rm", "--sync", reference), daemon)
    deadline = time.monotonic() + (_REMOVED_WITHIN_S if daemon.name == GO else 5.0)
    taken = empty.f_bfree - full.f_bfree
    while _used(disk, empty) >= 0.1 * taken and time.monotonic() < deadline:
        time.sleep(0.01)


def _used(disk: Path, empty: os.statvfs_result) -> int:
    return empty.f_bfree - os.statvfs(disk).f_bfree


@contextmanager
def _disk() -> Iterator[Path]:
    """A fresh ext4 on a loop device."""
    with tempfile.TemporaryDirectory(prefix="rtd-disk-", dir="/var/tmp") as directory:
        file, mount = Path(directory) / "disk", Path(directory) / "mnt"
        mount.mkdir()
        with file.open("wb") as made:
            made.truncate(_DISK)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file], check=True)
        subprocess.run(["mount", "-o", "loop", file, mount], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", mount], check=True)
