"""Files without a name (open(2), O_TMPFILE), which vanish with the process unless they are given one."""

import os
from pathlib import Path


def open_unnamed(directory: Path, mode: int = 0o600) -> int:
    """Return the fd of a new file, to read and write, on the file system of *directory*; the caller closes it.

    Raises OSError: EOPNOTSUPP where the file system has no such files.
    """
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)


def link_unnamed(fd: int, path: Path) -> None:
    """Give the file *fd* the name *path*, which is on disk afterwards; call in the mount namespace it was opened in.

    Raises OSError: EEXIST if the name is taken.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Both as dir_fd: without one Python calls link(2), which links to the link in /proc.
        os.link(f"/proc/self/fd/{fd}", path.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=True)
        os.fsync(directory)
    finally:
        os.close(directory)
