"""What an entry of a layer means, however the layer is kept (OCI image-spec layer.md, "Applying Changesets").

Extraction (:mod:`runtimed.diff.apply`) and the index (:mod:`runtimed.diff.erofs`) go by the same rules and refuse with
the same words.
"""

import errno
import os
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from runtimed.diff.tar import Kind
from runtimed.errors import Aborted, InvalidArgument, ResourceExhausted, from_os_error
from runtimed.oci import whiteout
from runtimed.oci.whiteout import Whiteout

MAX_LINKS = 40  # in one path, as in the kernel
# No image is nested as deeply, and what removes or copies a snapshot may recurse.
MAX_DEPTH = 512

# Attributes that mean the same wherever the layer goes. Others would let an image speak to this host's overlayfs
# (trusted.overlay.*, user.overlay.*), to its security module or to its integrity checks.
_CAPABILITY = b"security.capability"
ACLS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
_KEPT_XATTRS = ACLS | {_CAPABILITY}

# xattr(7) and linux/limits.h
_XATTR_NAME_MAX = 255
_XATTR_SIZE_MAX = 65536
# linux/capability.h: revision to size of the attribute. Revision 1 is read by nobody any more.
_CAPABILITY_SIZES = {2: 20, 3: 24}

# What the kernel says when an entry, rather than the host, is at fault.
_ENTRY_AT_FAULT = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.EXDEV,
        errno.EFBIG,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.EOVERFLOW,
        errno.ERANGE,
        errno.E2BIG,
    )
)


class Place(NamedTuple):
    """Where an entry goes: *name* in *directory*, or what a whiteout hides in it."""

    directory: bytes  # relative to the root, clean
    name: bytes
    hidden: Whiteout | None


def clean(name: bytes) -> tuple[bytes, bytes]:
    """Return directory and last component of *name*, free of ``.`` and ``..``, relative to the root.

    ``..`` takes back the component before it and stops at the root, as in Go's ``path.Clean("/" + name)``. The root
    itself is two empty names.
    """
    if name.startswith(b"./"):
        name = name[2:]
    name = name.rstrip(b"/")
    if b"//" in name or b"/." in name or name[:1] in (b"/", b".", b""):
        components: list[bytes] = []
        for component in name.split(b"/"):
            if component == b"..":
                del components[-1:]
            elif component not in (b"", b"."):
                components.append(component)
        name = b"/".join(components)
    directory, _, last = name.rpartition(b"/")
    return directory, last


def placed(name: bytes) -> Place | None:
    """Return where the entry *name* goes; None for what does not count: the root itself, and AUFS metadata.

    Raises:
        InvalidArgument: a whiteout that hides nothing possible, or an entry below a whiteout.
    """
    directory, last = clean(name)
    if not last:
        return None
    if b"/.wh." in directory or directory.startswith(whiteout.PREFIX):
        _refuse_below_whiteout(directory)
        return None
    if not last.startswith(whiteout.PREFIX):
        return Place(directory, last, None)
    hidden = whiteout.parse(last)
    return None if hidden is None else Place(directory, last, hidden)


def _refuse_below_whiteout(directory: bytes) -> None:
    for component in directory.split(b"/"):
        if component.startswith(whiteout.PREFIX) and whiteout.parse(component) is not None:
            raise InvalidArgument(f"layer entry in {directory!r}: a whiteout is not a directory")


def join(directory: bytes, name: bytes) -> bytes:
    """Return the path of *name* in *directory*; ``b""`` is the root."""
    return directory + b"/" + name if directory else name


def walk(path: bytes, step: Callable[[list[bytes], bytes], bytes | None]) -> list[bytes]:
    """Return the components of *path* without links, going from one to the next inside the tree.

    ``step(done, component)`` returns where *component* in the link-free directory *done* links to, and None if it is a
    directory itself; its errors pass through. Links are interpreted with the tree's root as "/".

    Raises:
        InvalidArgument: it is nested too deeply.
        OSError: too many links.
    """
    done: list[bytes] = []
    todo = path.split(b"/")[::-1]
    links = 0
    while todo:
        component = todo.pop()
        if component in (b"", b"."):
            continue
        if component == b"..":
            del done[-1:]
            continue
        link = step(done, component)
        if link is None:
            done.append(component)
            check_depth(len(done))
            continue
        links += 1
        if links > MAX_LINKS:
            raise os_error(errno.ELOOP)
        if link.startswith(b"/"):
            done.clear()
        todo += link.split(b"/")[::-1]
    return done


def check_depth(depth: int) -> None:
    """Refuse a directory that is *depth* levels below the root if that is too many. Raises InvalidArgument."""
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"layer: directories nested more than {MAX_DEPTH} deep")


def check_device(name: bytes, kind: Kind, major: int, minor: int) -> None:
    """Refuse a device that no layer may bring, or that Linux has no number for. Raises InvalidArgument."""
    if kind is Kind.CHARACTER_DEVICE and major == minor == 0:
        raise InvalidArgument(f"layer entry {name!r} is device 0:0, overlayfs' own mark for a deleted file")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise InvalidArgument(f"layer entry {name!r} is device {major}:{minor}, which Linux has no number for")


def kept_xattrs(name: bytes, xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those of the extended attributes that a file or directory gets.

    Raises:
        InvalidArgument: setxattr(2) would refuse one.
    """
    kept = {key: value for key, value in xattrs.items() if is_kept(key)}
    for key, value in kept.items():
        if key == b"user." or b"\0" in key or len(key) > _XATTR_NAME_MAX or len(value) > _XATTR_SIZE_MAX:
            raise InvalidArgument(f"layer entry {name!r}: extended attribute {key[:64]!r} is too long or has no name")
        if key == _CAPABILITY and not _is_capability(value):
            raise InvalidArgument(f"layer entry {name!r}: its security.capability is not one")
    return kept


def is_kept(key: bytes) -> bool:
    """Whether the extended attribute *key* is one that a file in a layer may have."""
    return key in _KEPT_XATTRS or (key.startswith(b"user.") and not key.startswith(b"user.overlay."))


def _is_capability(value: bytes) -> bool:
    return len(value) >= 4 and len(value) == _CAPABILITY_SIZES.get(struct.unpack_from("<I", value)[0] >> 24)


def os_error(code: int) -> OSError:
    """Return the OSError of errno *code*."""
    return OSError(code, os.strerror(code))


def refused(exc: OSError, name: bytes, kind: Kind, link: bytes) -> Exception:
    """Return what *exc*, met at the entry *name*, means for the layer. *link* is where a hard link points."""
    subject = f"layer entry {name!r} ({kind})"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"{subject}: {exc.strerror}; free space or inodes where the snapshots are, and retry")
    if exc.errno in (errno.EEXIST, errno.ENOTEMPTY):  # not AlreadyExists, which callers take for a finished layer
        return Aborted(f"{subject}: somebody else changes the snapshot meanwhile")
    if exc.errno in _ENTRY_AT_FAULT:
        target = f" to {link!r}" if kind is Kind.HARD_LINK else ""
        return InvalidArgument(f"{subject}{target}: {exc.strerror}")
    return from_os_error(exc, subject)
