"""Plugins that the daemon starts itself: programs in a directory, named INDEX-NAME, as ``10-logger``."""

import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimed.errors import FailedPrecondition, InvalidArgument, os_errors
from runtimed.nri.connection import Identity
from runtimed.threads import blocking

_MAX_CONFIG = 1 << 20  # bytes
_ENDS_WITHIN_MS = 1000  # once it was told to, until it is killed
_SOCKET = 3  # the descriptor by which it is connected
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores, and a program would go on to ignore
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Program:
    """A plugin to launch, and what it is configured by."""

    path: Path
    identity: Identity
    config: str


def programs(directory: Path, config_directory: Path) -> tuple[list[Program], list[str]]:
    """Return the plugins of *directory* in order, and what is wrong with other executable files there. Blocks."""
    found: list[Program] = []
    wrong: list[str] = []
    if not directory.is_dir():
        return found, wrong
    for path in sorted(directory.iterdir()):
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        index, _, name = path.name.partition("-")
        try:
            identity = Identity(index, name).check()
            found.append(Program(path, identity, _config(config_directory, identity)))
        except (InvalidArgument, FailedPrecondition) as exc:
            wrong.append(f"{path}: {exc}")
    return found, wrong


def _config(directory: Path, identity: Identity) -> str:
    """Return the file INDEX-NAME.conf, else NAME.conf, else "". Raises FailedPrecondition: it cannot be read."""
    for name in (f"{identity}.conf", f"{identity.name}.conf"):
        path = directory / name
        if not path.exists():
            continue
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_CONFIG + 1)
            if len(data) > _MAX_CONFIG:
                raise FailedPrecondition(f"{path}: is longer than {_MAX_CONFIG} bytes")
            return data.decode()
        except (OSError, UnicodeDecodeError) as exc:
            raise FailedPrecondition(f"{path}: cannot be read: {exc}") from None
    return ""


class Process:
    """A plugin that runs, and our end of its connection."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock

    async def end(self) -> None:
        """Wait a moment for its end, which closing its connection brings; kill it and what it has started then."""
        self.sock.close()
        await blocking(self._end)

    def _end(self) -> None:
        with suppress(OSError):  # no descriptor is left: it is killed without a moment
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(_ENDS_WITHIN_MS)
            finally:
                os.close(pidfd)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def launch(program: Program) -> Process:
    """Start a plugin, connected by its descriptor 3. Blocks for as long as the kernel needs to start a program.

    Raises:
        RuntimedError: it cannot be run.
    """
    with os_errors(f"NRI plugin {program.path}"):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    environment = {
        "PATH": _PATH,
        "NRI_PLUGIN_NAME": program.identity.name,
        "NRI_PLUGIN_IDX": program.identity.index,
        "NRI_PLUGIN_SOCKET": str(_SOCKET),
    }
    streams = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    connected = (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET)
    try:
        with os_errors(f"NRI plugin {program.path}"):
            pid = os.posix_spawn(
                program.path,
                [str(program.path)],
                environment,
                file_actions=[*streams, connected],
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        return Process(pid, ours)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
