"""The terminal of a process.

The OCI runtime makes the terminal inside the container and sends its master over a unix socket (OCI runtime-spec
config.md, "process.terminal"; runc's docs/terminals.md). The shim copies between master and the client's FIFOs.
"""

import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress
from types import TracebackType
from typing import Self

from runtimed.errors import Internal, os_errors
from shim import stdio
from shim.sinks import Sinks

_MAX_SIZE = 0xFFFF  # of struct winsize


class ConsoleSocket:
    """The socket on which the runtime delivers the master; in the bundle for as long as the ``with`` block lasts."""

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = f"{name}.console"

    def __enter__(self) -> Self:
        with os_errors(f"console socket in {self._directory}"):
            self._dir_fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._unlink()
                os.fchmod(self._socket.fileno(), 0o600)
                self._socket.bind(self.path)
                self._socket.listen(1)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        self._unlink()
        os.close(self._dir_fd)

    @property
    def path(self) -> str:
        """The socket's path, by way of a descriptor: that of a bundle may exceed the 107 bytes a socket's may have."""
        return f"/proc/{os.getpid()}/fd/{self._dir_fd}/{self._name}"

    def receive(self) -> int:
        """Return the master, which the caller closes. Call it when the runtime has ended: it sends before that.

        Raises:
            Internal: the runtime sent none.
        """
        try:
            connection, _ = self._socket.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            fds = []
        except OSError as exc:
            raise Internal(f"the terminal's master did not arrive: {exc.strerror}") from exc
        if not fds:
            raise Internal("the OCI runtime sent no terminal, though the process asks for one")
        for extra in fds[1:]:
            os.close(extra)
        os.set_blocking(fds[0], False)
        return fds[0]

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._dir_fd)


class Terminal:
    """The client's side of a terminal: input and output, and the master between them once there is one."""

    def __init__(self, paths: stdio.Paths, sinks: Sinks) -> None:
        self._output = sinks.output(paths.stdout, "stdout")
        self._input_path = ""
        self._source = stdio.Source()
        self._master = -1
        self._taking: stdio.Taking | None = None
        self._size: tuple[int, int] | None = None
        try:
            if paths.stdin:
                self._input_path = stdio.checked_fifo(paths.stdin)
        except BaseException:
            self._output.close()
            raise

    def attach(self, master: int) -> None:
        """Take over *master* and begin to copy its output."""
        self._master = master
        if self._size is not None:
            self.resize(*self._size)
        self._taking = self._output.take(master)

    def handed_over(self) -> None:
        """Nothing: the process has its ends from the runtime."""

    def start(self) -> None:
        """Begin to copy input. Raises InvalidArgument if its FIFO has gone meanwhile."""
        if self._input_path and self._master >= 0:
            self._source.open(self._input_path)
            self._source.pump_to(self._master, splice=False)

    def resize(self, width: int, height: int) -> None:
        """Set the size in characters; before there is a master, the size it will get."""
        self._size = (width, height)
        if self._master >= 0:
            size = struct.pack("HHHH", min(height, _MAX_SIZE), min(width, _MAX_SIZE), 0, 0)
            with os_errors("terminal"):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close_client(self) -> None:
        """Stop reading when no client has the input open any more. A terminal has no end of input to pass on."""
        self._source.let_go()

    async def drained(self) -> None:
        """Wait until the client has been given everything that the process has written."""
        if self._taking is not None:
            await self._taking.ended.wait()

    def close(self) -> None:
        self._source.close()
        if self._taking is not None:
            self._taking.stop()
        self._output.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
