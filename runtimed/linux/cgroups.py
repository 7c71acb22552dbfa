"""cgroups(7): where a process is in the hierarchies, and the kinds of files there. What cannot be read is empty."""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = "/sys/fs/cgroup"
_MEASURING = ("cpu", "memory", "pids")
UNLIMITED = 1 << 62  # limits from here on are none: version 1 writes a number of that size

_attaching = threading.Lock()


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup: its directory by controller; with version 2 the only one, under ``""``."""

    directories: Mapping[str, str]

    @property
    def is_unified(self) -> bool:
        return "" in self.directories

    def path(self, controller: str, file: str) -> str:
        """Return the path of a file; one that is nowhere if there is no such controller."""
        directory = self.directories.get("" if self.is_unified else controller, "/nonexistent")
        return f"{directory}/{file}"

    def parent(self) -> "Cgroup":
        """Return the cgroup around it."""
        return Cgroup({name: directory.rpartition("/")[0] for name, directory in self.directories.items()})

    def text(self, controller: str, file: str) -> str:
        """Return what is in a file. Blocks."""
        return text(self.path(controller, file))

    def number(self, controller: str, file: str) -> int:
        """Return the number in a file: 0 if there is none, and for no limit. Blocks."""
        found = integer(self.text(controller, file).strip())
        return 0 if found >= UNLIMITED else found

    def table(self, controller: str, file: str) -> dict[str, int]:
        """Return the lines ``key value`` of a file. Blocks."""
        lines = [line.split() for line in self.text(controller, file).splitlines()]
        return {line[0]: integer(line[1]) for line in lines if len(line) == 2}


def of(pid: int, root: str = _ROOT) -> Cgroup | None:
    """Return the cgroup of a process, with the controllers that measure; None if it is gone. Blocks."""
    lines = [line.split(":", 2) for line in text(f"/proc/{pid}/cgroup").splitlines()]
    paths = {name: line[2] for line in lines if len(line) == 3 for name in line[1].split(",")}
    if not paths:
        return None
    if any(name in paths for name in _MEASURING):
        return Cgroup(
            {name: f"{root}/{name}{path}".rstrip("/") for name, path in paths.items() if "=" not in name and name}
        )
    return Cgroup({"": f"{root}{paths.get('', '')}".rstrip("/")})


def get_ready_to_attach(root: str = _ROOT) -> None:
    """Have the kernel be ready to move a process between cgroups. Blocks for that long, and changes nothing.

    To be the only one who moves processes the kernel waits until all others have seen it (an RCU grace period: 5 to
    20 ms were measured), and then lets the next ones in at once for about as long. Whoever is about to have an OCI
    runtime make a container has the wait over with before the runtime is there, by moving this process to where it is.
    Only to where it is listed: with a cgroup namespace, but the host's directories, the path says another cgroup.
    """
    if not _attaching.acquire(blocking=False):
        return  # somebody does it already
    try:
        found = of(os.getpid(), root)
        # No cgroup in sight (in a container, say), or read-only: the runtime waits.
        with suppress(OSError):
            directory = next(iter(found.directories.values()), "") if found else ""
            fd = os.open(f"{directory}/cgroup.procs", os.O_RDWR | os.O_CLOEXEC)
            with os.fdopen(fd, "r+b", buffering=0) as procs:
                if b"%d\n" % os.getpid() in procs.readlines():
                    procs.write(b"%d" % os.getpid())
    finally:
        _attaching.release()


def text(path: str) -> str:
    """Return what is in a file; "" if that cannot be read. Blocks."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def integer(word: str) -> int:
    """Return a number of the kernel's; 0 for what is none, UNLIMITED for "max"."""
    if word == "max":
        return UNLIMITED
    return int(word) if word.isascii() and word.isdigit() else 0
