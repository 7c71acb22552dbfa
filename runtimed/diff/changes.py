"""What two trees differ in, as a layer: OCI image-spec layer.md, "Change Types".

Both trees may be a stranger's and may change meanwhile (a container that runs): nothing is opened by a path that could
lead through a link, and what is not as it was when it was looked at is Aborted.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from runtimed.diff.files import FILE, PAUSE, find, is_opaque_directory, is_whiteout, listed, opened, same, xattrs_of
from runtimed.diff.tar import MAX_NAME, Entry, Kind
from runtimed.diff.tarwriter import TarWriter
from runtimed.errors import Aborted, InvalidArgument
from runtimed.oci import whiteout

_CHUNK = 256 * 1024
_SECOND = 10**9
_MAX_DEPTH = 512  # directories; what a layer may have when it is applied

# What the kernel says when a file is no longer what it was a moment ago.
_CHANGED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.ESTALE))

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}


def compare(lower: Path | None, upper: Path, write: Callable[[bytes | memoryview], object], epoch: int | None) -> None:
    """Write the layer that makes *upper* of *lower* (None: of nothing) as a tar archive.

    Of a file that is in both what counts is mode, owner, device, size, time and the attributes that layers keep;
    contents are read only if both times are whole seconds, as times out of a layer are. Directories on the way to a
    change are in the layer. Times are whole seconds, at most *epoch* (seconds since 1970) if there is one; a whiteout
    has the time of the directory that it is in. Sockets are left out. The root itself is no part of it.

    Raises:
        InvalidArgument: a name that cannot be in a layer.
        Aborted: *upper* is changed meanwhile.
    """
    _Comparison(write, epoch, is_layer=False).run(lower, upper)


def compare_layer(lower: Path, layer: Path, write: Callable[[bytes | memoryview], object], epoch: int | None) -> None:
    """Like :func:`compare`, where *layer* is the upperdir that an overlay mount has on top of *lower*.

    Writes the same bytes as :func:`compare` would, and looks only at what is in *layer*.

    Raises as :func:`compare`, and NotALayer; what has been written is worth nothing then.
    """
    _Comparison(write, epoch, is_layer=True).run(lower, layer)


@dataclass(slots=True)
class _Frame:
    """A directory that is being compared."""

    path: bytes  # "" or with a slash at its end
    status: os.stat_result
    lower: int | None
    upper: int
    names: Iterator[bytes]
    held: ExitStack
    is_opaque: bool  # nothing of the lower directory shows through
    is_written: bool
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


class _Comparison:
    """One comparison under way."""

    def __init__(self, write: Callable[[bytes | memoryview], object], epoch: int | None, *, is_layer: bool) -> None:
        self._tar = TarWriter(write)
        self._epoch = epoch
        self._is_layer = is_layer
        self._frames: list[_Frame] = []
        # Hard links by inode: the name that a file has in the layer, and names that it has in both trees.
        self._sources: dict[tuple[int, int], bytes] = {}
        self._unchanged: dict[tuple[int, int], list[tuple[bytes, list[_Frame]]]] = {}

    def run(self, lower: Path | None, upper: Path) -> None:
        try:
            with ExitStack() as held:
                below = None if lower is None else held.enter_context(opened(lower))
                above = held.enter_context(opened(upper))
                self._enter(b"", os.fstat(above), below, above, ExitStack(), is_opaque=False, is_written=True)
                while self._frames:
                    self._step()
        finally:
            for frame in self._frames:
                frame.held.close()
        self._tar.close()

    def _step(self) -> None:
        frame = self._frames[-1]
        name = next(frame.names, None)
        if name is None:
            self._frames.pop().held.close()
            return
        try:
            self._look(frame, name)
        except OSError as exc:
            if exc.errno not in _CHANGED:
                raise
            path = frame.path + name
            raise Aborted(f"{path!r} is changed while it is looked at ({exc.strerror}); {PAUSE}") from exc

    def _look(self, frame: _Frame, name: bytes) -> None:
        below = None if frame.lower is None else find(frame.lower, name)
        above = find(frame.upper, name)
        if above is not None and self._is_layer and is_whiteout(above):
            above = None
        if above is None:
            if below is not None:
                self._delete(frame, name)
            return
        if name.startswith(whiteout.PREFIX):
            raise InvalidArgument(f"{frame.path + name!r} cannot be in a layer: such a name is a whiteout's there")
        if is_whiteout(above):
            raise InvalidArgument(f"{frame.path + name!r} cannot be in a layer: device 0:0 is overlayfs' whiteout")
        self._keep(frame, name, below, above)

    def _keep(self, frame: _Frame, name: bytes, below: os.stat_result | None, above: os.stat_result) -> None:
        xattrs = xattrs_of(frame.upper, name, above, is_layer=self._is_layer)
        is_same = (
            frame.lower is not None and below is not None and same(frame.lower, frame.upper, name, below, above, xattrs)
        )
        if stat.S_ISDIR(above.st_mode):
            self._descend(frame, name, below, above, xattrs, is_same=is_same)
            return
        kind = _KINDS.get(stat.S_IFMT(above.st_mode))
        if kind is None:  # a socket
            return
        path = self._path(frame, name)
        inode = (above.st_dev, above.st_ino)
        if above.st_nlink > 1 and inode in self._sources:
            self._link(path, self._sources[inode], above, self._frames)
        elif is_same:
            if above.st_nlink > 1:
                self._unchanged.setdefault(inode, []).append((path, list(self._frames)))
        else:
            self._file(frame, name, path, kind, above, xattrs)
            if above.st_nlink > 1:
                self._sources[inode] = path
                for other, frames in self._unchanged.pop(inode, ()):
                    self._link(other, path, above, frames)

    def _descend(
        self,
        frame: _Frame,
        name: bytes,
        below: os.stat_result | None,
        above: os.stat_result,
        xattrs: Mapping[bytes, bytes],
        *,
        is_same: bool,
    ) -> None:
        if len(self._frames) > _MAX_DEPTH:
            raise InvalidArgument(f"directories nested more than {_MAX_DEPTH} deep cannot be in a layer")
        path = self._path(frame, name) + b"/"
        is_opaque = frame.is_opaque or (self._is_layer and is_opaque_directory(frame.upper, name))
        with ExitStack() as held:
            upper = held.enter_context(opened(name, frame.upper, above))
            lower = None
            if below is not None and stat.S_ISDIR(below.st_mode) and frame.lower is not None:
                lower = held.enter_context(opened(name, frame.lower, below))
            self._enter(path, above, lower, upper, held.pop_all(), is_opaque=is_opaque, is_written=False, xattrs=xattrs)
        if not is_same:
            self._write_directories(self._frames)

    def _enter(
        self,
        path: bytes,
        status: os.stat_result,
        lower: int | None,
        upper: int,
        held: ExitStack,
        *,
        is_opaque: bool,
        is_written: bool,
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:
        names = set(listed(upper))
        if lower is not None and (is_opaque or not self._is_layer):
            names.update(listed(lower))
        frame = _Frame(path, status, lower, upper, iter(sorted(names)), held, is_opaque, is_written, xattrs or {})
        self._frames.append(frame)

    def _delete(self, frame: _Frame, name: bytes) -> None:
        self._write_directories(self._frames)
        path = self._path(frame, whiteout.PREFIX + name)
        mtime = self._time(frame.status.st_mtime_ns)
        self._tar.add(Entry(name=path, kind=Kind.FILE, mode=0, uid=0, gid=0, size=0, mtime=mtime, link=b""))

    def _file(
        self,
        frame: _Frame,
        name: bytes,
        path: bytes,
        kind: Kind,
        above: os.stat_result,
        xattrs: Mapping[bytes, bytes],
    ) -> None:
        self._write_directories(self._frames)
        entry = self._entry(path, kind, above, xattrs)
        if kind is Kind.SYMLINK:
            entry.link = os.readlink(name, dir_fd=frame.upper)
        if kind is not Kind.FILE:
            self._tar.add(entry)
            return
        with opened(name, frame.upper, above, FILE) as fd:
            self._tar.add(entry)
            left = entry.size
            while left and (data := os.read(fd, min(left, _CHUNK))):
                self._tar.data(data)
                left -= len(data)
        if left:
            raise Aborted(f"{path!r} became shorter while it was read; {PAUSE}")

    def _link(self, path: bytes, source: bytes, above: os.stat_result, frames: list[_Frame]) -> None:
        self._write_directories(frames)
        entry = self._entry(path, Kind.HARD_LINK, above, {})
        entry.link, entry.size = source, 0
        self._tar.add(entry)

    def _write_directories(self, frames: list[_Frame]) -> None:
        """Write the directories of *frames* that have not been: those on the way to a change."""
        for frame in frames:
            if not frame.is_written:
                frame.is_written = True
                self._tar.add(self._entry(frame.path, Kind.DIRECTORY, frame.status, frame.xattrs))

    def _entry(self, path: bytes, kind: Kind, status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> Entry:
        is_device = kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
        return Entry(
            name=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if kind is Kind.FILE else 0,
            mtime=self._time(status.st_mtime_ns),
            link=b"",
            major=os.major(status.st_rdev) if is_device else 0,
            minor=os.minor(status.st_rdev) if is_device else 0,
            xattrs=xattrs,
        )

    def _time(self, ns: int) -> int:
        seconds = ns // _SECOND
        return (seconds if self._epoch is None else min(seconds, self._epoch)) * _SECOND

    def _path(self, frame: _Frame, name: bytes) -> bytes:
        path = frame.path + name
        if len(path) >= MAX_NAME:
            raise InvalidArgument(f"{path[:64]!r}...: a path of more than {MAX_NAME} bytes cannot be in a layer")
        return path
