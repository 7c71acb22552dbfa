"""What ``runc start`` and ``runc delete`` do in the plain case, without starting runc: each saves 8 ms of CPU time.

runc writes all that is needed for the two into the container's state directory: ``exec.fifo``, at which the first
process waits until somebody opens it, and ``state.json``, with what there is to give back. They have been so since runc
1.0. Whatever is not exactly as expected here (hooks, systemd, another runtime or a version that nobody has looked at, a
key that one adds) is left to the command, and so is every error: it has the words for it.
"""

import json
import os
import select
import signal
from contextlib import suppress
from typing import Any

from shim import files

_RUNC = "runc"
_VERSIONS = tuple(f"runc version 1.{minor}." for minor in range(5))  # whose ways are known here
_FIFO = "exec.fifo"
_STATE = "state.json"

# Milliseconds. The first process is at its FIFO when create returns, or a few steps before it.
_START_LIMIT_MS = 200

_VERSION_LIMIT_MS = 5000

_PIECE = 4096  # bytes

_trusted: tuple[str, tuple[int, ...]] | None = None  # the path of runc, and what tells whether it has been replaced

_KNOWN = {
    "id",
    "init_process_pid",
    "init_process_start",
    "created",
    "config",
    "rootless",
    "cgroup_paths",
    "namespace_paths",
    "external_descriptors",
    "intel_rdt_path",
}


def learn() -> None:
    """Find out whether the runc on PATH is of a version that is known here. For the warm parent of shims."""
    global _trusted
    paths = (f"{directory}/{_RUNC}" for directory in os.get_exec_path())
    path = next((path for path in paths if os.access(path, os.X_OK)), "")
    with suppress(OSError):
        identity = _identity(path)
        if version(path).startswith(_VERSIONS):
            _trusted = path, identity


def trusted() -> str:
    """Return the path of the runc that :func:`learn` has found to be known here; "" if there is none."""
    return _trusted[0] if _trusted else ""


class Gate:
    """``with``: what holds a created container back, opened as ``runc start`` does.

    It stays open until the block ends: the command that comes instead finds the process still at it.
    """

    def __init__(self, binary: str, state: str, bundle: str) -> None:
        self._path = f"{state}/{_FIFO}"
        self._applies = is_trusted(binary) and not _may_have_hooks(bundle)
        self._fd = -1

    def __enter__(self) -> "Gate":
        if self._applies:
            with suppress(OSError):
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def passed(self) -> bool:
        """Wait for the first process to go through; say whether it has. Blocks, but for a process at work only."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if not poller.poll(_START_LIMIT_MS) or not os.read(self._fd, 1):
            return False
        os.unlink(self._path)  # noqa: PTH108 - by which runc tells started from created
        return True


def delete(binary: str, state: str) -> bool:
    """Give back what runc holds of a container whose first process has ended; say whether all of it is."""
    if not is_trusted(binary):
        return False
    try:
        if os.listdir(state) != [_STATE]:  # noqa: PTH208
            return False
        found = json.loads(files.read(f"{state}/{_STATE}"))
        if not _is_plain(found):
            return False
        for path in found["cgroup_paths"].values():
            with suppress(FileNotFoundError):
                os.rmdir(path)  # noqa: PTH106
        os.unlink(f"{state}/{_STATE}")  # noqa: PTH108
        os.rmdir(state)  # noqa: PTH106
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False  # say, a cgroup that has others in it
    return True


def is_trusted(binary: str) -> bool:
    """Say whether *binary* names the runc that is known here, which nobody has replaced since."""
    if _trusted is None:
        return False
    path, identity = _trusted
    with suppress(OSError):
        return binary in {_RUNC, path} and _identity(path) == identity
    return False


def _identity(path: str) -> tuple[int, ...]:
    found = os.stat(path)  # noqa: PTH116
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def version(path: str) -> str:
    """Return how *path* introduces itself; nothing if it takes too long. Leaves no process."""
    said, saying = os.pipe()
    try:
        pid = os.posix_spawn(path, [path, "--version"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, saying, 1)])
    finally:
        os.close(saying)
    try:
        poller = select.poll()
        poller.register(said, select.POLLIN)
        return os.read(said, _PIECE).decode(errors="replace") if poller.poll(_VERSION_LIMIT_MS) else ""
    finally:
        os.close(said)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # reaped already, where SIGCHLD is ignored
            os.waitpid(pid, 0)


def _is_plain(state: dict[str, Any]) -> bool:
    """Whether a container had no more than cgroups of its own and processes that ended with the first one."""
    config = state["config"]
    return (
        state.keys() <= _KNOWN
        and not state["intel_rdt_path"]
        and not any(config["Hooks"].values())
        and not config["cgroups"]["Systemd"]
        and not config["cgroups"]["Rootless"]
        and {"type": "NEWPID", "path": ""} in config["namespaces"]
    )


def _may_have_hooks(bundle: str) -> bool:
    """Whether config.json has hooks, by its bytes and piece by piece: reading all of it would cost each shim memory."""
    try:
        fd = os.open(f"{bundle}/config.json", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        end = b""
        while piece := os.read(fd, _PIECE):
            text = (end + piece).lower()
            if b"hooks" in text or b"\\u" in text:
                return True
            end = text[-len(b"hooks") :]
        return False
    finally:
        os.close(fd)
