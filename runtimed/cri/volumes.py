"""Volumes that an image declares: directories of the container's own that begin with what the image has there.

An image says where in its ``Volumes`` and by its links: both are hostile (CVE-2022-23648), so the path is looked up
with the image's root as the root, and nothing outside of it can be meant.
"""

import errno
import os
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.cri.namespaces import user_mappings
from runtimed.errors import InvalidArgument, os_errors
from runtimed.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2
from runtimed.snapshots.copying import copy_tree_of


def make(root: Path, path: str, target: Path, sandbox_config: pb.PodSandboxConfig) -> Path:
    """Make the directory *target* with the content of *path* in the root file system at *root*; return it. Blocks.

    Owner and mode are those of the image's directory; of one that is missing, root in the container and 0755.

    Raises:
        InvalidArgument: the image has something else there than a directory.
    """
    with os_errors(f"volume {path}"):
        target.mkdir(mode=0o755, parents=True)
        fd = _opened(root, path)
        if fd is None:
            uids, gids = user_mappings(sandbox_config.linux.security_context.namespace_options)
            if uids:
                os.chown(target, uids[0].host_id, gids[0].host_id)
            return target
        try:
            copy_tree_of(fd, target)
        finally:
            os.close(fd)
    return target


def _opened(root: Path, path: str) -> int | None:
    """Return the image's directory *path*, open; None if there is nothing."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
        return openat2(os.fsencode(path.lstrip("/")), flags, dir_fd=root_fd, resolve=resolve)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in {errno.ENOTDIR, errno.ELOOP, errno.EXDEV}:
            raise InvalidArgument(f"volume {path[:128]}: the image has no directory there: {exc.strerror}") from None
        raise
    finally:
        os.close(root_fd)
