"""Debian's docker-registry on a loopback port, and images pushed to it with skopeo."""

import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http:
  addr: "127.0.0.1:{port}"
"""
_START_LIMIT_S = 20.0


class Registry:
    """A running registry; ``host`` is what stands before the first slash of its references."""

    def __init__(self, port: int, storage: Path) -> None:
        self.host = f"127.0.0.1:{port}"
        self.storage = storage

    def push(self, layout: Path, name: str, *, source: str = "") -> str:
        """Copy an image of the OCI layout to ``name`` here and return its whole reference."""
        reference = f"{self.host}/{name}"
        image = f"oci:{layout}:{source}" if source else f"oci:{layout}"
        subprocess.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                image,
                f"docker://{reference}",
            ],
            check=True,
            timeout=180,
        )
        return reference

    def has(self, repository: str, tag: str) -> bool:
        """Say whether there is such an image."""
        tags = self.storage / "docker/registry/v2/repositories" / repository / "_manifests/tags"
        return (tags / tag / "current/link").exists()

    def blob(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob (for tests that damage it)."""
        algorithm, encoded = digest.split(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / encoded[:2] / encoded / "data"


@contextmanager
def docker_registry(
    *, certificate: Path | None = None, auth: str = "", storage: Path | None = None
) -> Iterator[Registry]:
    """A registry of the caller's own, ended and removed afterwards; what it has in *storage*, if given, stays.

    With *certificate*, a PEM file with its key, it speaks TLS; *auth* is that section of its configuration, in YAML.
    """
    with tempfile.TemporaryDirectory(prefix="rtd-registry-") as directory:
        storage = storage or Path(directory) / "storage"
        port = _free_port()
        config = Path(directory) / "config.yml"
        tls = f"  tls: {{certificate: {certificate}, key: {certificate}}}\n" if certificate else ""
        config.write_text(_CONFIG.format(storage=storage, port=port) + tls + (f"auth: {auth}\n" if auth else ""))
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait_until_it_answers(process, f"{'https' if certificate else 'http'}://127.0.0.1:{port}/v2/")
            yield Registry(port, storage)
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1, context=_unverified()):
                return
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code == 401:
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("docker-registry did not answer")


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
