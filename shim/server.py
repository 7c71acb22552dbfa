"""A shim's process: what it is set up to be, its socket, its end."""

import _socket  # not socket, whose wrappers cost each shim 0.1 MB of memory
import errno
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from runtimed.linux import process
from shim import failpoints, files, log, loop, poller, ttrpc
from shim.events import Publisher
from shim.exits import Children, Exit
from shim.handover import Handover
from shim.keeper import Start
from shim.link import Link
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


def become() -> None:
    """Turn a process that was forked a moment ago into a keeper; what is there already is in order. Raises OSError."""
    os.setsid()
    process.set_child_subreaper()


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


def work(first: Callable[[], tuple[Settings, _socket.socket]], start: Start) -> None:
    """Serve until the shim is shut down, as its worker; *first* gives the first one what to serve, and where."""
    failpoints.arm()
    settings, sock = first() if start.state < 0 else (None, None)
    if settings is not None:
        start.link.say("chdir", settings.bundle)
        process.set_name("runtimed-shim")
    handover = Handover(start)

    async def main() -> None:
        shim = Shim(settings, sock, start.keeper) if settings and sock else handover.restored()
        shim.attach(start.link)
        handover.keep(shim)
        await shim.serve()

    try:
        loop.run(main(), handover)
    except Exception as exc:
        log.exception("the shim failed", exc)
        raise
    finally:
        if handover.root is not None:
            handover.root.unlink()


class Shim:
    """What a shim is made of, wherever it is at work. *pid* is its keeper's."""

    def __init__(self, settings: Settings, sock: _socket.socket, pid: int) -> None:
        self._socket_path = settings.socket_path
        self._children = Children()
        self._publisher = Publisher(settings.ttrpc_address, settings.namespace)
        self._tasks = TaskService(settings.namespace, settings.runc_root, self._children, self._publisher, pid)
        names = ("containerd.task.v3.Task", "containerd.task.v2.Task", "runtimed.shim.v1.Attach")
        self._server = ttrpc.Server(dict.fromkeys(names, self._tasks))
        self._server.serve(sock)
        self._was_alone = self._is_alone
        self._look_again = monotonic() + _FORGOTTEN_S

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_was_alone": self._was_alone and self._is_alone}

    @property
    def patience_s(self) -> float | None:
        """For how long a shim with nothing to do may rest; None is for ever."""
        look_again = self._look_again if self._is_alone else inf
        until = min(self._server.next_deadline, self._publisher.next_try, look_again)
        return None if until == inf else max(0.0, until - monotonic())

    @property
    def children(self) -> list[int]:
        """The worker's own children that go on while it rests."""
        return self._children.lasting

    def attach(self, link: Link) -> None:
        """Begin to talk with the keeper, until the end of :meth:`serve`."""
        self._children.link = link
        poller.add_reader(link.fileno(), lambda: link.hear(self._hear), resumable=True)

    async def serve(self) -> None:
        """Return when the shim is shut down or was forgotten; nobody can connect by then, and all events are sent."""
        shutdown = self._tasks.shutdown
        while not shutdown.is_set():
            with suppress(TimeoutError), loop.timeout(max(0.0, self._look_again - monotonic()), resumable=True):
                await shutdown.wait()
            if monotonic() >= self._look_again:
                if self._was_alone and self._is_alone:
                    break
                self._was_alone = self._is_alone
                self._look_again = monotonic() + _FORGOTTEN_S

        self.unlink()  # from here on nobody should come
        await self._publisher.close(_FLUSH_LIMIT_S)
        self._server.close()
        if self._children.link is not None:
            poller.remove_reader(self._children.link.fileno())

    def unlink(self) -> None:
        """Remove the socket's file, which need not be there."""
        files.remove(self._socket_path)

    @property
    def _is_alone(self) -> bool:
        return not (self._server.connections or self._tasks.has_tasks)

    def _hear(self, words: list[bytes]) -> None:
        if words[0] == b"terminate":
            # With tasks it stays: a service manager that stops the daemon's unit must not stop the containers' keepers.
            if not self._tasks.has_tasks:
                self._tasks.shutdown.set()
        elif words[0] == b"lost":
            self._children.lost(int(words[1]))
        else:
            _, pid, status, at = words
            self._children.ended(int(pid), Exit(int(status), int(at)))
