"""The fixtures of the conformance kit, and what its tests are written with."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtimed.mounts import mounted_temporarily, mounts_below
from runtimed.snapshots.snapshotter import Snapshotter

Implementation = Callable[[Path], Snapshotter]


@pytest.fixture
def root(tmp_path) -> Iterator[Path]:
    yield tmp_path / "snapshotter"
    assert not mounts_below(tmp_path)


@pytest.fixture
def snapshotter(implementation: Implementation, root: Path) -> Iterator[Snapshotter]:
    with closing(implementation(root)) as made:
        yield made


def commit_layer(snapshotter: Snapshotter, name: str, parent: str, files: dict[str, str]) -> None:
    """Commit *name*, which adds or replaces *files* (path to text)."""
    with mounted_temporarily(snapshotter.prepare(f"active {name}", parent, {})) as root:
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    snapshotter.commit(name, f"active {name}", {})


def at_once(count: int, call: Callable[[int], object]) -> list[object]:
    """Call in *count* threads at the same moment; return what each returned or raised."""
    answers: list[object] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = call(number)
        except Exception as exc:
            answers[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def nest(directory: Path, depth: int) -> None:
    """Make directories of 200 characters within each other: 60 of them are three times what one path may have."""
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def files(root: Path) -> list[str]:
    """Return every path below *root* but a database's own."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith("records.db"))
