"""A shim's process: what it is set up to be, its socket, its end."""

import asyncio
import errno
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass

from runtimed.linux import process
from runtimed.rpc import ttrpc
from shim.events import Publisher
from shim.exits import Children
from shim.options import DEFAULT_ROOT
from shim.task import TaskService

log = logging.getLogger(__name__)

# Seconds for the events that are still queued when the shim is to end.
_FLUSH_LIMIT_S = 3.0
# A shim that has no task and nobody connected for this long was forgotten, by a daemon that died between the start of
# the shim and its first call, say.
_FORGOTTEN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a shim is told when it is started."""

    id: str
    namespace: str
    bundle: str
    socket_path: str
    ttrpc_address: str = ""  # where events go; "" sends none
    runc_root: str = DEFAULT_ROOT
    debug: bool = False


def listen(path: str) -> socket.socket:
    """Return a socket that listens on *path* with mode 0600, in place of one that was left there.

    Raises:
        OSError: somebody listens on *path* already (EADDRINUSE), or it cannot be bound.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # the file gets the socket's mode: at no time is it open to others
        try:
            sock.bind(path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or is_served(path):
                # Python itself refuses a path that is too long, without an errno.
                raise OSError(exc.errno or errno.ENAMETOOLONG, f"shim socket {path}: {exc.strerror or exc}") from exc
            os.unlink(path)  # noqa: PTH108 - a string all the way
            sock.bind(path)
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


def is_served(path: str) -> bool:
    """Return whether somebody listens on the unix socket *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # with a full queue
        except OSError:
            return False
        return True


def become(settings: Settings, sock: socket.socket) -> None:
    """Turn a process that was forked a moment ago into the shim that serves *sock*. Raises OSError."""
    os.setsid()
    os.chdir(settings.bundle)
    os.umask(0o022)
    process.set_child_subreaper()
    process.set_name("runtimed-shim")
    with suppress(OSError):  # /proc may be read-only, where the daemon is itself in a container
        process.raise_oom_score_adj(1)  # the daemon's plus one
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process.close_fds({sock.fileno()})
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def run(settings: Settings, sock: socket.socket) -> None:
    """Serve until the shim is shut down."""
    _log_to_bundle(debug=settings.debug)
    try:
        # Not asyncio.run: what that does beside costs each shim half a megabyte, and the process ends with the loop.
        asyncio.new_event_loop().run_until_complete(_serve(settings, sock))
    except Exception:
        log.exception("the shim failed")
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(settings.socket_path)  # noqa: PTH108 - a string all the way


async def _serve(settings: Settings, sock: socket.socket) -> None:
    children = Children()
    children.reap_orphans()
    publisher = Publisher(settings.ttrpc_address, settings.namespace)
    tasks = TaskService(settings.namespace, settings.runc_root, children, publisher)
    service = tasks.service()
    server = ttrpc.Server({"containerd.task.v3.Task": service, "containerd.task.v2.Task": service})
    await server.serve(sock)

    def terminate() -> None:
        # With tasks it stays: a service manager that stops the daemon's unit must not stop the containers' keepers.
        if not tasks.has_tasks:
            tasks.shutdown.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    while not tasks.shutdown.is_set():
        was_alone = not (server.connections or tasks.has_tasks)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FORGOTTEN_S):
                await tasks.shutdown.wait()
        if was_alone and not (server.connections or tasks.has_tasks):
            break

    with suppress(FileNotFoundError):
        os.unlink(settings.socket_path)  # noqa: PTH108 - from here on nobody should come
    await publisher.close(_FLUSH_LIMIT_S)
    await server.close()


def _log_to_bundle(*, debug: bool) -> None:
    """Send log records to the FIFO ``log`` in the bundle, where the daemon made one and reads it; else nowhere."""
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):
        handler = _FifoHandler(os.open("log", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)


class _FifoHandler(logging.Handler):
    """Writes lines as containerd's shims do; one that does not fit is lost rather than waited for."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        level = record.levelname.lower()
        with suppress(OSError):
            os.write(self._fd, f'level={level} msg="{quoted}"\n'.encode(errors="replace"))
