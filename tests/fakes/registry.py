"""FakeRegistry: the pull side of the distribution spec over real HTTP on loopback, with faults to order."""

import base64
import json
import secrets
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.images.layouts import REF_NAME


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Fault:
    """What happens to the next *times* requests of *method* whose path contains *where*, instead of the right thing."""

    where: str
    status: int = 0  # answer with it, and nothing else
    headers: Mapping[str, str] = field(default_factory=dict)  # instead of, or beside, the right ones
    body: bytes | None = None  # instead of the right one
    cut_at: int | None = None  # close the connection after so many bytes of the body
    change: Callable[[bytes], bytes] | None = None  # spoil the body
    gate: threading.Event | None = None  # answer only when it is set, after announcing it by `reached`
    reached: threading.Event = field(default_factory=threading.Event)
    no_ranges: bool = False
    endless: bytes = b""  # a body of this again and again, of no length, until the client has had enough
    method: str = "GET"
    times: int = 1

    def let_go(self) -> None:
        """Open the gate."""
        assert self.gate is not None
        self.gate.set()


class FakeRegistry:
    """Serves what :meth:`add` gave it. A context manager; *host* is what references begin with."""

    def __init__(
        self,
        auth: str = "",
        users: Mapping[str, str] | None = None,
        certificate: Path | None = None,
        client_authority: Path | None = None,
    ) -> None:
        """Want no authorization, or ``basic``, or ``bearer`` (anonymous tokens, unless there are *users*).

        With *certificate*, a PEM file of certificate and key, it speaks TLS; with *client_authority* only to who has a
        certificate of that.
        """
        self._client_authority = client_authority
        self.auth = auth
        self.certificate = certificate
        self.users = dict(users or {})
        self.identity_tokens: set[str] = set()
        self.tokens: set[str] = set()
        self.realm = ""  # where tokens are had; here, if not set
        self.challenge = ""  # instead of the right one
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.seen: list[Seen] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "FakeRegistry":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.registry = self
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            if self._client_authority:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._client_authority)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for fault in self._faults:
            if fault.gate:
                fault.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def add(self, layout: Path, repository: str) -> None:
        """Serve every image of an OCI layout as a tag of *repository*."""
        for blob in (layout / "blobs/sha256").iterdir():
            self.blobs[f"sha256:{blob.name}"] = blob.read_bytes()
        for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
            self._add_manifest(repository, entry)
            self.manifests[repository, entry["annotations"][REF_NAME]] = self.manifests[repository, entry["digest"]]

    def _add_manifest(self, repository: str, entry: Mapping[str, Any]) -> None:
        data = self.blobs[entry["digest"]]
        self.manifests[repository, entry["digest"]] = (entry["mediaType"], data)
        document = json.loads(data)
        for child in document.get("manifests") or () if isinstance(document, dict) else ():
            if child["digest"] in self.blobs and child["digest"] != entry["digest"]:
                self._add_manifest(repository, child)

    def fail(self, where: str, **how: Any) -> Fault:
        """Order a :class:`Fault`; those ordered first happen first."""
        fault = Fault(where, **how)
        with self._lock:
            self._faults.append(fault)
        return fault

    def hold(self, where: str, **how: Any) -> Fault:
        """Order a gate: the next request waits, once it is there, for :meth:`Fault.let_go`."""
        return self.fail(where, gate=threading.Event(), **how)

    def heal(self) -> None:
        """Forget the faults that have not happened."""
        with self._lock:
            self._faults.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.where in path:
                    fault.times -= 1
                    return fault
        return None

    def requests(self, where: str = "", method: str = "GET") -> list[Seen]:
        """Return the requests so far whose path contains *where*."""
        return [one for one in self.seen if one.method == method and where in one.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    registry: FakeRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away in the middle are what some tests are about


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30

    def do_GET(self) -> None:
        self._serve(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self, body: bytes) -> None:
        registry = self.server.registry
        registry.seen.append(Seen(self.command, self.path, dict(self.headers), body))
        fault = registry.take_fault(self.command, self.path) or Fault("")
        if fault.gate:
            fault.reached.set()
            fault.gate.wait(30)
        if fault.endless:
            self._go_on(fault)
            return
        if fault.status:
            self._answer(fault.status, fault.body or b"", fault.headers)
            return
        path = urlsplit(self.path)
        if path.path == "/token":
            self._token(parse_qs(path.query), body)
        elif not self._is_authorized():
            challenge = registry.challenge or self._challenge()
            self._answer(401, _error("UNAUTHORIZED", "authentication required"), {"WWW-Authenticate": challenge})
        elif (found := self._find(path.path)) is None:
            self._answer(404, _error("NOT_FOUND", "no such thing"), {})
        else:
            self._content(*found, fault)

    def _find(self, path: str) -> tuple[str, str, bytes] | None:
        """Return media type, digest and bytes."""
        registry = self.server.registry
        before, _, name = path.rpartition("/")
        repository, _, kind = before.removeprefix("/v2/").rpartition("/")
        if kind == "blobs" and name in registry.blobs:
            return "application/octet-stream", name, registry.blobs[name]
        if kind == "manifests" and (repository, name) in registry.manifests:
            media_type, data = registry.manifests[repository, name]
            digest = next(digest for digest, blob in registry.blobs.items() if blob is data)
            return media_type, digest, data
        return None

    def _content(self, media_type: str, digest: str, data: bytes, fault: Fault) -> None:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, **fault.headers}
        data = fault.body if fault.body is not None else data
        if fault.change:
            data = fault.change(data)
        status = 200
        begin = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if begin and not fault.no_ranges:
            headers = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}", **headers}
            data = data[int(begin) :]
            status = 206
        self._answer(status, data, headers, fault.cut_at)

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str], cut_at: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut_at])

    def _go_on(self, fault: Fault) -> None:
        self.send_response(fault.status or 200)
        for name, value in {"Connection": "close", **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        while True:  # until it raises because nobody reads
            self.wfile.write(fault.endless)

    def _challenge(self) -> str:
        registry = self.server.registry
        if registry.auth == "basic":
            return 'Basic realm="fake"'
        realm = registry.realm or f"{'https' if registry.certificate else 'http'}://{registry.host}/token"
        return f'Bearer realm="{realm}",service="fake",scope="repository:x:pull"'

    def _is_authorized(self) -> bool:
        registry = self.server.registry
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        match registry.auth:
            case "basic":
                return scheme == "Basic" and self._knows(value)
            case "bearer":
                return scheme == "Bearer" and value in registry.tokens
        return True

    def _knows(self, pair: str) -> bool:
        name, _, password = base64.b64decode(pair).decode().partition(":")
        return self.server.registry.users.get(name) == password

    def _token(self, query: Mapping[str, list[str]], body: bytes) -> None:
        registry = self.server.registry
        scheme, _, pair = self.headers.get("Authorization", "").partition(" ")
        refresh = parse_qs(body.decode()).get("refresh_token", [""])[0]
        is_known = (scheme == "Basic" and self._knows(pair)) or refresh in registry.identity_tokens
        if registry.users and not is_known:
            self._answer(401, _error("UNAUTHORIZED", "incorrect username or password"), {})
            return
        token = secrets.token_hex(8)
        registry.tokens.add(token)
        self._answer(200, json.dumps({"token": token, "expires_in": 300}).encode(), {})


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


_EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def make_certificate(directory: Path, name: str = "certificate", kind: Sequence[str] = _EC) -> Path:
    """Return a PEM file with a key and a certificate for 127.0.0.1 that it has signed itself."""
    key, path = directory / f"{name}.key", directory / f"{name}.pem"
    subprocess.run(
        [*("openssl", "req", "-x509", "-newkey", *kind, "-nodes"),
         *("-keyout", key, "-out", path, "-days", "1", "-subj", "/CN=test"),
         *("-addext", "subjectAltName=IP:127.0.0.1")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())
    return path


@contextmanager
def serving(layout: Path, repository: str, **options: Any) -> Iterator[FakeRegistry]:
    """Hold a registry that serves *layout* as *repository*."""
    with FakeRegistry(**options) as registry:
        registry.add(layout, repository)
        yield registry
