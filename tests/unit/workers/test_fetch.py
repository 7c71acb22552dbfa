import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from runtimed.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from runtimed.workers import fetch as fetching
from runtimed.workers import parts, transport
from runtimed.workers.fetch import fetch
from runtimed.workers.jobs import Fetch
from runtimed.workers.tls import Tls
from runtimed.workers.transport import Connection, Place

BLOB = os.urandom(3_000_000)
SIZE = len(BLOB)
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()

Answer = Callable[[BaseHTTPRequestHandler], None]


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away in the middle are what some tests are about


class Server:
    """An HTTP server that answers as the test says, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.host = f"127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def serving() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answer(
    request: BaseHTTPRequestHandler, status: int, body: bytes = b"", length: int | None = None, **headers: str
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


def serve_ranges(request: BaseHTTPRequestHandler) -> None:
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    if start:
        answer(request, 206, BLOB[start:], Content_Range=f"bytes {start}-{SIZE - 1}/{SIZE}")
    else:
        answer(request, 200, BLOB)


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "data"
    path.touch()

    def make(url: str, *, offset: int = 0, digest: str = DIGEST, size: int = SIZE, **headers: str) -> Fetch:
        path.write_bytes(BLOB[:offset])
        return Fetch(url, headers, path, offset, size, digest)

    make.path = path  # type: ignore[attr-defined]
    return make


def run(job: Fetch) -> list[int]:
    reports: list[int] = []
    done = fetch(job, reports.append)
    assert (done.digest, done.size) == (job.digest, job.size)
    return reports


@pytest.mark.parametrize("offset", [0, 1, 1 << 20, SIZE - 1])
def test_a_blob_is_fetched_from_where_it_stopped(serving, job, offset):
    server = serving(serve_ranges)
    reports = run(job(f"{server.url}/v2/x/blobs/{DIGEST}?a=b", offset=offset, Authorization="Bearer t"))
    assert job.path.read_bytes() == BLOB
    [request] = server.requests
    assert (request["path"], request["authorization"]) == (f"/v2/x/blobs/{DIGEST}?a=b", "Bearer t")
    assert request.get("range") == (f"bytes={offset}-" if offset else None)
    assert reports
    assert reports == sorted(reports)
    assert offset < reports[0] <= SIZE


def test_a_complete_file_is_only_checked(serving, job):
    server = serving(serve_ranges)
    assert run(job(server.url, offset=SIZE)) == []
    assert server.requests == []


def test_an_empty_blob_needs_no_request(job):
    run(job("http://127.0.0.1:1/", size=0, digest="sha256:" + hashlib.sha256(b"").hexdigest()))


def test_what_lies_beyond_the_offset_is_dropped(serving, job):
    server = serving(serve_ranges)
    work = job(server.url, offset=1000)
    job.path.write_bytes(BLOB[:1000] + b"garbage")
    run(work)
    assert job.path.read_bytes() == BLOB


def test_a_server_without_ranges_starts_again(serving, job):
    server = serving(lambda request: answer(request, 200, BLOB))
    run(job(server.url, offset=1 << 20))
    assert job.path.read_bytes() == BLOB


def test_a_range_that_cannot_be_satisfied_starts_again(serving, job):
    server = serving(lambda request: answer(request, 416) if "Range" in request.headers else answer(request, 200, BLOB))
    run(job(server.url, offset=1 << 20))
    assert len(server.requests) == 2
    assert job.path.read_bytes() == BLOB


def test_a_body_without_a_length_is_taken(serving, job):
    def serve(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(BLOB)

    run(job(serving(serve).url))
    assert job.path.read_bytes() == BLOB


def test_another_algorithm_is_another_digest(serving, job):
    run(job(serving(serve_ranges).url, offset=5, digest="sha512:" + hashlib.sha512(BLOB).hexdigest()))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (204, FailedPrecondition),
        (418, FailedPrecondition),
        (416, FailedPrecondition),
    ],
)
def test_a_refusal_names_the_host_and_the_status(serving, job, status, error):
    server = serving(lambda request: answer(request, status))
    with pytest.raises(error, match=f"{server.host} answered {status}"):
        run(job(server.url))


@pytest.mark.parametrize(
    "value", ["", "bytes 0-5/6", "bytes 10-2999999/9999999", "bytes 11-2999999/*", "x", "bytes -1-5/6"]
)
def test_another_range_than_the_one_asked_for_is_refused(serving, job, value):
    server = serving(lambda request: answer(request, 206, BLOB[10:], Content_Range=value))
    with pytest.raises(FailedPrecondition, match="range"):
        run(job(server.url, offset=10))
    assert job.path.read_bytes() == BLOB[:10]


def test_a_short_body_keeps_what_came(serving, job):
    server = serving(lambda request: answer(request, 200, BLOB[:2_000_000], length=SIZE))
    with pytest.raises(Unavailable, match=f"{server.host} closed the connection after 2000000 of {SIZE} bytes"):
        run(job(server.url))
    assert job.path.read_bytes() == BLOB[:2_000_000]


def test_a_reset_connection_keeps_what_came(serving, job):
    def serve(request: BaseHTTPRequestHandler) -> None:
        answer(request, 200, BLOB[:500_000], length=SIZE)
        request.wfile.flush()
        sent.wait()
        linger_off = b"\1\0\0\0\0\0\0\0"
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)
        request.connection.close()

    sent = threading.Event()
    with pytest.raises(Unavailable, match="try again"):
        fetch(job(serving(serve).url), lambda offset: sent.set())
    assert BLOB.startswith(job.path.read_bytes())


def test_a_body_that_says_it_is_longer_is_refused(serving, job):
    server = serving(lambda request: answer(request, 200, BLOB + b"more"))
    with pytest.raises(FailedPrecondition, match="3000004 more bytes"):
        run(job(server.url))


def test_an_endless_body_is_cut_off(serving, job):
    def serve(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(BLOB)
        except OSError:
            pass

    with pytest.raises(FailedPrecondition, match=f"more than the {SIZE} bytes"):
        run(job(serving(serve).url))
    assert job.path.stat().st_size <= SIZE


def test_other_bytes_than_the_digest_says_leave_nothing_to_resume_from(serving, job):
    server = serving(lambda request: answer(request, 200, bytes(SIZE)))
    with pytest.raises(FailedPrecondition, match=f"not {DIGEST}"):
        run(job(server.url))
    assert job.path.read_bytes() == b""


def test_bytes_that_were_wrong_before_the_resume_are_noticed(serving, job):
    work = job(serving(serve_ranges).url, offset=1000)
    job.path.write_bytes(bytes(1000))
    with pytest.raises(FailedPrecondition, match="digest"):
        run(work)


@pytest.mark.parametrize("offset", [-1, SIZE + 1])
def test_an_offset_outside_the_blob_is_refused(job, offset):
    with pytest.raises(OutOfRange):
        run(Fetch("http://127.0.0.1:1/", {}, job("").path, offset, SIZE, DIGEST))


def test_an_offset_past_what_is_there_is_refused(job):
    work = job("http://127.0.0.1:1/", offset=10)
    job.path.write_bytes(b"")
    with pytest.raises(OutOfRange):
        run(work)


def test_nobody_listening_is_unavailable(job):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: .*refused"):
            run(job(f"http://127.0.0.1:{port}/"))


def test_silence_is_unavailable(serving, job, monkeypatch):
    monkeypatch.setattr(transport, "_READ_TIMEOUT_S", 0.1)
    over = threading.Event()
    server = serving(lambda request: over.wait() and None)
    try:
        with pytest.raises(Unavailable, match="timed out"):
            run(job(server.url))
    finally:
        over.set()


def test_a_trickle_is_unavailable(serving, job, monkeypatch):
    monkeypatch.setattr(fetching, "WINDOW_S", 0.05)

    def serve(request: BaseHTTPRequestHandler) -> None:
        answer(request, 200, length=SIZE)
        try:
            while not over.wait(0.01):
                request.wfile.write(b"x")
        except OSError:
            pass

    monkeypatch.setattr(fetching, "MIN_RATE", 1 << 20)
    over = threading.Event()
    try:
        with pytest.raises(Unavailable, match="bytes a second"):
            run(job(serving(serve).url))
    finally:
        over.set()


@pytest.mark.parametrize(
    "body", [b"nonsense\r\n\r\n", b"HTTP/1.1 2000 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, b""]
)
def test_nonsense_is_unavailable(serving, job, body):
    server = serving(lambda request: request.wfile.write(body) and None)
    with pytest.raises(Unavailable, match=server.host):
        run(job(server.url))


@pytest.mark.parametrize(
    "url", ["", "ftp://x/y", "file:///etc/passwd", "http://", "http://u:p@host/", "http://h:99999/", "http://[x/"]
)
def test_only_plain_urls_are_fetched(job, url):
    with pytest.raises(InvalidArgument, match="URL"):
        run(job(url))


def test_a_token_that_would_make_another_header_is_refused_and_not_shown(serving, job):
    server = serving(serve_ranges)
    with pytest.raises(InvalidArgument, match="control characters") as caught:
        run(job(server.url, Authorization="Bearer secret\r\nX: y"))
    assert "secret" not in str(caught.value)
    assert server.requests == []


# -- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_gets_no_credentials(serving, job, status):
    storage = serving(serve_ranges)
    registry = serving(lambda request: answer(request, status, Location=f"{storage.url}/blob?signature=s"))
    # The last is what a client or hosts.toml may give: what such a header holds nobody knows but who gave it.
    run(job(registry.url, offset=7, Authorization="Bearer t", Cookie="c", Accept="*/*", X_Key="hush"))
    assert registry.requests[0]["authorization"] == "Bearer t"
    assert registry.requests[0]["x_key"] == "hush"
    [request] = storage.requests
    assert (request["path"], request["range"], request["accept"]) == ("/blob?signature=s", "bytes=7-", "*/*")
    assert not {"authorization", "cookie", "x_key"} & request.keys()


def test_a_redirect_on_the_same_host_keeps_credentials(serving, job):
    def serve(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/there":
            serve_ranges(request)
        else:
            answer(request, 307, Location="/there")

    server = serving(serve)
    run(job(server.url, Authorization="Bearer t"))
    assert server.requests[1]["authorization"] == "Bearer t"


def test_credentials_do_not_come_back_after_another_host(serving, job):
    def serve(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/back":
            serve_ranges(request)
        else:
            answer(request, 307, Location=other.url)

    registry = serving(serve)
    other = serving(lambda request: answer(request, 307, Location=f"{registry.url}/back"))
    run(job(registry.url, Authorization="Bearer t"))
    assert "authorization" not in registry.requests[1]


def test_redirects_in_circles_end(serving, job):
    server = serving(lambda request: answer(request, 307, Location="/"))
    with pytest.raises(Unavailable, match="redirects"):
        run(job(server.url))
    assert len(server.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/", "http://u:p@x/"])
def test_a_redirect_to_something_else_is_refused(serving, job, location):
    server = serving(lambda request: answer(request, 307, Location=location))
    with pytest.raises(InvalidArgument, match="URL"):
        run(job(server.url))


def test_a_redirect_from_https_to_http_is_refused():
    place = Place("https://r.example/x", {}, Tls())
    with pytest.raises(PermissionDenied, match=r"r\.example redirects from https"):
        place.redirected("http://r.example/x", False)


def test_a_redirect_elsewhere_takes_no_client_certificate_and_verifies():
    tls = Tls(skip_verify=True, authorities=("/ca.pem",), identities=(("/c.pem", ""),))
    place = Place("https://r.example/x", {"Authorization": "t", "Range": "bytes=1-"}, tls)
    there = place.redirected("https://r.example:8443/y", False)
    assert there == Place("https://r.example:8443/y", {"Range": "bytes=1-"}, Tls(authorities=("/ca.pem",)), False)
    assert place.redirected("https://r.example:443/y", False).tls == tls


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    with socket.create_server((address, 0)) as server, socket.create_connection(server.getsockname()[:2]) as client:
        yield client


def test_a_redirect_from_elsewhere_to_this_machine_is_refused():
    with connected("127.0.0.2") as client:
        for was_local in (None, True, False):
            connection = Connection(Place("http://h/", {}, Tls(), was_local))
            connection.sock = client
            if was_local is not False:
                assert connection._check_peer()
                continue
            with pytest.raises(PermissionDenied, match="this machine"):
                connection._check_peer()


# -- whoever goes on without an end


def endless(request: BaseHTTPRequestHandler, begin: bytes, piece: bytes) -> None:
    try:
        request.wfile.write(begin)
        while True:
            request.wfile.write(piece)
    except OSError:
        pass


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (CHUNKED, b"a: b\r\n")],
    ids=["interim answers", "trailers"],
)
def test_what_never_becomes_a_body_is_ended(serving, job, monkeypatch, begin, piece):
    monkeypatch.setattr(fetching, "WINDOW_S", 0.05)
    server = serving(lambda request: endless(request, begin, piece))
    with pytest.raises(Unavailable, match=f"{server.host} sends less than"):
        run(job(server.url))


# -- parts of a blob that comes slowly over one connection


@pytest.fixture
def in_parts(monkeypatch):
    """Any blob counts as large and any connection as slow."""
    monkeypatch.setattr(fetching, "_WORTH_PARTS", 1 << 20)
    monkeypatch.setattr(fetching, "_JUDGED_AFTER_S", 0.0)
    monkeypatch.setattr(fetching, "_FAST", 1 << 60)
    monkeypatch.setattr(parts, "_PART", 300_000)


def serve_parts(request: BaseHTTPRequestHandler) -> None:
    begin, _, end = request.headers.get("Range", "bytes=0-")[6:].partition("-")
    first, last = int(begin), int(end or SIZE - 1)
    if "Range" in request.headers:
        answer(request, 206, BLOB[first : last + 1], Content_Range=f"bytes {first}-{last}/{SIZE}")
    else:
        answer(request, 200, BLOB, Accept_Ranges="bytes")


def test_a_slow_blob_comes_in_parts(serving, job, in_parts):
    storage = serving(serve_parts)
    registry = serving(lambda request: answer(request, 307, Location=f"{storage.url}/blob"))
    work = msgspec.structs.replace(job(registry.url, Authorization="Bearer t"), connections=3)
    reports = run(work)
    assert job.path.read_bytes() == BLOB
    assert reports == sorted(reports)
    assert len(registry.requests) == 1  # the parts are had where the first answer came from
    ranges = [request.get("range") for request in storage.requests]
    assert len(ranges) >= 10
    assert ranges[0] is None
    assert all("authorization" not in request for request in storage.requests)


@pytest.mark.parametrize("has_accept_ranges", [False, True])
def test_a_registry_that_gives_no_parts_sends_all(serving, job, in_parts, has_accept_ranges):
    extra: dict[str, Any] = {"Accept_Ranges": "bytes"} if has_accept_ranges else {}
    server = serving(lambda request: answer(request, 200, BLOB, **extra))
    run(msgspec.structs.replace(job(server.url), connections=3))
    assert job.path.read_bytes() == BLOB
    if not has_accept_ranges:
        assert len(server.requests) == 1


def test_parts_that_break_off_leave_what_came_in_order(serving, job, in_parts):
    def serve(request: BaseHTTPRequestHandler) -> None:
        begin = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if begin > 1_500_000:
            answer(request, 503, Retry_After="7")
        else:
            serve_parts(request)

    with pytest.raises(Unavailable, match="503") as caught:
        run(msgspec.structs.replace(job(serving(serve).url), connections=3))
    assert caught.value.retry_after_s == 7
    there = job.path.read_bytes()
    assert BLOB.startswith(there)
    assert len(there) >= 1_200_000


@pytest.mark.parametrize(
    ("status", "spoil", "error"),
    [
        (206, lambda part: bytes(len(part)), FailedPrecondition),  # other content than the first answer began
        (206, lambda part: part[1:], FailedPrecondition),
        (206, lambda part: part + b"x", FailedPrecondition),
        (403, lambda part: b"", Unavailable),  # a signature that has expired
        (401, lambda part: b"", Unauthenticated),  # a token that has
        (416, lambda part: b"", FailedPrecondition),
    ],
)
def test_parts_that_lie_are_refused(serving, job, in_parts, status, spoil, error):
    def serve(request: BaseHTTPRequestHandler) -> None:
        if "Range" not in request.headers:
            serve_parts(request)
            return
        first, last = map(int, request.headers["Range"][6:].split("-"))
        part = spoil(BLOB[first : last + 1])
        answer(request, status, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{SIZE}")

    with pytest.raises(error):
        run(msgspec.structs.replace(job(serving(serve).url), connections=3))
    assert BLOB.startswith(job.path.read_bytes())
