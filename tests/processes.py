"""What the kernel says of processes while threads and processes come and go."""

import contextlib
from pathlib import Path


def children(pid: int | str = "self") -> list[int]:
    """Return the children of a process, those of each of its threads, zombies too."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process ends
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread does
                found += map(int, (thread / "children").read_text().split())
    return found


def descendants(pid: int | str = "self") -> list[int]:
    """Return the children of a process and theirs, and so on, a parent before its children."""
    return [process for child in children(pid) for process in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Return whether a process is there and no zombie that awaits its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
