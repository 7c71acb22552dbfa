"""The daemons that rctl is a client of: our own, and Debian's containerd, which shows that it speaks the real API."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.registry import serving
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

REPO = Path(__file__).parents[3]
IMAGE = "example.org/box:latest"
# Of this run: runc keeps its state by namespace in one place, whoever's daemon it is.
NAMESPACE = f"rctl-test-{os.getpid()}"


@dataclass(frozen=True)
class Rctl:
    """rctl against one daemon."""

    address: Path
    namespace: str = NAMESPACE

    @property
    def argv(self):
        return [
            sys.executable, "-m", "runtimed.cli.program", "--address", str(self.address), "--namespace", self.namespace
        ]  # fmt: skip

    def __call__(self, *args, input=b"", options=(), timeout=60):
        argv = [*self.argv, *options, *_in_own_cgroups(args)]
        return subprocess.run(argv, input=input, capture_output=True, timeout=timeout, cwd=REPO, check=False)

    def ok(self, *args, **kwargs):
        """Run it, require success, return stdout as text."""
        done = self(*args, **kwargs)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *args):
        return json.loads(self.ok(*args, options=("-o", "json")))

    def popen(self, *args, **kwargs):
        return subprocess.Popen([*self.argv, *_in_own_cgroups(args)], cwd=REPO, **kwargs)


def _in_own_cgroups(args):
    """Have a container's cgroup not below the default parent, which would stay."""
    return (*args[:1], "--cgroup-parent", f"/{NAMESPACE}", *args[1:]) if args[0] == "run" else args


class Daemon:
    """A private daemon; its directories, its socket, its process."""

    def __init__(self, directory, argv):
        self.directory = directory
        self.address = directory / "daemon.sock"
        self._argv = argv
        self.process: subprocess.Popen[bytes]

    def start(self):
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._argv, "--address", self.address], stdout=log, stderr=log, cwd=REPO)
        deadline = time.monotonic() + 20
        argv = ["ctr", "--address", self.address, "version"]
        while subprocess.run(argv, capture_output=True, check=False).returncode:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(30)

    def ctr(self, *args, check=True):
        argv = ["ctr", "--address", str(self.address), "--namespace", NAMESPACE, *args]
        return subprocess.run(argv, capture_output=True, check=check, text=True).stdout


@contextmanager
def containerd(directory, box):
    config = directory / "config.toml"
    config.write_text(
        "version = 2\n"
        f"root = '{directory}/root'\nstate = '{directory}/state'\n"
        "disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n"
        "[debug]\nlevel = 'warn'\n"
    )
    # A /run/containerd of its own: its shims put sockets and runc's state there whatever one tells them.
    own = directory / "run"
    own.mkdir()
    Path("/run/containerd").mkdir(exist_ok=True)
    hidden = f'mount --bind {own} /run/containerd && exec containerd "$@"'
    argv = ["unshare", "--mount", "sh", "-c", hidden, "containerd", "--config", config]
    with _running(Daemon(directory, argv)) as daemon:
        archive = directory / "box.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(box, ".")
        daemon.ctr("images", "import", "--base-name", IMAGE.partition(":")[0], str(archive))
        yield daemon


@contextmanager
def runtimed(directory, box):
    argv = [sys.executable, "-m", "runtimed.daemon", "--root", directory / "root", "--state", directory / "state"]
    with _running(Daemon(directory, argv)) as daemon, serving(box, "box") as registry:
        name = f"{registry.host}/box:latest"
        Rctl(daemon.address).ok("pull", name)
        daemon.ctr("images", "tag", name, IMAGE)
        daemon.ctr("images", "rm", name)
        yield daemon


@contextmanager
def _running(daemon):
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.process.poll() is not None:  # a test left it dead: nothing could be cleaned up
            daemon.start()
        for task in daemon.ctr("tasks", "ls", "-q").split():
            daemon.ctr("tasks", "rm", "-f", task, check=False)
        daemon.stop()
        for hierarchy in [*Path("/sys/fs/cgroup").iterdir(), Path("/sys/fs/cgroup")]:
            with suppress(FileNotFoundError, NotADirectoryError):
                (hierarchy / NAMESPACE).rmdir()


@pytest.fixture(scope="session")
def box(tmp_path_factory):
    """The layout of an image: busybox, two users, a command that greets."""
    layout = Layout(tmp_path_factory.mktemp("box") / "layout")
    binary = Path("/bin/busybox")
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    files: dict[str, bytes | str | tarfile.TarInfo] = {
        **{f"bin/{applet}": "busybox" for applet in applets},
        "bin/busybox": binary.read_bytes(),
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\nalice:x:1000:1001::/:/bin/sh\n",
        "etc/group": b"root:x:0:\nalice:x:1001:\nwheel:x:10:alice\n",
    }
    for name in ("tmp", "proc", "dev", "sys", "data"):
        entry = files[name] = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o777
    run = {"Cmd": ["/bin/echo", "hello"], "Env": ["PATH=/bin", "FROM_IMAGE=1"], "WorkingDir": "/tmp"}
    layout.image("latest", [layout.layer(files)], platform=PLATFORM, run=run)
    return layout.root


@pytest.fixture(scope="session", params=[containerd, runtimed], ids=["containerd", "runtimed"])
def daemon(request, tmp_path_factory, box):
    with request.param(tmp_path_factory.mktemp(request.param.__name__), box) as running:
        yield running


@pytest.fixture
def rctl(daemon, tmp_path, monkeypatch):
    """rctl against a daemon; afterwards no container, lease or FIFO may be left."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    client = Rctl(daemon.address)
    yield client
    for id in client.ok("ps", "-a", "-q").split():
        client.ok("rm", "-f", id)
    assert list(tmp_path.glob("rctl-*")) == []
    assert daemon.ctr("leases", "ls", "-q") == ""
