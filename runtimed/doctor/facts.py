"""What the machine can do, and what it is about to run out of. Blocks."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from runtimed.doctor.findings import Fact
from runtimed.tasks import advisories

_LEAST_FREE_PERCENT = 5
_MOST_DESCRIPTORS_PERCENT = 80


def gather(root: Path, state: Path, oci_runtimes: Mapping[str, str]) -> list[Fact]:
    """Return the facts, in an order for people. *oci_runtimes* are versions by binary."""
    file_systems = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    has_unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    facts = [
        Fact(name="kernel", value=os.uname().release),
        Fact(name="cgroups", value="2" if has_unified else "1"),
        _file_system("overlay", file_systems, "layers are copied by the native snapshotter instead"),
        _file_system("erofs", file_systems, "layers are extracted to directories instead"),
    ]
    for binary, version in oci_runtimes.items():
        warning = advisories.warning(version) if version else "does not run, or does not tell its version"
        facts.append(Fact(name=f"OCI runtime {binary}", value=version or "-", warning=warning))
    for name, directory in (("root", root), ("state", state)):
        facts += _room(name, directory)
    facts.append(_descriptors())
    return facts


def _file_system(name: str, there: set[str], otherwise: str) -> Fact:
    if name in there:
        return Fact(name=f"file system {name}", value="yes")
    return Fact(name=f"file system {name}", value="no", warning=f"not loaded in the kernel; {otherwise}")


def _room(name: str, directory: Path) -> list[Fact]:
    found = os.statvfs(directory)
    facts = []
    for what, free, total, value in (
        ("space", found.f_bavail, found.f_blocks, f"{found.f_bavail * found.f_frsize >> 20} MiB free"),
        ("inodes", found.f_favail, found.f_files, f"{found.f_favail} free"),
    ):
        if total:  # some file systems have no number of inodes
            is_short = free * 100 < total * _LEAST_FREE_PERCENT
            warning = f"less than {_LEAST_FREE_PERCENT} % are left" if is_short else ""
            facts.append(Fact(name=f"{what} in {name} {directory}", value=value, warning=warning))
    return facts


def _descriptors() -> Fact:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names are all that is needed
    is_short = used * 100 > limit * _MOST_DESCRIPTORS_PERCENT
    warning = "near the limit: raise LimitNOFILE of the daemon's unit" if is_short else ""
    return Fact(name="descriptors of the daemon", value=f"{used} of {limit}", warning=warning)
