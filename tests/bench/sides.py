"""The two that are compared: this daemon, and Debian's containerd with its Go shim. Each has a directory to itself.

The whole benchmark runs in a mount namespace with a ``/run/containerd`` of its own (see ``__main__``), for containerd's
shims put their sockets there whatever one tells them.
"""

import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.accounts import Account
from tests.bench.samples import GO, OURS
from tests.daemon import BIN, PrivateDaemon, leftovers, remove

_CONTAINERD = """\
version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
"""
_START_LIMIT_S = 20.0
_CLIENT_LIMIT_S = 600.0


class Ours:
    """runtimed, as installed, with its logging as it is by default."""

    name = OURS

    def __init__(self, base: Path, root: Path | None = None, settings: str = "") -> None:
        self.base = base
        self.account = Account(f"rtd-bench-{secrets.token_hex(4)}")
        self.daemon = _Quiet(base, namespace="default")
        self.daemon.root = root or self.daemon.root
        if settings:
            self.daemon.config.write_text(f"version = 1\n{settings}\n")
        self.state = self.daemon.state
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(base)}

    @property
    def pid(self) -> int:
        return self.daemon.pid

    def start(self) -> None:
        with self.account.entered():
            self.daemon.start()

    def stop(self) -> None:
        self.daemon.stop()

    def ctr(self, *arguments: object) -> list[str]:
        return self.daemon.ctr_command(*arguments)

    def rctl(self, *arguments: object) -> list[str]:
        return [str(BIN / "rctl"), "--address", str(self.daemon.address), *map(str, arguments)]

    def pull(self, reference: str) -> list[str]:
        return self.rctl("pull", reference)

    def load(self, archive: Path) -> list[str]:
        return self.rctl("images", "import", archive)

    def remove(self) -> None:
        """Remove everything, and fail if the daemon had left something behind."""
        left = [line for line in leftovers(self.daemon) if not line.startswith("cgroup")]
        remove(self.daemon)
        self.account.remove()
        assert not left, f"left behind: {left}"


class _Quiet(PrivateDaemon):
    def command(self) -> list[str]:
        return [*super().command(), "--log-level", "info"]


class Theirs:
    """Debian's containerd."""

    name = GO

    def __init__(self, base: Path, root: Path | None = None) -> None:
        self.base = base
        self.account = Account(f"rtd-bench-{secrets.token_hex(4)}")
        self.root = root or base / "root"
        self.state = base / "state"
        self.address = base / "c.sock"
        self.environment = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        (base / "config.toml").write_text(_CONTAINERD)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        directories = ("--root", self.root, "--state", self.state, "--address", self.address)
        command = ["containerd", "--config", str(self.base / "config.toml"), *map(str, directories)]
        with (self.base / "log").open("ab") as log, self.account.entered():
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_LIMIT_S
        while subprocess.run(self.ctr("version"), capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self.base / "log").read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None

    def ctr(self, *arguments: object) -> list[str]:
        return ["ctr", "--address", str(self.address), "--connect-timeout", "5s", *map(str, arguments)]

    def pull(self, reference: str) -> list[str]:
        return self.ctr("images", "pull", "--plain-http", reference)

    def load(self, archive: Path) -> list[str]:
        return self.ctr("images", "import", archive)

    def remove(self) -> None:
        self.account.remove()
        shutil.rmtree(self.base)


@contextmanager
def both() -> Iterator[tuple[Ours, Theirs]]:
    """Both, running; ended and removed afterwards."""
    with side(Theirs) as theirs, side(Ours) as ours:
        yield ours, theirs


@contextmanager
def side(kind: Any, *arguments: Any) -> Iterator[Any]:
    """One side, running, in a directory of its own; ended and removed afterwards."""
    made = kind(Path(tempfile.mkdtemp(prefix="rtd-")), *arguments)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        made.remove()


def run(command: Sequence[str], side: Ours | Theirs, status: int = 0) -> None:
    """Run a client to its end, its output thrown away. Raises AssertionError if it does not end with *status*."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=side.environment)
        # Not by the timeout of subprocess: it looks after 1, 2, 4, ... 32, 50, 50 ms, and 64 ms would be 114.
        pidfd = os.pidfd_open(process.pid)
        try:
            if not select.select([pidfd], [], [], _CLIENT_LIMIT_S)[0]:
                process.kill()
        finally:
            os.close(pidfd)
        ended = process.wait()
        said.seek(0)
        assert ended == status, f"{' '.join(command)}: {ended}\n{said.read().decode()[-2000:]}"
