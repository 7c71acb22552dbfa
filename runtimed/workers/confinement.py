"""What a worker process gives up before it looks at a layer, and the mount namespace it applies one in.

A worker stays root with CAP_SYS_ADMIN, because mounting a snapshot and overlayfs' own attributes need it; someone who
took it over could mount. It is a process of its own for the sake of the event loop and of whole failure more than as
a sandbox. Still it keeps nothing it has no use for: it cannot signal or trace other processes, load modules, change
its identity or the network, or reach raw devices, and nothing it might execute gains a privilege.
"""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from runtimed.errors import os_errors
from runtimed.linux.capabilities import Cap, permitted, restrict
from runtimed.linux.mount import MS_REC, MS_SLAVE, mount
from runtimed.linux.namespaces import CLONE_NEWNS, setns, unshare
from runtimed.linux.prctl import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    prctl,
)

# A layer of a million entries takes a fifth of it. More is asked for by one that is made to exhaust the host.
_MAX_MEMORY = 1 << 30  # bytes

_KEPT = frozenset(
    (
        Cap.CHOWN,  # owners of entries
        Cap.DAC_OVERRIDE,  # directories of any mode
        Cap.DAC_READ_SEARCH,
        Cap.FOWNER,  # modes and times of what belongs to others
        Cap.FSETID,  # setgid bits of what belongs to other groups
        Cap.MKNOD,  # devices; overlayfs' whiteouts
        Cap.SETFCAP,  # file capabilities
        Cap.SYS_ADMIN,  # mount, setns; overlayfs' trusted.* attributes
        Cap.SYS_CHROOT,  # setns to a mount namespace
    )
)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when *parent*, the daemon, dies; end it now if that has happened."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the daemon is gone")


def drop_privileges() -> None:
    """Give up, for good, what no job needs. Without privileges to begin with, there is little to do."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold credentials of registries
    # Removing a tree holds an fd for each level.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY, _MAX_MEMORY))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in permitted() - _KEPT:
        prctl(PR_CAPBSET_DROP, capability)
    restrict(_KEPT)


@contextmanager
def private_mounts() -> Iterator[None]:
    """Run the block in a fresh copy of the daemon's mount namespace. For a process with a single thread.

    What is mounted in the block is seen by nobody else and ends with this process, however that ends. What the host
    unmounts meanwhile goes away here, too, where the host's mounts are shared.
    """
    with _rejoining_afterwards():
        with os_errors("mount namespace for a layer; it takes root"):
            unshare(CLONE_NEWNS)
            # From the namespace's own root: in a chroot, "/" need not be a mount.
            with _opened("/proc/self/ns/mnt") as own, _keeping_root():
                setns(own, CLONE_NEWNS)
                mount("none", "/", "", MS_REC | MS_SLAVE)
        yield


@contextmanager
def _rejoining_afterwards() -> Iterator[None]:
    with _opened("/proc/self/ns/mnt") as host, _keeping_root():
        try:
            yield
        finally:
            setns(host, CLONE_NEWNS)


@contextmanager
def _keeping_root() -> Iterator[None]:
    """Go back to this process's root directory, which setns(2) exchanges for that of the mount namespace."""
    with _opened("/") as root:
        try:
            yield
        finally:
            os.fchdir(root)
            os.chroot(".")
            os.chdir("/")


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
