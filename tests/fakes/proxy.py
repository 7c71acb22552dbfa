"""An HTTP proxy on loopback that sends whatever it is asked for to one server, and remembers what it was asked."""

import base64
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FakeProxy(ThreadingHTTPServer):
    """*seen* is the request lines, as method and target. All names that it is given stand for *server*."""

    def __init__(self, server: str, user: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = server
        self.seen: list[tuple[str, str]] = []
        self.expected = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away in the middle


class _Handler(BaseHTTPRequestHandler):
    server: FakeProxy

    def do_CONNECT(self) -> None:
        if not self._is_let_in():
            return
        host, _, port = self.server.upstream.partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for one in select.select([*ends], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[one].sendall(data)

    def do_GET(self) -> None:
        if not self._is_let_in():
            return
        parts = urlsplit(self.path)
        connection = http.client.HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        connection.request(self.command, parts._replace(scheme="", netloc="").geturl(), headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    def _is_let_in(self) -> bool:
        self.server.seen.append((self.command, self.path))
        if self.headers.get("Proxy-Authorization", "") == self.server.expected:
            return True
        self.send_error(407)
        return False

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def proxying(server: str, user: str = "") -> Iterator[FakeProxy]:
    """Hold a proxy to *server*; with *user*, ``NAME:PASSWORD``, for that one only."""
    with FakeProxy(server, user) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
