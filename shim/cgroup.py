"""The cgroup that the shim itself is to run in."""

import os
from pathlib import Path

from runtimed.errors import FailedPrecondition, InvalidArgument

_ROOT = Path("/sys/fs/cgroup")


def join(path: str, root: Path = _ROOT) -> None:
    """Move this process to the cgroup *path*, which exists, in each hierarchy that has it.

    Raises:
        FailedPrecondition: no hierarchy has it.
        InvalidArgument: not an absolute path below the root of the hierarchies.
    """
    parts = Path(path).parts
    if not path.startswith("/") or ".." in parts:
        raise InvalidArgument(f"shim cgroup {path!r} must be an absolute path without '..'")
    unified = (root / "cgroup.controllers").exists()  # cgroup v2; else a directory for each controller
    hierarchies = [root] if unified else sorted(entry for entry in root.iterdir() if not entry.is_symlink())
    found = False
    for hierarchy in hierarchies:
        procs = hierarchy.joinpath(*parts[1:], "cgroup.procs")
        if procs.exists():
            procs.write_text(str(os.getpid()))
            found = True
    if not found:
        raise FailedPrecondition(f"shim cgroup {path!r}: create it before the task")
