"""The tree of one layer in memory, with overlayfs' marks for what it hides of the layers below.

It is to be laid over a :class:`Lower`, and does to the two what extraction does to a mounted overlay: what an entry
changes below is copied up first, what it removes becomes a whiteout, a directory in the place of something else is
opaque. A million entries fit, because a node that is no directory is a number: its slot in :class:`Inodes`.
"""

import errno
import os
import stat
from collections.abc import Callable

from runtimed.diff import erofs_format as fmt
from runtimed.diff.changeset import check_depth, clean, is_kept, join, os_error, walk
from runtimed.diff.erofs_lower import Found, Lower
from runtimed.errors import InvalidArgument
from runtimed.oci.whiteout import Whiteout

HARD_LINK = 0  # a type that no inode has
_NAME_MAX = 255
_PATH_MAX = 4096

_TYPES = {
    stat.S_IFREG: fmt.FILE,
    stat.S_IFDIR: fmt.DIRECTORY,
    stat.S_IFCHR: fmt.CHARACTER_DEVICE,
    stat.S_IFBLK: fmt.BLOCK_DEVICE,
    stat.S_IFIFO: fmt.FIFO,
    stat.S_IFSOCK: fmt.SOCKET,
    stat.S_IFLNK: fmt.SYMLINK,
}

Xattrs = dict[bytes, bytes]


class Inodes:
    """Inodes as they go to disk, by slot, and what does not fit in them."""

    __slots__ = ("links", "packed", "types", "xattrs")

    def __init__(self) -> None:
        self.packed = bytearray()  # INODE_SIZE each
        self.types = bytearray()
        self.links: dict[int, bytes] = {}  # where symbolic and hard links point
        self.xattrs: dict[int, Xattrs] = {}

    def add(self, type_: int, mode: int, uid: int, gid: int, size: int, data: int, mtime: int) -> int:
        """Return the slot of a new inode. *mode* includes the type's bits, *data* is its first block or device."""
        slot = len(self.types)
        seconds, nanoseconds = divmod(mtime, 1_000_000_000)
        # The inode's own number is for those who cannot take 64 bits; the kernel has no use for it.
        self.packed += fmt.INODE.pack(
            fmt.FLAT_PLAIN, 0, mode, size, data, slot & 0xFFFFFFFF, uid, gid, seconds, nanoseconds, 1
        )
        self.types.append(type_)
        return slot


class Directory:
    """A directory of the layer. Its path is free of links."""

    __slots__ = ("children", "inode", "is_brought", "is_merged", "is_opaque", "nid", "parent", "path")

    def __init__(self, path: bytes, parent: "Directory | None", inode: int) -> None:
        self.path = path
        self.parent = parent or self
        self.inode = inode
        self.children: dict[bytes, int | Directory] = {}
        self.is_brought = False  # by an entry of the layer, its own or one in it
        self.is_merged = False  # with a directory of the layers below
        self.is_opaque = False
        self.nid = 0


class LayerTree:
    """The tree, to add entries to in their order. Raises what :func:`runtimed.diff.apply.apply` does.

    *copy_data* takes the path of a regular file below and its size, and returns the first block of its copy.
    """

    def __init__(self, inodes: Inodes, lower: Lower | None, copy_data: Callable[[bytes, int], int]) -> None:
        self._inodes = inodes
        self._lower = lower
        self._copy_data = copy_data
        self.whiteout = inodes.add(fmt.CHARACTER_DEVICE, stat.S_IFCHR, 0, 0, 0, 0, 0)
        self.linked: set[int] = set()  # slots that more than one name may have
        found = lower and lower.find(b"")
        self.root = self._copy_up_directory(b"", None, found) if found else Directory(b"", None, self._make_inode())
        self._is_root_hidden = False
        self._copied: set[tuple[Directory, bytes]] = set()  # names that were copied up for a link, and not brought
        # By path as asked for, to save the walk. Whenever a link or directory goes, all is forgotten.
        self._cache: dict[bytes, Directory] = {b"": self.root}
        self._followed: set[tuple[Directory, bytes]] = set()  # links below that some of these ways lead through

    def directory(self, path: bytes, *, create: bool = True) -> Directory:
        """Return the directory at the clean *path*, following links; what is below is copied up.

        With *create*, what is missing is made, mode 0755.
        """
        found = self._cache.get(path)
        if found is None:
            passed = [self.root]  # a directory for each component that is done, after the root

            def step(done: list[bytes], name: bytes) -> bytes | None:
                del passed[len(done) + 1 :]
                there = self._step(passed[-1], name, create=create)
                if isinstance(there, bytes):
                    return there
                passed.append(there)
                return None

            found = passed[len(walk(path, step))]
            self._cache[path] = found
        return found

    def put(self, directory: Directory, name: bytes, slot: int) -> None:
        """Give *name* the inode in *slot*, in the place of what there was."""
        if len(name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        self._leave(directory, name)
        directory.children[name] = slot
        self._bring(directory, name)

    def put_directory(self, directory: Directory, name: bytes, slot: int) -> None:
        """Make *name* a directory with the inode in *slot*, or give it to the directory that there is."""
        if len(name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        made = directory.children.get(name)
        if not isinstance(made, Directory):
            made = self._make_child(directory, name, self._find(directory, name), slot)
        xattrs = self._inodes.xattrs
        if before := xattrs.get(made.inode):
            xattrs[slot] = before | xattrs.get(slot, {})
        made.inode = slot
        made.is_brought = True
        self._bring(directory, name)

    def put_hard_link(self, directory: Directory, name: bytes, link: bytes, subject: bytes) -> None:
        """Make *name* another name of what *link* says, which may lie below. *subject* is the entry's name."""
        if len(name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        slot = self._target(link, subject)
        if directory.children.get(name) != slot:
            if name in directory.children or self._find(directory, name):
                self._remove(directory, name)  # which may take the target with it
                slot = self._target(link, subject)
            directory.children[name] = slot
        self.linked.add(slot)
        self._bring(directory, name)

    def hide(self, path: bytes, hidden: Whiteout) -> None:
        """Hide what the layers below have: *hidden*, in the directory *path*."""
        try:
            directory = self.directory(path, create=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        if hidden.is_opaque:
            self._prune(directory)
            return
        if len(hidden.name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        child = directory.children.get(hidden.name)
        if child is None or not self._is_brought(directory, hidden.name, child):
            self._remove(directory, hidden.name)
        elif isinstance(child, Directory):
            # This layer's directory took the place of the hidden one, whose contents must not show through.
            self._prune(child)

    def finish(self) -> None:
        """Hide what is below an opaque root name by name: overlayfs merges roots in any case."""
        if not self._is_root_hidden or self._lower is None:
            return
        for name in self._lower.names(b""):
            child = self.root.children.setdefault(name, self.whiteout)
            if isinstance(child, Directory):
                child.is_opaque = True
        self.root.is_opaque = False

    def _step(self, parent: Directory, name: bytes, *, create: bool) -> Directory | bytes:
        """Return the directory *name* in *parent*, or where the link of that name points."""
        node = parent.children.get(name)
        if isinstance(node, Directory):
            return node
        if node is not None and node != self.whiteout:
            if self._inodes.types[node] == fmt.SYMLINK:
                return self._inodes.links[node]
            raise os_error(errno.ENOTDIR)
        if len(name) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        found = self._find(parent, name)
        if found and node is None:
            if stat.S_ISLNK(found.status.st_mode):
                self._followed.add((parent, name))
                return found.link
            if not found.is_directory:
                raise os_error(errno.ENOTDIR)
        elif not create:
            raise os_error(errno.ENOENT)
        return self._make_child(parent, name, found)

    def _make_child(self, parent: Directory, name: bytes, found: Found | None, slot: int | None = None) -> Directory:
        """Return the new directory *name* in *parent*, merged with what was *found* below unless the layer hid that.

        Its inode, where it is not a copy, is the one in *slot*.
        """
        path = join(parent.path, name)
        check_depth(path.count(b"/") + 1)
        if len(path) >= _PATH_MAX:
            raise os_error(errno.ENAMETOOLONG)
        is_below = found is not None and found.is_directory
        if found and is_below and name not in parent.children:
            made = self._copy_up_directory(path, parent, found)
        else:
            made = Directory(path, parent, self._make_inode() if slot is None else slot)
            made.is_opaque = is_below
        self._leave(parent, name)
        parent.children[name] = made
        return made

    def _target(self, link: bytes, subject: bytes) -> int:
        """Return the slot of what the hard link *subject* points at."""
        path, name = clean(link)
        directory = self.directory(path, create=False)
        node = directory.children.get(name) if name else self.root
        if node is None:
            found = self._find(directory, name)
            if found is None:
                raise os_error(errno.ENAMETOOLONG if len(name) > _NAME_MAX else errno.ENOENT)
            if not found.is_directory:
                slot = directory.children[name] = self._copy_up(join(directory.path, name), found)
                self._copied.add((directory, name))
                return slot
        elif isinstance(node, int):
            if node == self.whiteout:
                raise os_error(errno.ENOENT)
            return node
        raise InvalidArgument(f"layer entry {subject!r} is a hard link to the directory {link!r}")

    def _remove(self, directory: Directory, name: bytes) -> None:
        """Remove *name*, which may lie below only, or nowhere."""
        self._leave(directory, name)
        directory.children.pop(name, None)
        self._copied.discard((directory, name))
        if self._find(directory, name):
            directory.children[name] = self.whiteout

    def _prune(self, directory: Directory) -> None:
        """Remove what the layer did not bring from *directory* and from the directories in it."""
        if not directory.is_merged:
            return  # nothing from below is in it, and nothing will be
        self._cache = {b"": self.root}
        self._is_root_hidden |= directory is self.root
        pending = [directory]
        while pending:
            pruned = pending.pop()
            for name, child in list(pruned.children.items()):
                if child == self.whiteout or not self._is_brought(pruned, name, child):
                    del pruned.children[name]
                    self._copied.discard((pruned, name))
                elif isinstance(child, Directory):
                    pending.append(child)
            pruned.is_opaque |= pruned.is_merged
            pruned.is_merged = False

    def _find(self, directory: Directory, name: bytes) -> Found | None:
        """Return what the layers below have as *name* in *directory*, were it not for this layer's *name*."""
        if not directory.is_merged or len(name) > _NAME_MAX:
            return None
        assert self._lower is not None
        return self._lower.find(join(directory.path, name))

    def _leave(self, directory: Directory, name: bytes) -> None:
        """Forget the ways that lead through *name*, which is about to be something else."""
        old = directory.children.get(name)
        if old is None:
            is_passed = bool(self._followed) and (directory, name) in self._followed
        else:
            is_passed = isinstance(old, Directory) or self._inodes.types[old] == fmt.SYMLINK
        if is_passed:
            self._cache = {b"": self.root}

    def _is_brought(self, directory: Directory, name: bytes, child: int | Directory) -> bool:
        return child.is_brought if isinstance(child, Directory) else (directory, name) not in self._copied

    def _bring(self, directory: Directory, name: bytes) -> None:
        if self._copied:
            self._copied.discard((directory, name))
        # The first entry in a directory makes the directory one that this layer brought.
        while not directory.is_brought:
            directory.is_brought = True
            directory = directory.parent

    def _make_inode(self) -> int:
        return self._inodes.add(fmt.DIRECTORY, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0)

    def _copy_up_directory(self, path: bytes, parent: Directory | None, found: Found) -> Directory:
        directory = Directory(path, parent, self._copy_up(path, found))
        directory.is_merged = True
        return directory

    def _copy_up(self, path: bytes, found: Found) -> int:
        """Return the slot of a copy of what was *found* at *path* below."""
        status = found.status
        type_ = _TYPES[stat.S_IFMT(status.st_mode)]
        size = data = 0
        if type_ == fmt.FILE:
            size = status.st_size
            data = self._copy_data(path, size)
        elif type_ == fmt.SYMLINK:
            size = len(found.link)
        elif type_ in (fmt.CHARACTER_DEVICE, fmt.BLOCK_DEVICE):
            data = fmt.pack_rdev(os.major(status.st_rdev), os.minor(status.st_rdev))
        slot = self._inodes.add(type_, status.st_mode, status.st_uid, status.st_gid, size, data, status.st_mtime_ns)
        if type_ == fmt.SYMLINK:
            self._inodes.links[slot] = found.link
        elif xattrs := {key: value for key, value in found.xattrs.items() if is_kept(key)}:
            self._inodes.xattrs[slot] = xattrs
        return slot
