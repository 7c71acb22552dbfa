"""A layer onto a tree: OCI image-spec layer.md, "Applying Changesets"."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runtimed.diff.changeset import check_device, clean, join, kept_xattrs, placed, refused
from runtimed.diff.compression import Readable
from runtimed.diff.tar import Entry, Kind, TarReader
from runtimed.diff.tree import Directory, Tree
from runtimed.errors import InvalidArgument
from runtimed.oci.whiteout import Whiteout

_CHUNK = 256 * 1024

_DEVICE_TYPES = {
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class Applied:
    """The diff ID of an applied layer (the digest of its uncompressed tar) and the size of that tar in bytes."""

    diff_id: str
    size: int


def apply(layer: Readable, root: Path) -> Applied:
    """Extract the uncompressed tar stream *layer* over *root*; return its diff ID and size.

    Whiteouts delete what lower layers left in *root* (OCI image-spec layer.md, "Whiteouts"), and nothing that this
    layer brings. An entry takes the place of what had its name, except that a directory stays and takes the entry's
    metadata. Missing parents are made, mode 0755 and owned by root. The root directory itself keeps its metadata.
    No path leaves *root*, whatever links the layer or *root* hold, and whatever is
    changed in *root* meanwhile.

    Of extended attributes, files and directories get ``user.*``, file capabilities and ACLs. Needs the privileges to
    set owners. Blocks for as long as the copy takes; does not sync. *layer* stays open, at its end.

    Raises:
        InvalidArgument: not a tar archive, or an entry that cannot be applied.
        ResourceExhausted: the file system is full; *root* holds part of the layer.
        Aborted: *root* changes in the way.
    """
    source = _Hashed(layer)
    archive = TarReader(source.read)
    with Tree(root) as tree:
        layer_applier = _Applier(tree, archive)
        for entry in archive:
            layer_applier.add(entry)
        layer_applier.finish()
    # What follows the end of the archive is padding, but it counts for the digest.
    while source.read(_CHUNK):
        pass
    return Applied(f"sha256:{source.hash.hexdigest()}", source.size)


class _Hashed:
    """Hashes and counts what is read through it."""

    def __init__(self, layer: Readable) -> None:
        self._layer = layer
        self.hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._layer.read(size)
        self.hash.update(data)
        self.size += len(data)
        return data


class _Applier:
    """Applies entries to a tree, one after the other."""

    def __init__(self, tree: Tree, archive: TarReader) -> None:
        self._tree = tree
        self._archive = archive
        self._put: dict[bytes, set[bytes]] = {}  # names that this layer brought, by their directory's path
        self._mtimes: dict[bytes, int] = {}  # of directories; writing into them would change it, so it is set last

    def add(self, entry: Entry) -> None:
        """Apply *entry*. Raises what :func:`apply` does."""
        try:
            self._add(entry)
        except OSError as exc:
            raise refused(exc, entry.name, entry.kind, entry.link) from exc

    def finish(self) -> None:
        """Set the times of directories."""
        for path, mtime in self._mtimes.items():
            fd = self._tree.open_directory(path)
            if fd is not None:  # replaced or removed later in the layer
                try:
                    os.utime(fd, ns=(mtime, mtime))
                finally:
                    os.close(fd)

    def _add(self, entry: Entry) -> None:
        place = placed(entry.name)
        if place is None:
            return
        if place.hidden is not None:
            self._hide(place.directory, place.hidden)
            return
        directory, name = self._tree.directory(place.directory), place.name
        match entry.kind:
            case Kind.FILE:
                self._write_file(directory, name, entry)
            case Kind.DIRECTORY:
                self._make_directory(directory, name, entry)
            case Kind.SYMLINK:
                self._make_symlink(directory, name, entry)
            case Kind.HARD_LINK:
                self._make_hard_link(directory, name, entry)
            case _:
                self._make_device(directory, name, entry)
        self._remember(directory.path, name)

    def _write_file(self, directory: Directory, name: bytes, entry: Entry) -> None:
        fd = self._create_file(directory, name)
        try:
            for offset, data in self._archive.contents():
                while data:
                    written = os.pwrite(fd, data, offset)
                    data = data[written:]
                    offset += written
            if entry.segments is not None:
                os.ftruncate(fd, entry.size)
            # In this order: chown takes setuid bits and capabilities away.
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _create_file(self, directory: Directory, name: bytes) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o600, dir_fd=directory.fd)
        except FileExistsError:
            self._remove(directory, name)
            return os.open(name, flags, 0o600, dir_fd=directory.fd)

    def _make_directory(self, directory: Directory, name: bytes, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=directory.fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=directory.fd).st_mode):
                self._remove(directory, name)
                os.mkdir(name, 0o700, dir_fd=directory.fd)
        made = self._tree.child(directory, name)
        os.fchown(made.fd, entry.uid, entry.gid)
        os.fchmod(made.fd, entry.mode)
        if entry.xattrs:
            _set_xattrs(made.fd, entry)
        self._mtimes[made.path] = entry.mtime

    def _make_symlink(self, directory: Directory, name: bytes, entry: Entry) -> None:
        try:
            os.symlink(entry.link, name, dir_fd=directory.fd)
        except FileExistsError:
            self._remove(directory, name)
            os.symlink(entry.link, name, dir_fd=directory.fd)
        os.chown(name, entry.uid, entry.gid, dir_fd=directory.fd, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory.fd, follow_symlinks=False)

    def _make_hard_link(self, directory: Directory, name: bytes, entry: Entry) -> None:
        """Link to what the layer or one below it has; the target's metadata is the link's, too."""
        parent, target = clean(entry.link)
        source = self._tree.directory(parent, create=False)
        there = os.lstat(target or b".", dir_fd=source.fd)
        if stat.S_ISDIR(there.st_mode):
            raise InvalidArgument(f"layer entry {entry.name!r} is a hard link to the directory {entry.link!r}")
        try:
            os.link(target, name, src_dir_fd=source.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except FileExistsError:
            if os.path.samestat(there, os.lstat(name, dir_fd=directory.fd)):
                return
            self._remove(directory, name)  # which may take the target with it
            source = self._tree.directory(parent, create=False)
            os.link(target, name, src_dir_fd=source.fd, dst_dir_fd=directory.fd, follow_symlinks=False)

    def _make_device(self, directory: Directory, name: bytes, entry: Entry) -> None:
        check_device(entry.name, entry.kind, entry.major, entry.minor)
        kind = _DEVICE_TYPES[entry.kind]
        device = os.makedev(entry.major, entry.minor)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=directory.fd)
        except FileExistsError:
            self._remove(directory, name)
            os.mknod(name, kind | 0o600, device, dir_fd=directory.fd)
        # Not opened for real, that could block or act on the device; through /proc the rest cannot meet another inode.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
                raise InvalidArgument(f"layer entry {entry.name!r} was replaced while it was made")
            path = Path(f"/proc/self/fd/{fd}")
            os.chown(path, entry.uid, entry.gid)
            path.chmod(entry.mode)
            os.utime(path, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _hide(self, parent: bytes, hidden: Whiteout) -> None:
        try:
            directory = self._tree.directory(parent, create=False)
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing there to hide
        if hidden.is_opaque:
            self._tree.prune(directory, self._put)
        elif hidden.name not in self._put.get(directory.path, ()):
            self._tree.remove(directory, hidden.name, missing_ok=True)
        elif (below := self._tree.find_child(directory, hidden.name)) is not None:
            # This layer's directory took the place of the hidden one, whose contents must not show through.
            self._tree.prune(below, self._put)

    def _remove(self, directory: Directory, name: bytes) -> None:
        """Remove what the layer brings something else for, and forget what it brought below that."""
        self._tree.remove(directory, name)
        pending = [join(directory.path, name)]
        while pending:
            path = pending.pop()
            self._mtimes.pop(path, None)
            pending += [join(path, child) for child in self._put.pop(path, ())]

    def _remember(self, parent: bytes, name: bytes) -> None:
        while parent not in self._put:
            self._put[parent] = {name}
            if not parent:
                return
            # The first entry in a directory makes the directory one that this layer brought.
            parent, _, name = parent.rpartition(b"/")
        self._put[parent].add(name)


def _set_xattrs(fd: int, entry: Entry) -> None:
    for name, value in kept_xattrs(entry.name, entry.xattrs).items():
        try:
            os.setxattr(fd, name, value)
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:  # as containerd: the file is worth more than its attribute
                raise
