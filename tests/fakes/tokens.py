"""A token server for a real registry (distribution's auth/jwt.md), over TLS, with one user."""

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SERVICE = ISSUER = "test"


class TokenServer(ThreadingHTTPServer):
    """Gives *user*, ``NAME:PASSWORD``, what it asks for. *scopes* is what has been asked for."""

    def __init__(self, certificate: Path, user: str) -> None:
        """*certificate* is PEM with an RSA key: the server's, and what tokens are signed with."""
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.certificate = certificate
        self.expected = f"Basic {base64.b64encode(user.encode()).decode()}"
        self.scopes: list[list[str]] = []

    @property
    def auth(self) -> str:
        """The registry's section of configuration that sends its clients here."""
        realm = f"https://127.0.0.1:{self.server_address[1]}/token"
        return (
            f'{{token: {{realm: "{realm}", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {self.certificate}}}}}'
        )

    def token(self, scopes: list[str]) -> str:
        """Return a JWT that allows *scopes*, for a minute."""
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        pem = self.certificate.read_text()
        chain = pem.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0].replace("\n", "")
        claims = {
            **{"iss": ISSUER, "aud": SERVICE, "sub": "me", "jti": str(now), "access": access},
            **{"iat": now, "nbf": now - 10, "exp": now + 60},
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'RS256', 'x5c': [chain]})}.{_encoded(claims)}"
        command = ["openssl", "dgst", "-sha256", "-sign", str(self.certificate)]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True, timeout=30).stdout
        return f"{signed}.{_base64(signature)}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        self.server.scopes.append(scopes)
        if self.headers.get("Authorization") != self.server.expected:
            self.send_error(401)
            return
        body = json.dumps({"token": self.server.token(scopes)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _encoded(document: Any) -> str:
    return _base64(json.dumps(document).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def token_server(certificate: Path, user: str) -> Iterator[TokenServer]:
    """Hold a token server."""
    with TokenServer(certificate, user) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
