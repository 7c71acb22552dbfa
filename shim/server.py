"""A shim's process: what it is set up to be, its socket, its end."""

import _socket  # not socket, whose wrappers cost each shim 0.1 MB of memory
import errno
import os
import signal
from collections.abc import Collection
from contextlib import suppress

from runtimed.linux import process
from shim import failpoints, log, loop, ttrpc
from shim.events import Publisher
from shim.exits import Children
from shim.options import DEFAULT_ROOT
from shim.task import TaskService

# Seconds for the events that are still queued when the shim is to end.
_FLUSH_LIMIT_S = 3.0
# A shim that has no task and nobody connected for this long was forgotten, by a daemon that died between the start of
# the shim and its first call, say.
_FORGOTTEN_S = 60.0


class Settings:
    """What a shim is told when it is started."""

    __slots__ = ("bundle", "debug", "id", "namespace", "runc_root", "socket_path", "ttrpc_address")

    def __init__(
        self,
        id: str,
        namespace: str,
        bundle: str,
        socket_path: str,
        ttrpc_address: str = "",  # where events go; "" sends none
        runc_root: str = DEFAULT_ROOT,
        debug: bool = False,
    ) -> None:
        self.id = id
        self.namespace = namespace
        self.bundle = bundle
        self.socket_path = socket_path
        self.ttrpc_address = ttrpc_address
        self.runc_root = runc_root
        self.debug = debug


def listen(path: str) -> _socket.socket:
    """Return a socket that listens on *path* with mode 0600, in place of one that was left there.

    Raises:
        OSError: somebody listens on *path* already (EADDRINUSE), or it cannot be bound.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
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
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except BlockingIOError:
        return True  # with a full queue
    except OSError:
        return False
    finally:
        probe.close()
    return True


def become(settings: Settings) -> None:
    """Turn a process that was forked a moment ago into a shim; what is there already is in order. Raises OSError."""
    os.setsid()
    os.chdir(settings.bundle)
    process.set_child_subreaper()
    process.set_name("runtimed-shim")
    failpoints.arm()


def detach(keep: Collection[int], *, stderr: bool = True) -> None:
    """Leave what was inherited by accident: descriptors but those to *keep*, *stderr* if so wished, signals, umask."""
    os.umask(0o022)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process.close_fds(keep)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2) if stderr else (0, 1):
        os.dup2(null, fd)
    os.close(null)


def run(settings: Settings, sock: _socket.socket) -> None:
    """Serve until the shim is shut down."""
    try:
        loop.run(_serve(settings, sock))
    except Exception as exc:
        log.exception("the shim failed", exc)
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(settings.socket_path)  # noqa: PTH108 - a string all the way


async def _serve(settings: Settings, sock: _socket.socket) -> None:
    children = Children()
    children.reap_orphans()
    publisher = Publisher(settings.ttrpc_address, settings.namespace)
    tasks = TaskService(settings.namespace, settings.runc_root, children, publisher)
    server = ttrpc.Server({"containerd.task.v3.Task": tasks, "containerd.task.v2.Task": tasks})
    server.serve(sock)

    def terminate() -> None:
        # With tasks it stays: a service manager that stops the daemon's unit must not stop the containers' keepers.
        if not tasks.has_tasks:
            tasks.shutdown.set()

    loop.on_signal(signal.SIGTERM, terminate)
    while not tasks.shutdown.is_set():
        was_alone = not (server.connections or tasks.has_tasks)
        with suppress(TimeoutError), loop.timeout(_FORGOTTEN_S):
            await tasks.shutdown.wait()
        if was_alone and not (server.connections or tasks.has_tasks):
            break

    with suppress(FileNotFoundError):
        os.unlink(settings.socket_path)  # noqa: PTH108 - from here on nobody should come
    await publisher.close(_FLUSH_LIMIT_S)
    server.close()
