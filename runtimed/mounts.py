"""Mounts as data, and held on a directory.

The shim imports this module, so it stays small: no asyncio, no third-party package.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runtimed.errors import InvalidArgument, RuntimedError, Unimplemented, from_os_error, os_errors
from runtimed.linux import fstab
from runtimed.linux.mount import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOUNT_ATTR_IDMAP,
    MS_BIND,
    MS_REC,
    OPEN_TREE_CLONE,
    PAGE_SIZE,
    UMOUNT_NOFOLLOW,
    attributes_of,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)
from runtimed.linux.overlayfs import mount_deep, split_lowerdir

# How often, and how far apart, an unmount that finds the mount busy is tried again before it is detached.
_BUSY_TRIES = 20
_BUSY_WAIT_S = 0.05


_MAPS = ("uidmap", "gidmap")


def _pair(option: str) -> tuple[str, str, str]:
    return option.partition("=")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) call, not yet made. Snapshotters return these; on the wire it is containerd.types.Mount."""

    type: str
    source: str
    target: str = ""  # below the mount point; "" is the mount point itself
    options: tuple[str, ...] = ()  # as in fstab: flags such as "ro", and the file system's own

    def attach(self, mountpoint: Path) -> None:
        """Make the mount on *mountpoint*, which is where :attr:`target` is, too: joining is :func:`mount_all`'s.

        A symbolic link as *mountpoint* is refused, not followed. A bind mount is read-only from its first moment.

        Raises:
            InvalidArgument: an option or a file system type that the kernel does not know, a link.
            NotFound: source or mount point do not exist.
            Unimplemented: an option that asks for more than a mount: ``loop``, ``X-containerd.*``.
        """
        with _opened(mountpoint) as fd:
            self._attach(fd, str(mountpoint))

    def _attach(self, fd: int, where: str) -> None:
        for option in self.options:
            if option == "loop" or option.startswith("X-containerd."):
                raise Unimplemented(f"mount option {option!r} is not supported")
            if option == "remount" or "\0" in option:
                raise InvalidArgument(f"mount option {option!r} is not one of a new mount")
        options = fstab.parse(self.options)
        maps = {key: value for key, _, value in map(_pair, options.data) if key in _MAPS}
        if maps:
            options = replace(options, data=tuple(one for one in options.data if _pair(one)[0] not in _MAPS))
        try:
            if maps:
                self._attach_mapped(fd, options, maps)
            elif self.type == "bind" or options.flags & MS_BIND:
                self._bind(fd, options)
            else:
                self._mount(fd, options)
            if options.propagation:
                self._propagate(options.propagation, Path(where))
        except OSError as exc:
            raise self._error(exc, where) from exc

    def _attach_mapped(self, fd: int, options: fstab.Options, maps: Mapping[str, str]) -> None:
        """Show the owners of what is bound, or of an overlay's lower directories, as the options say."""
        from runtimed.linux import idmap, idmapped_overlay  # here: a shim seldom needs them

        try:
            uids, gids = (idmap.parse(maps.get(key, "")) for key in _MAPS)
        except ValueError as exc:
            raise InvalidArgument(f"mount options uidmap and gidmap: {exc}") from None
        with idmap.user_namespace(uids, gids) as namespace:
            if self.type == "overlay":
                idmapped_overlay.mount_idmapped(self.source, fd, options, namespace)
            elif self.type == "bind":
                self._bind(fd, options, namespace)
            else:
                raise InvalidArgument(f"mount of type {self.type!r}: only an overlay or a bind mount maps IDs")

    def _mount(self, fd: int, options: fstab.Options) -> None:
        data = ",".join(options.data)
        if self.type == "overlay" and len(os.fsencode(data)) >= PAGE_SIZE:
            mount_deep(self.source, fd, options)
        else:
            mount(self.source, f"/proc/self/fd/{fd}", self.type, options.flags, data)

    def _bind(self, fd: int, options: fstab.Options, namespace: int = -1) -> None:
        """Clone the source's mount, restrict it while nobody sees it, put it in place."""
        if options.data:
            raise InvalidArgument(
                f"bind mount of {self.source!r}: option {options.data[0]!r} is not one of a bind mount"
            )
        recursive = AT_RECURSIVE if options.flags & MS_REC else 0
        tree = open_tree(AT_FDCWD, self.source, OPEN_TREE_CLONE | recursive)
        try:
            set_, clear = attributes_of(options.flags)
            if set_ or clear:
                mount_setattr(tree, "", AT_EMPTY_PATH, set_, clear)
            if namespace >= 0:
                mount_setattr(tree, "", AT_EMPTY_PATH, MOUNT_ATTR_IDMAP, userns_fd=namespace)
            move_mount(tree, fd)
        finally:
            os.close(tree)

    def _propagate(self, propagation: int, mountpoint: Path) -> None:
        recursive = AT_RECURSIVE if propagation & MS_REC else 0
        try:
            with _opened(mountpoint) as made:
                mount_setattr(made, "", AT_EMPTY_PATH | recursive, 0, 0, propagation & ~MS_REC)
        except BaseException:
            unmount(mountpoint)
            raise

    def _error(self, exc: OSError, where: str) -> RuntimedError:
        subject = f"mount {self.type} {self.source!r} on {where!r}"
        match exc.errno:
            case errno.ENODEV:
                return InvalidArgument(f"{subject}: this kernel has no file system type {self.type!r}")
            case errno.E2BIG | errno.ENOTDIR | errno.ENOTBLK | errno.ELOOP:
                return InvalidArgument(f"{subject}: {exc.strerror}")
        return from_os_error(exc, subject)


def mount_all(mounts: Sequence[Mount], root: Path) -> list[Path]:
    """Make *mounts* on *root* in their order and return their mount points; on failure none is left.

    A :attr:`Mount.target` is looked up below *root* through what is mounted by then, which may be an image that
    nobody trusts: a ``..`` or a symbolic link in it is InvalidArgument. Raises as :meth:`Mount.attach`.
    """
    mountpoints: list[Path] = []
    try:
        for mount in mounts:
            mountpoint = root.joinpath(*_parts(mount.target))
            with _opened(root, mount.target) as fd:
                mount._attach(fd, str(mountpoint))
            mountpoints.append(mountpoint)
    except BaseException:
        for mountpoint in reversed(mountpoints):
            with suppress(OSError):  # the first error is the one to tell
                unmount(mountpoint)
        raise
    return mountpoints


@contextmanager
def mounted(mounts: Sequence[Mount], root: Path) -> Iterator[Path]:
    """Hold *mounts* on *root*; they come off last first when the block ends."""
    with ExitStack() as held:
        for mountpoint in mount_all(mounts, root):
            held.callback(unmount, mountpoint)
        yield root


@contextmanager
def mounted_temporarily(mounts: Sequence[Mount], parent: Path | None = None) -> Iterator[Path]:
    """Like :func:`mounted`, on a directory made for the occasion (in *parent*, or where temporary files go)."""
    import tempfile  # here: it loads a good deal that a shim never uses

    root = Path(tempfile.mkdtemp(prefix="runtimed-mount-", dir=parent))
    try:
        with mounted(mounts, root):
            yield root
    finally:
        # rmdir, never rmtree: were an unmount to fail, rmtree would delete the snapshot behind the mount.
        root.rmdir()


def unmount(mountpoint: Path) -> str:
    """Take the topmost mount off *mountpoint*; return its device ("0:53") if it had to be detached, else "".

    A busy mount is tried again for a second, then detached (MNT_DETACH): it is gone from the tree at once, and from
    the kernel when its last user lets go. Raises OSError: EINVAL if nothing is mounted there.
    """
    for _ in range(_BUSY_TRIES):
        try:
            umount2(os.fspath(mountpoint), UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            time.sleep(_BUSY_WAIT_S)
        else:
            return ""
    where = os.fsencode(mountpoint)
    device = next((found.device for found in reversed(_mountinfo()) if found.mountpoint == where), b"")
    umount2(os.fspath(mountpoint), UMOUNT_NOFOLLOW | MNT_DETACH)
    return device.decode()


def unmount_all(path: Path) -> list[str]:
    """Take every mount off *path* and what is below it, deepest first; return the devices of what had to be detached.

    Nothing mounted, or no such path, is fine. Raises OSError for anything else.
    """
    detached: list[str] = []
    for mountpoint in sorted(mounts_below(path), key=lambda found: len(found.parts), reverse=True):
        with suppress(FileNotFoundError):
            detached += _unmount_stack(mountpoint)
    with suppress(FileNotFoundError):
        detached += _unmount_stack(path)  # asked of the kernel even if the list had nothing: it may be newer
    return detached


def _unmount_stack(mountpoint: Path) -> list[str]:
    detached = []
    while True:
        try:
            if device := unmount(mountpoint):
                detached.append(device)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return detached
            raise


def mounts_below(path: Path) -> list[Path]:
    """Return the mount points at and below *path*, oldest first, as this process sees them."""
    where = os.fsencode(_resolved(path))
    return [_path(found.mountpoint) for found in _mountinfo() if _is_in(found.mountpoint, where)]


def mounts_of(path: Path) -> list[Path]:
    """Return the mount points where *path*, or something in it, is mounted: as it is, or as an overlay's upperdir.

    Only as this process sees them: mounts in other namespaces are not among them.
    """
    where, mounts = os.fsencode(_resolved(path)), _mountinfo()
    holder = [found for found in mounts if _is_in(where, found.mountpoint) and found.mountpoint != where]
    if not holder:
        return []
    under = max(reversed(holder), key=lambda found: len(found.mountpoint))  # of two on one place the later
    within = under.root.rstrip(b"/") + b"/" + where.removeprefix(under.mountpoint).lstrip(b"/")
    return [
        _path(found.mountpoint)
        for found in mounts
        if (found.device == under.device and _is_in(found.root, within)) or _is_in(found.upperdir, where)
    ]


def devices() -> set[str]:
    """Return the devices ("0:53") of the file systems that are mounted, as this process sees them."""
    return {found.device.decode() for found in _mountinfo()}


def lowerdirs() -> set[Path]:
    """Return the lower directories of all overlays that this process sees; as they were named, which may be short."""
    found = set()
    for line in _lines():
        for option in line.rpartition(b" ")[2].split(b","):
            key, _, value = option.partition(b"=")
            if key in {b"lowerdir", b"lowerdir+"}:
                with suppress(OSError):  # of somebody else, with layers that have data only
                    found |= {Path(lower) for lower in split_lowerdir(os.fsdecode(_unescaped(value)))}
    return found


@dataclass(frozen=True, slots=True)
class _Mounted:
    """A line of proc_pid_mountinfo(5). Paths as bytes: a node has a thousand mounts, and few of them are meant."""

    device: bytes
    root: bytes  # what of the file system is mounted
    mountpoint: bytes
    upperdir: bytes  # b"": none


def _mountinfo() -> list[_Mounted]:
    mounts = []
    for line in _lines():
        fields = line.split(b" ")
        upper = fields[-1].partition(b",upperdir=")[2].partition(b",")[0]
        mounts.append(_Mounted(fields[2], _unescaped(fields[3]), _unescaped(fields[4]), _unescaped(upper)))
    return mounts


def _lines() -> list[bytes]:
    """Return the lines of mountinfo, which escapes the end of a line, and nothing else that splitlines() splits at."""
    return Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]


def _unescaped(field: bytes) -> bytes:
    first, *rest = field.split(b"\\")  # "\040" is a blank; also tab, newline and the backslash itself
    return first + b"".join(bytes([int(piece[:3], 8)]) + piece[3:] for piece in rest)


def _path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _is_in(path: bytes, top: bytes) -> bool:
    """Say whether *path* is *top* or below it."""
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _resolved(path: Path) -> Path:
    """Resolve links above the last component only, because that must not lead elsewhere."""
    return path.parent.resolve() / path.name


def _parts(target: str) -> list[str]:
    parts = [part for part in target.split("/") if part not in {"", "."}]
    if ".." in parts or "\0" in target:
        raise InvalidArgument(f"mount target {target!r} must not leave its mount point")
    return parts


@contextmanager
def _opened(root: Path, target: str = "") -> Iterator[int]:
    """Hold an O_PATH fd of *target* below *root* open, without following a link."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    where = str(root.joinpath(*_parts(target)))
    with os_errors(f"mount point {where!r}"):
        fd = os.open(root, flags)
    try:
        for part in ["", *_parts(target)]:
            if part:
                with os_errors(f"mount point {where!r}"):
                    below = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd = below
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise InvalidArgument(f"mount point {where!r}: {part or root.name!r} is a symbolic link")
        yield fd
    finally:
        os.close(fd)
