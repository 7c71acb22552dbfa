"""One mount of an activation, made and taken off: loop devices, EROFS files, and what the kernel mounts itself."""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from runtimed.errors import InvalidArgument, RuntimedError, os_errors
from runtimed.linux import loop
from runtimed.linux.loop import LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY
from runtimed.mounts import Mount, unmount

LOOP, EROFS = "loop", "erofs"


def make(mount: Mount, mountpoint: Path) -> None:
    """Make *mount* at *mountpoint*, which does not exist yet. Blocks.

    A ``loop`` mount is a link to the device; anything else a directory with the file system on it. The option ``loop``
    gives a source that is a file a device of its own, which goes with the mount.

    Raises:
        RuntimedError: it cannot be mounted; nothing is left.
    """
    if mount.type == LOOP:
        _make_loop(mount, mountpoint)
        return
    with os_errors(f"mount point {str(mountpoint)!r}"):
        mountpoint.mkdir(mode=0o700)
    try:
        if mount.type == EROFS:
            _make_erofs(mount, mountpoint)
        elif "loop" in mount.options:
            _make_on_devices(mount, mountpoint, [mount.source])
        else:
            mount.attach(mountpoint)
    except BaseException:
        mountpoint.rmdir()
        raise


def take_off(mountpoint: Path) -> None:
    """Undo :func:`make`; nothing there is fine. Blocks. Raises OSError."""
    if mountpoint.is_symlink():
        device = mountpoint.readlink()
        with suppress(FileNotFoundError):
            loop.detach(str(device))
        mountpoint.unlink()
        return
    try:
        unmount(mountpoint)
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
    with suppress(FileNotFoundError):
        mountpoint.rmdir()  # never rmtree: were something still mounted, its files would go


def is_there(mountpoint: Path) -> bool:
    """Say whether what :func:`make` made is still there; after a reboot it is not. Blocks."""
    if mountpoint.is_symlink():
        backing = Path("/sys/block", mountpoint.readlink().name, "loop/backing_file")
        return backing.exists()
    try:
        return mountpoint.is_mount()
    except OSError:
        return False


def _make_loop(mount: Mount, mountpoint: Path) -> None:
    unknown = [option for option in mount.options if option not in {"ro", "rw", "loop"}]
    if unknown:
        raise InvalidArgument(f"loop mount of {mount.source!r}: option {unknown[0][:80]!r} is not one of ro, rw")
    device = _attached(mount.source, LO_FLAGS_READ_ONLY if "ro" in mount.options else 0)
    try:
        mountpoint.symlink_to(loop.path_of(device))
    except BaseException:
        loop.detach(loop.path_of(device))
        raise
    finally:
        os.close(device)


def _make_erofs(mount: Mount, mountpoint: Path) -> None:
    """Have the kernel read the file, and the ``device=`` files beside it; where it cannot, through loop devices."""
    options = tuple(option for option in mount.options if option != "loop")
    if "ro" not in options:
        options = ("ro", *options)
    whole = replace(mount, options=options)
    if "loop" not in mount.options:
        try:
            whole.attach(mountpoint)
            return
        except RuntimedError as exc:
            cause = exc.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.ENOTBLK:
                raise
    files = [mount.source, *(option.removeprefix("device=") for option in options if option.startswith("device="))]
    _make_on_devices(whole, mountpoint, files)


def _make_on_devices(mount: Mount, mountpoint: Path, files: Sequence[str]) -> None:
    """Mount with loop devices in place of *files*; they go when the mount goes."""
    with ExitStack() as held:
        devices = {}
        for file in files:
            flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if "ro" in mount.options else 0)
            device = _attached(file, flags)
            held.callback(os.close, device)
            devices[file] = loop.path_of(device)
        options = tuple(
            f"device={devices[option.removeprefix('device=')]}" if option.startswith("device=") else option
            for option in mount.options
            if option != "loop"
        )
        replace(mount, source=devices[mount.source], options=options).attach(mountpoint)


def _attached(file: str, flags: int) -> int:
    """Return the fd of a loop device for *file*; the caller closes it."""
    with os_errors(f"loop device for {file!r}"):
        if not stat.S_ISREG(os.stat(file, follow_symlinks=False).st_mode):  # noqa: PTH116  not a path of ours
            raise InvalidArgument(f"loop device for {file!r}: that is not a file")
        return loop.attach(file, flags)
