"""The cgroup that the shim itself is to run in, and those that a runtime which was killed has left."""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from runtimed.errors import FailedPrecondition, InvalidArgument
from shim import files

_ROOT = Path("/sys/fs/cgroup")
_OTHERS = "cgroups.json"  # in a bundle
_NAMED = re.compile(rb'"cgroupsPath"\s*:\s*("(?:[^"\\]|\\.)*")')

# How often, and how far apart, a cgroup is tried again whose last process is about to end.
_BUSY_TRIES = 50
_BUSY_WAIT_S = 0.02


def join(path: str, pid: int, root: Path = _ROOT) -> None:
    """Move a process to the cgroup *path*, which exists, in each hierarchy that has it.

    Raises:
        FailedPrecondition: no hierarchy has it.
        InvalidArgument: not an absolute path below the root of the hierarchies.
    """
    parts = Path(path).parts
    if not path.startswith("/") or ".." in parts:
        raise InvalidArgument(f"shim cgroup {path!r} must be an absolute path without '..'")
    found = False
    for hierarchy in _hierarchies(root):
        procs = hierarchy.joinpath(*parts[1:], "cgroup.procs")
        if procs.exists():
            procs.write_text(str(pid))
            found = True
    if not found:
        raise FailedPrecondition(f"shim cgroup {path!r}: create it before the task")


def note_others(bundle: str, root: str = str(_ROOT)) -> None:
    """Write down in *bundle* which cgroups of its container are there before the runtime makes any, if some are.

    No clock tells that afterwards: a cgroup bears the time of day, which may have been set meanwhile. Raises OSError.
    """
    # As it is found in the text, be it the right one or not: a document like this is large to take apart.
    paths = _NAMED.findall(files.read(f"{bundle}/config.json"))
    named = [json.loads(path) for path in paths]
    cgroups = [f"{hierarchy}{path}" for path in named for hierarchy in _hierarchy_paths(root)]
    if others := [cgroup for cgroup in cgroups if os.access(cgroup, os.F_OK)]:
        files.write(f"{bundle}/{_OTHERS}", json.dumps(others).encode())
    else:
        files.remove(f"{bundle}/{_OTHERS}")


def remove_left(bundle: str, root: Path = _ROOT) -> None:
    """Remove the cgroup of a container whose creation was cut short: the runtime has no state of it and cannot.

    Only what was not there at :func:`note_others`, which has to come first, and has no process in it. What is named to
    systemd is left to systemd.
    """
    try:
        linux = json.loads(Path(bundle, "config.json").read_bytes()).get("linux") or {}
        path = linux.get("cgroupsPath") or ""
        note = Path(bundle, _OTHERS)
        others = json.loads(note.read_bytes()) if note.exists() else []
    except (OSError, ValueError, AttributeError):
        return
    if not isinstance(path, str) or not path.startswith("/") or ".." in Path(path).parts:
        return
    for hierarchy in _hierarchies(root):
        if f"{hierarchy}{path}" not in others:
            _remove(hierarchy.joinpath(*Path(path).parts[1:]))


def _remove(cgroup: Path) -> None:
    for _ in range(_BUSY_TRIES):
        try:
            cgroup.rmdir()
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                return
        time.sleep(_BUSY_WAIT_S)


def _hierarchy_paths(root: str) -> list[str]:
    if os.access(f"{root}/cgroup.controllers", os.F_OK):
        return [root]
    return [f"{root}/{name}" for name in os.listdir(root)]  # noqa: PTH208


def _hierarchies(root: Path) -> Iterator[Path]:
    if (root / "cgroup.controllers").exists():  # cgroup v2
        yield root
    else:  # a directory for each controller, or several
        yield from sorted(entry for entry in root.iterdir() if not entry.is_symlink())
