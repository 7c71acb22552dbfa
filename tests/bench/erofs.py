"""Suite ``erofs``: one layer of many small files, extracted and indexed, without download and decompression.

``python -m tests.bench.erofs WAY TAR PLACE`` is one run, in a process of its own for the sake of its peak memory.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from runtimed.diff import erofs, erofs_reader
from runtimed.diff.apply import apply
from tests.bench.samples import Row, Sample, alternate, progress
from tests.images import tars

_EXTRACTED, _INDEXED, _CHECKED = "extracted", "EROFS", "EROFS, checked"
_IN_A_DIRECTORY = 20


def suite(args: argparse.Namespace) -> list[Row]:
    """Return time, rate and peak memory for as many entries as image A has, and of the index alone for many more."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="rtd-", dir="/var/tmp") as directory:
        measured = ((args.entries, tuple(_WAYS), args.image_runs), (args.many, (_INDEXED, _CHECKED), 1))
        for entries, ways, count in measured:
            layer = Path(directory) / f"{entries}.tar"
            progress(f"a layer of {entries} entries")
            with layer.open("wb") as file:
                file.writelines(members(entries))
            runs = alternate(
                f"{entries} entries", count, {way: partial(_run, way, layer, Path(directory)) for way in ways}
            )
            layer.unlink()
            for way, found in runs.items():
                rows.append(Row.timed(f"a layer of {entries} entries", way, [sample for sample, _ in found]))
            for way in ways:
                rates = [entries / sample.cpu for sample, _ in runs[way]]
                rows.append(Row(f"{entries} entries per second of CPU", way, rates, "/s"))
            for way in ways:
                rows.append(Row(f"{entries} entries, peak memory", way, [peak for _, peak in runs[way]], "MB"))
    return rows


def members(entries: int) -> Iterator[bytes]:
    """Yield a layer of *entries*, more or less, by members: files of some hundred bytes, one in ten of them a link."""
    for number in range(entries // _IN_A_DIRECTORY):
        path = b"usr/share/package-%d/directory-%d/" % (number // 50, number)
        yield tars.directory(path, mtime=1_600_000_000)
        for file in range(_IN_A_DIRECTORY - 3):
            yield tars.file(path + b"file-%d.conf" % file, b"contents\n" * file * 7, mtime=1_600_000_000 + file)
        yield tars.symlink(path + b"link", b"file-1.conf")
        yield tars.hard_link(path + b"hard", path + b"file-2.conf")
    yield tars.END


def _run(way: str, layer: Path, directory: Path) -> tuple[Sample, float]:
    """Return the time of one run in a process of its own, and its peak memory in megabytes."""
    place = directory / "place"
    command = [sys.executable, "-m", "tests.bench.erofs", way, str(layer), str(place)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2])
    finally:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    wall, cpu, peak = json.loads(done.stdout)
    return Sample(wall, cpu), peak


def _extract(layer: Path, place: Path) -> None:
    place.mkdir()
    with layer.open("rb", buffering=0) as stream:
        apply(stream, place)


def _index(layer: Path, place: Path) -> None:
    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        with layer.open("rb", buffering=0) as stream:
            erofs.write(stream, fd)
    finally:
        os.close(fd)


def _index_and_check(layer: Path, place: Path) -> None:
    _index(layer, place)
    fd = os.open(place, os.O_RDONLY)
    try:
        erofs_reader.check(fd)
    finally:
        os.close(fd)


_WAYS: dict[str, Callable[[Path, Path], None]] = {
    _EXTRACTED: _extract,
    _INDEXED: _index,
    _CHECKED: _index_and_check,
}


def main() -> None:
    """Do one run and print its wall and CPU time in seconds, and its peak memory in megabytes."""
    way, layer, place = sys.argv[1:]
    gc.disable()  # as in a worker
    begun, used = time.perf_counter(), time.process_time()
    _WAYS[way](Path(layer), Path(place))
    times = time.perf_counter() - begun, time.process_time() - used
    print(json.dumps([*times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))


if __name__ == "__main__":
    main()
