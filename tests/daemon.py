"""A daemon of the test's own: its root, state, socket, namespace and cgroups, and proof that nothing of it is left.

Used by the end-to-end tests and by ``make demo``. It runs the installed programs, as a user would.
"""

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc

from runtimed.api.events_service_pb2 import SubscribeRequest
from runtimed.api.events_service_pb2_grpc import EventsStub

BIN = Path(sys.executable).parent
CGROUPS = Path("/sys/fs/cgroup")
# A busy test machine, or a guest on it; the daemon itself promises a second.
START_LIMIT_S = 60.0 if os.environ.get("RUNTIMED_GUEST") else 20.0


class PrivateDaemon:
    """One runtimed with a directory to itself. ``start`` may follow ``stop`` or ``kill``: the directory stays.

    The base directory's name is short: shim sockets lie below it and the kernel takes 107 bytes.
    """

    def __init__(self, base: Path, *, namespace: str) -> None:
        self.base = base
        self.root = base / "root"
        self.state = base / "state"
        self.address = base / "runtimed.sock"
        self.config = base / "config.toml"
        self.log = base / "log"
        self.namespace = namespace
        self.cgroup_parent = f"/{namespace}"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """Return the command line of this daemon."""
        config = ["--config", str(self.config)] if self.config.exists() else []
        return [
            str(BIN / "runtimed"),
            *config,
            *("--root", str(self.root), "--state", str(self.state), "--address", str(self.address)),
            *("--log-level", "debug"),
        ]

    def start(self) -> float:
        """Start it and return how many seconds passed until it said READY (sd_notify(3))."""
        began = time.monotonic()
        notify = self.base / "notify.sock"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("ab") as log:
            ready.bind(str(notify))
            environment = {**os.environ, **self.environment, "NOTIFY_SOCKET": str(notify)}
            # One stderr for tests to read on failure; a session of its own keeps a terminal's ^C from it.
            self.process = subprocess.Popen(
                self.command(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            pidfd = os.pidfd_open(self.process.pid)
            try:
                while time.monotonic() - began < START_LIMIT_S:
                    readable, _, _ = select.select([ready.fileno(), pidfd], [], [], 1.0)
                    if ready.fileno() in readable and b"READY=1" in ready.recv(4096):
                        notify.unlink()
                        return time.monotonic() - began
                    if pidfd in readable:
                        break
            finally:
                os.close(pidfd)
        raise AssertionError(f"the daemon did not get ready:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End it as an init system does, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does: SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(timeout=20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None

    def rctl_command(self, *arguments: object) -> list[str]:
        """Return the command line of rctl against this daemon; its FIFOs, too, lie in the base directory."""
        return [
            *("env", f"XDG_RUNTIME_DIR={self.base}"),
            str(BIN / "rctl"),
            *("--address", str(self.address), "--namespace", self.namespace),
            *map(str, arguments),
        ]

    def rctl(self, *arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run rctl to its end and return what it wrote."""
        return _run(self.rctl_command(*arguments), check=check, **options)

    def run(self, *arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """``rctl run``, with this daemon's cgroups."""
        return self.rctl("run", "--cgroup-parent", self.cgroup_parent, *arguments, check=check, **options)

    def ctr_command(self, *arguments: object) -> list[str]:
        return ["ctr", "--address", str(self.address), "--namespace", self.namespace, *map(str, arguments)]

    def ctr(self, *arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Debian's ctr against this daemon to its end."""
        return _run(self.ctr_command(*arguments), check=check, **options)

    @contextmanager
    def events(self, *filters: str) -> Iterator[Iterator[Any]]:
        """Yield the envelopes of events from now on: the subscription stands when the block begins."""
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            call = EventsStub(channel).Subscribe(SubscribeRequest(filters=filters), timeout=60)
            call.initial_metadata()
            try:
                yield call
            finally:
                call.cancel()

    def clear(self) -> None:
        """End every container, whoever made it, and delete its records."""
        if self.process is None:
            return
        for line in self.rctl("ps", "-aq", check=False).stdout.split():
            self.rctl("rm", "-f", line, check=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process is None:
                with suppress(AssertionError):  # a test may have made it unable to start
                    self.start()
            self.clear()
        finally:
            self.stop()


def _run(command: Sequence[str], *, check: bool, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options})
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@contextmanager
def private_daemon(*, start: bool = True) -> Iterator[PrivateDaemon]:
    """A daemon in a directory of its own; at the end everything is gone, or AssertionError says what is not."""
    base = Path(tempfile.mkdtemp(prefix="rtd-"))
    daemon = PrivateDaemon(base, namespace=f"rtd-{secrets.token_hex(4)}")
    failed = True
    try:
        if start:
            daemon.start()
        with cleared(daemon):
            yield daemon
        failed = False
    finally:
        if failed and daemon.log.exists():
            print(f"--- log of the daemon\n{daemon.log.read_text()[-20000:]}", file=sys.stderr)
        left = leftovers(daemon)
        remove(daemon)
    assert not left, f"left behind: {left}"


@contextmanager
def cleared(daemon: PrivateDaemon) -> Iterator[None]:
    """At the end, end the containers (for which the daemon must run) and the daemon."""
    try:
        yield
    finally:
        daemon.__exit__()


def leftovers(daemon: PrivateDaemon) -> list[str]:
    """Return what a daemon that has stopped, with its containers gone, must not have left, a line each."""
    base = os.fsencode(daemon.base)
    left = [f"mount {line.split()[4]}" for line in _mounts() if str(daemon.base) in line]
    left += [f"process {pid}: {command}" for pid, command in processes(base) if not _ends(pid)]
    for directory in cgroups(daemon.namespace):
        left += [f"cgroup {path}" for path in directory.rglob("*") if path.is_dir()]
    if daemon.state.exists():
        left += [f"fifo or socket {path}" for path in daemon.state.rglob("*") if path.is_fifo() or path.is_socket()]
        left += [f"bundle {path}" for path in daemon.state.glob(f"*/{daemon.namespace}/*")]
    left += [f"ingest {path}" for path in daemon.root.glob("content/ingest/*/")]
    return left


def _ends(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process ends by itself: of a daemon that was killed the helpers do, at the next thing they do."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)


def remove(daemon: PrivateDaemon) -> None:
    """Remove what *daemon* had on the machine, also what it should have removed itself."""
    for pid, _ in processes(os.fsencode(daemon.base)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for line in reversed(_mounts()):
        if str(daemon.base) in line:
            subprocess.run(["umount", "-l", line.split()[4]], check=False)
    for directory in cgroups(daemon.namespace):
        for path in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            directory.rmdir()
    shutil.rmtree(daemon.base)


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def cgroups(namespace: str) -> list[Path]:
    """Return the directories of *namespace* in each hierarchy (cgroup v1 has several)."""
    return [*CGROUPS.glob(namespace), *CGROUPS.glob(f"*/{namespace}")]


def processes(base: bytes) -> Iterator[tuple[int, str]]:
    """Yield each process, but for this one, that names *base* on its command line or works or is rooted in it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            places = [os.fsencode((entry / link).readlink()) for link in ("cwd", "root")]
            if base in command or any(place.startswith(base) for place in places):
                yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace").strip()
