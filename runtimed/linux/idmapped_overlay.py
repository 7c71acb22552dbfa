"""Overlay mounts whose lower directories show other owners. Loaded where one is made: shims pay for more."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

from runtimed.linux.fstab import Options
from runtimed.linux.idmap import idmapped
from runtimed.linux.mount import (
    AT_FDCWD,
    AT_RECURSIVE,
    MS_PRIVATE,
    OPEN_TREE_CLONE,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
)
from runtimed.linux.namespaces import CLONE_FS, CLONE_NEWNS, unshare
from runtimed.linux.overlayfs import LOWERDIR, split_lowerdir

_SCRATCH = "/sys"


def mount_idmapped(source: str, fd: int, options: Options, namespace: int) -> None:
    """Mount an overlay on what *fd* refers to, the owners of its lower directories mapped as in a user namespace.

    The mapped mounts of the lower directories exist in a mount namespace of a thread's own, which ends with it:
    overlayfs keeps what it needs of them. Raises OSError: EINVAL where a lower file system, or overlayfs (Linux 5.19),
    cannot.
    """
    lowers = [lower for option in options.data for lower in _lowers(option)]
    others = [option for option in options.data if not option.startswith(LOWERDIR)]
    made: list[int] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with ExitStack() as held:
                mapped = []
                for lower in lowers:
                    mapped.append(idmapped(lower, namespace))
                    held.callback(os.close, mapped[-1])
                unshare(CLONE_FS | CLONE_NEWNS)
                mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, 0, 0, MS_PRIVATE)
                mount("tmpfs", _SCRATCH, "tmpfs", 0)  # nothing that an overlay is made of lies there
                for number, tree in enumerate(mapped):
                    Path(_SCRATCH, str(number)).mkdir()
                    _put(tree, f"{_SCRATCH}/{number}")
                Path(_SCRATCH, "merged").mkdir()
                data = LOWERDIR + ":".join(f"{_SCRATCH}/{number}" for number in range(len(mapped)))
                mount(source, f"{_SCRATCH}/merged", "overlay", options.flags, ",".join([data, *others]))
                made.append(open_tree(AT_FDCWD, f"{_SCRATCH}/merged", OPEN_TREE_CLONE))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    try:
        move_mount(made[0], fd)
    finally:
        os.close(made[0])


def _lowers(option: str) -> list[str]:
    return split_lowerdir(option.removeprefix(LOWERDIR)) if option.startswith(LOWERDIR) else []


def _put(tree: int, path: str) -> None:
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        move_mount(tree, target)
    finally:
        os.close(target)
