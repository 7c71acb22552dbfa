"""runc in sealed memory, made once by the warm parent for all its shims.

Before it enters a container runc makes sure that nobody in there can write to its binary (CVE-2019-5736): each
``create`` and ``exec`` makes a copy of it, or a read-only mount, and executes that. When it finds itself in a memfd
with all seals (memfd_create(2), fcntl(2)), which nobody can write to, root included, it need not; that is how runc's
own ``memfd-bind`` spares it the copy. So those two are executed from here.

Only the very file that was copied is: when ``shortcuts`` does not know it any more, because it was replaced, or where
the memory cannot be executed, the one on disk is.
"""

import errno
import fcntl
import os

from shim import shortcuts

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE  # what runc looks for
_COMMANDS = frozenset({"create", "exec"})
_ELF = b"\x7fELF"  # a script would be opened a second time, by its interpreter, when it is closed already
_MOST = 64 << 20  # bytes

# What execve(2) says where a policy (noexec memory, an LSM) or a missing /proc is in the way.
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOEXEC})

_fd = -1


def load(path: str) -> None:
    """Copy the program *path*, if it is one ("" is not) and works from memory. For the warm parent of shims."""
    global _fd
    try:
        fd = _copied(path)
    except OSError:
        return
    if fd >= 0 and shortcuts.version(_path(fd)) == shortcuts.version(path):
        _fd = fd
    elif fd >= 0:
        os.close(fd)


def fds() -> tuple[int, ...]:
    """Return the descriptor that the copy is held by, for a keeper to hold."""
    return (_fd,) if _fd >= 0 else ()


def program(binary: str, command: str) -> str:
    """Return the path of the copy, if it is to be executed in *binary*'s place for *command*; else ""."""
    return _path(_fd) if _fd >= 0 and command in _COMMANDS and shortcuts.is_trusted(binary) else ""


def is_refused(error: OSError) -> bool:
    """Say whether *error* is about the copy, so that the file may do."""
    return error.errno in _REFUSALS


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _copied(path: str) -> int:
    """Return a sealed copy of *path*; -1 if it is nothing to be copied. Raises OSError."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(source).st_size
        if size > _MOST or os.pread(source, len(_ELF), 0) != _ELF:
            return -1
        copy = os.memfd_create("runc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            while os.sendfile(copy, source, None, size):
                pass
            if os.fstat(copy).st_size != size:
                raise OSError(errno.EIO, "the file changes")
            os.fchmod(copy, 0o555)
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(copy)
            raise
        return copy
    finally:
        os.close(source)
