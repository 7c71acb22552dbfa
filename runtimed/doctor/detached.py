"""File systems that were busy when their task was deleted, and so were detached: who holds them still.

The kernel keeps such a file system until the last process lets go of it, and with it the space of the files in it that
have been deleted since. No list of mounts shows it, so whoever detached it noted its device.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from runtimed.doctor.findings import Stray
from runtimed.mounts import devices
from runtimed.tasks.bundle import DETACHED

_SHOWN = 5


class _Note(msgspec.Struct):
    task: str
    devices: list[str]


def look(state: Path) -> Iterator[Stray]:
    """Yield what is held still, and forget what is not."""
    with suppress(FileNotFoundError):
        for path in sorted((state / DETACHED).iterdir()):
            try:
                note = msgspec.json.decode(path.read_bytes(), type=_Note)
            except (OSError, msgspec.MsgspecError):
                note = _Note(path.name, [])  # half a note, of a daemon that was killed
            held = set(note.devices) - devices()  # one that is mounted is a later one by the same number
            holders = list(_holders(held)) if held else []
            if not holders:
                path.unlink(missing_ok=True)
                continue
            shown = ", ".join(holders[:_SHOWN]) + (", ..." if len(holders) > _SHOWN else "")
            yield Stray(
                kind="mount",
                what=note.task,
                detail=f"a file system of this deleted task was busy and is held by {shown}; it goes when these end",
            )


def _holders(held: set[str]) -> Iterator[str]:
    """Yield the processes that see a file system of those devices, work or are rooted in it, or have a file of it."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and not held.isdisjoint(_devices_of(Path(entry.path))):
            with suppress(OSError):
                yield f"process {entry.name} ({Path(entry.path, 'comm').read_text().strip()})"


def _devices_of(process: Path) -> Iterator[str]:
    with suppress(OSError):
        yield from (line.split(" ", 3)[2] for line in (process / "mountinfo").read_text().splitlines())
    with suppress(OSError):
        for path in (process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()):
            with suppress(OSError):
                device = path.stat().st_dev
                yield f"{os.major(device)}:{os.minor(device)}"
