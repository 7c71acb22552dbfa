"""Overlay mounts of many layers: what to do when the options exceed the page that mount(2) takes."""

import errno
import os

from runtimed.linux.fstab import Options
from runtimed.linux.mount import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MS_RDONLY,
    attributes_of,
    fsconfig,
    fsmount,
    fsopen,
    mount,
    move_mount,
)
from runtimed.linux.namespaces import CLONE_FS, unshare

LOWERDIR = "lowerdir="


def mount_deep(source: str, fd: int, options: Options) -> None:
    """Mount an overlay on what *fd* (may be O_PATH) refers to; up to 500 layers where the kernel has ``lowerdir+``.

    Raises OSError; E2BIG if the options do not fit in a page even with short paths.
    """
    try:
        _mount_layer_by_layer(source, fd, options)
    except OSError as exc:
        # No "lowerdir+" before Linux 6.7, no fsopen in some sandboxes. A path of 256 bytes is EINVAL, too.
        if exc.errno not in {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.E2BIG}:
            raise
        mount_relative(source, fd, options)


def _mount_layer_by_layer(source: str, fd: int, options: Options) -> None:
    """Append one lowerdir at a time (overlayfs.rst, "lowerdir+")."""
    fs = fsopen("overlay")
    try:
        fsconfig(fs, FSCONFIG_SET_STRING, "source", source)
        for option in options.data:
            key, equals, value = option.partition("=")
            if key == "lowerdir":
                for lower in split_lowerdir(value):
                    fsconfig(fs, FSCONFIG_SET_STRING, "lowerdir+", lower)
            elif equals:
                fsconfig(fs, FSCONFIG_SET_STRING, key, value)
            else:
                fsconfig(fs, FSCONFIG_SET_FLAG, key)
        if options.flags & MS_RDONLY:
            fsconfig(fs, FSCONFIG_SET_FLAG, "ro")
        fsconfig(fs, FSCONFIG_CMD_CREATE)
        made = fsmount(fs, attributes_of(options.flags)[0])
    finally:
        os.close(fs)
    try:
        move_mount(made, fd)
    finally:
        os.close(made)


def mount_relative(source: str, fd: int, options: Options) -> None:
    """Mount an overlay, naming the lower directories from the directory that holds them all, which is short."""
    lowers = [
        lower
        for option in options.data
        if option.startswith(LOWERDIR)
        for lower in split_lowerdir(option.removeprefix(LOWERDIR))
    ]
    common = os.path.commonpath(lowers)
    relative = ":".join(escape(os.path.relpath(lower, common)) for lower in lowers)
    others = [option for option in options.data if not option.startswith(LOWERDIR)]
    data = ",".join([LOWERDIR + relative, *others])
    failures: list[BaseException] = []

    def run() -> None:
        try:
            unshare(CLONE_FS)
            os.chdir(common)
            mount(source, f"/proc/self/fd/{fd}", "overlay", options.flags, data)
        except BaseException as exc:
            failures.append(exc)

    import threading  # here: a process that has it loaded is larger and forks slowly, which shims feel

    # A working directory is the whole process's, except in a thread that has left it.
    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def split_lowerdir(value: str) -> list[str]:
    """Split a ``lowerdir=`` value at its unescaped colons and take the backslashes out (overlayfs.rst).

    Raises OSError, EINVAL, for an empty path (``::`` announces data-only layers, which nothing here makes).
    """
    lowers, current, characters = [], "", iter(value)
    for character in characters:
        if character == ":":
            lowers.append(current)
            current = ""
        else:
            current += next(characters, "") if character == "\\" else character
    lowers.append(current)
    if "" in lowers:
        raise OSError(errno.EINVAL, "an empty path in lowerdir")
    return lowers


def escape(path: str) -> str:
    """Return *path* as ``lowerdir=`` takes it, where colon, comma and backslash have a meaning."""
    return "".join(f"\\{character}" if character in "\\:," else character for character in path)
