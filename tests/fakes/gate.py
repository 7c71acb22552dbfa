"""A TCP forwarder to a registry that stops in the middle: for tests of what happens while bytes are on their way."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Forwards to *target*; a connection over which ``limit`` bytes came back is held until :meth:`open`."""

    def __init__(self, target: tuple[str, int], limit: int) -> None:
        self._target = target
        self._limit = limit
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self.reached = threading.Event()  # a connection is held: the other side waits for more
        self.passed = 0  # bytes that came back
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []

    def open(self) -> None:
        """Let everything pass from now on."""
        self._opened.set()

    def start(self) -> None:
        self._threads[0].start()

    def close(self) -> None:
        """End every connection and thread."""
        self.open()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._sockets:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._target)
            self._sockets += [client, upstream]
            for source, sink, counted in ((client, upstream, False), (upstream, client, True)):
                thread = threading.Thread(target=self._forward, args=(source, sink, counted))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        own = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    own += len(data)
                    with self._lock:
                        self.passed += len(data)
                    if own > self._limit and not self._opened.is_set():
                        self.reached.set()
                        self._opened.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def gate(host: str, *, limit: int) -> Iterator[Gate]:
    """Stand before the registry at *host* (``127.0.0.1:PORT``) and hold each connection after *limit* bytes."""
    name, port = host.rsplit(":", 1)
    forwarder = Gate((name, int(port)), limit)
    forwarder.start()
    try:
        yield forwarder
    finally:
        forwarder.close()
