"""chroot(2): a root directory that is not that of the mount namespace."""

import os
import threading
from contextlib import suppress
from pathlib import Path

from runtimed.linux.namespaces import CLONE_FS, CLONE_NEWNS, setns, unshare


def is_chroot() -> bool:
    """Say whether this process has another root directory than its mount namespace.

    Whoever joins a mount namespace that such a process has made gets the namespace's own root, and so the files of the
    host: a command that is run in a container, above all. False if nothing can be found out.
    """
    found = []

    def look() -> None:
        with suppress(OSError):
            unshare(CLONE_FS)
            before = Path("/").stat()
            fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNS)
            finally:
                os.close(fd)
            found.append(not os.path.samestat(before, Path("/").stat()))

    thread = threading.Thread(target=look)  # what it does to its root nobody else is to have
    thread.start()
    thread.join()
    return any(found)
