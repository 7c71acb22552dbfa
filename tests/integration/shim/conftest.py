"""The stages of a shim's life: nursery, shim, bundle, created task, running task."""

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from runtimed.api import events_pb2, events_ttrpc_pb2, types_pb2
from runtimed.api import runc_options_pb2 as runc_pb
from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import NotFound, RuntimedError
from runtimed.mounts import mounts_below
from runtimed.rpc import ttrpc
from tests.processes import children, descendants

BUSYBOX = Path("/bin/busybox")
CGROUPS = f"runtimed-test-{os.getpid()}"
TASK = "containerd.task.v3.Task"
RESPONSES = {
    "Create": pb.CreateTaskResponse,
    "Start": pb.StartResponse,
    "State": pb.StateResponse,
    "Wait": pb.WaitResponse,
    "Delete": pb.DeleteResponse,
    "Pids": pb.PidsResponse,
    "Connect": pb.ConnectResponse,
    "Stats": pb.StatsResponse,
}


def proc(pid, file):
    """Return what a file of a process's directory in /proc says; nothing of one that has gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def exists(pid):
    return Path(f"/proc/{pid}").exists()


def fds_of(pid):
    """Return what the descriptors of a process lead to, as /proc names it."""
    return sorted(str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())


async def ended(pidfd, limit_s):
    """Wait for the end of a process."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        async with asyncio.timeout(limit_s):
            await done.wait()
    finally:
        loop.remove_reader(pidfd)


def cgroups_left():
    root = Path("/sys/fs/cgroup")
    return [*root.glob(f"{CGROUPS}-*"), *root.glob(f"*/{CGROUPS}-*")]  # v2, and the hierarchies of v1


async def eventually(condition, limit_s=10):
    """Wait until *condition* holds, of another process that tells nobody."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


class Nursery:
    """The daemon's side of a nursery."""

    def __init__(self, directory, **environment):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "shim.nursery", str(theirs.fileno()), str(directory)]
            env = os.environ | environment
            self.process = subprocess.Popen(argv, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def ask(self, request):
        self.socket.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        return json.loads(self.socket.recv(65536))

    def close(self):
        self.socket.close()
        self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "rehearsal")
    yield nursery
    nursery.close()


class Events:
    """The daemon's end for events, on a socket; what arrived is kept in order."""

    def __init__(self, path):
        self.path = path
        self.received = []
        self.namespaces = set()
        self._changed = asyncio.Condition()
        self._server = ttrpc.Server({})

    async def open(self):
        forward = ttrpc.Method(events_ttrpc_pb2.ForwardRequest, self._forward)
        self._server = ttrpc.Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": forward}})
        sock = socket.socket(socket.AF_UNIX)
        self.path.unlink(missing_ok=True)
        sock.bind(str(self.path))
        sock.listen()
        await self._server.serve(sock)

    async def close(self):
        await self._server.close()
        self.path.unlink()

    async def _forward(self, request, metadata):
        envelope = request.envelope
        self.namespaces |= {envelope.namespace, metadata["containerd-namespace-ttrpc"]}
        event = getattr(events_pb2, envelope.event.type_url.rpartition(".")[2])()
        event.ParseFromString(envelope.event.value)
        async with self._changed:
            self.received.append((envelope.topic, event))
            self._changed.notify_all()
        return Empty()

    @property
    def topics(self):
        return [topic for topic, _ in self.received]

    async def of(self, topic, id="", limit_s=10):
        """Wait for an event and return it."""

        def find():
            for found, event in self.received:
                if found == topic and (not id or id in {getattr(event, "id", ""), getattr(event, "exec_id", "")}):
                    return event
            return None

        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(find)
            return find()


class Shim:
    """A client of a real shim: one method for each RPC."""

    def __init__(self, client, pid, events, path, bind):
        self.client = client
        self.pid = pid
        self.events = events
        self.path = path
        self.bind = bind
        self.pidfd = os.pidfd_open(pid)
        self.ids = set()

    def __getattr__(self, method):
        async def call(request):
            if method == "Create":
                self.ids.add(request.id)
            return await self.client.call(TASK, method, request, RESPONSES.get(method, Empty), timeout_s=30)

        return call

    async def create(self, id, bundle, **kwargs):
        """Create with the test's busybox as the rootfs."""
        return await self.Create(pb.CreateTaskRequest(id=id, bundle=str(bundle), rootfs=[self.bind], **kwargs))

    async def run(self, id, bundle, **kwargs):
        await self.create(id, bundle, **kwargs)
        return (await self.Start(pb.StartRequest(id=id))).pid

    async def exec(self, id, exec_id, script, *, env=(), **kwargs):
        process = {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin", *env], "user": {}}
        request = pb.ExecProcessRequest(id=id, exec_id=exec_id, **kwargs)
        request.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        request.spec.value = json.dumps(process).encode()
        await self.Exec(request)

    async def wait(self, id, exec_id=""):
        async with asyncio.timeout(20):
            return await self.Wait(pb.WaitRequest(id=id, exec_id=exec_id))

    async def state(self, id, exec_id=""):
        return await self.State(pb.StateRequest(id=id, exec_id=exec_id))

    async def kill(self, id, number=signal.SIGKILL, exec_id="", *, all=False):
        await self.Kill(pb.KillRequest(id=id, exec_id=exec_id, signal=number, all=all))

    async def delete(self, id, exec_id=""):
        return await self.Delete(pb.DeleteRequest(id=id, exec_id=exec_id))

    async def ended(self):
        """Wait for the end of the shim's process."""
        await ended(self.pidfd, 15)

    async def rested(self, limit_s=20):
        """Wait until it has no worker."""
        while worker := self.worker:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(worker)
                try:
                    await ended(pidfd, limit_s)
                finally:
                    os.close(pidfd)

    @property
    def worker(self):
        """The pid of the worker; 0 when the shim rests."""
        for child in children(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # an orphan that is reaped now
                if proc(child, "comm") == "runtimed-shim\n":
                    return child
        return 0

    def others(self):
        """Return the processes below the shim that are not its own."""
        return [pid for pid in descendants(self.pid) if pid != self.worker]

    @property
    def is_alive(self):
        return not select.select([self.pidfd], [], [], 0)[0]

    async def tear_down(self):
        for id in self.ids:
            with contextlib.suppress(NotFound):
                with contextlib.suppress(RuntimedError):  # it need not be paused
                    await self.Resume(pb.ResumeRequest(id=id))
                with contextlib.suppress(NotFound):
                    await self.kill(id)
                await self.wait(id)
                await self.delete(id)
        await self.Shutdown(pb.ShutdownRequest())
        await self.ended()


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory):
    """A tree with busybox in it; tests share it."""
    if not BUSYBOX.exists():
        pytest.skip("needs /bin/busybox, of Debian's busybox-static")
    if shutil.which("runc") is None:
        pytest.skip("needs runc")
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (root / name).mkdir()
    root.chmod(0o755)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "tmp").chmod(0o1777)
    return root


@pytest.fixture
def bind(rootfs):
    return types_pb2.Mount(type="bind", source=str(rootfs), options=["rbind", "rw"])


@pytest.fixture
def bundle(tmp_path):
    """Make a bundle for a shell script."""

    def make(
        script="",
        *,
        args=None,
        name="",
        terminal=False,
        user=None,
        pid_namespace=True,
        hooks=None,
        annotations=None,
        resources=None,
    ):
        path = tmp_path / (name or f"bundle-{uuid.uuid4().hex[:8]}")
        (path / "rootfs").mkdir(parents=True)
        kinds = ["mount", "ipc", "uts", *(["pid"] if pid_namespace else [])]
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": terminal,
                "user": user or {"uid": 0, "gid": 0},
                "args": args or ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in kinds],
                "cgroupsPath": f"/{CGROUPS}-{uuid.uuid4().hex}",
                "resources": resources or {},
            },
            "annotations": annotations or {},
        }
        if hooks is not None:
            spec["hooks"] = hooks
        (path / "config.json").write_text(json.dumps(spec))
        return path

    return make


@pytest.fixture
def runc_root(tmp_path):
    return tmp_path / "runc"


@pytest.fixture
async def events(tmp_path):
    events = Events(tmp_path / "events.sock")
    await events.open()
    yield events
    await events.close()


@pytest.fixture
def fork(nursery, tmp_path, runc_root, events):
    """Have a nursery fork a shim; returns its answer and the path of its socket."""

    def ask(parent=nursery, **changes):
        path = tmp_path / f"{uuid.uuid4().hex[:8]}.sock"
        shim_dir = tmp_path / "shim"
        shim_dir.mkdir(exist_ok=True)
        request = {
            "id": "group",
            "namespace": "test",
            "bundle": str(shim_dir),
            "socket": str(path),
            "ttrpc_address": str(events.path),
            "grpc_address": "",
            "runtime": "io.containerd.runtimed.v1",
            "runc_root": str(runc_root),
            "debug": False,
        }
        return parent.ask(request | changes), path

    return ask


@pytest.fixture
def shim_of(events, bind, tmp_path, runc_root):
    """Connect to a shim for a block; after it the shim has ended, and nothing of its tasks is left."""

    @contextlib.asynccontextmanager
    async def connected(answer, path):
        client = await ttrpc.Client.connect(path)
        shim = Shim(client, answer["pid"], events, path, bind)
        try:
            yield shim
        finally:
            if shim.is_alive:
                await shim.tear_down()
            await shim.client.close()
            os.close(shim.pidfd)
        assert mounts_below(tmp_path) == []
        assert cgroups_left() == []
        assert not path.exists()
        namespace = runc_root / "test"
        assert not namespace.exists() or list(namespace.iterdir()) == []

    return connected


@pytest.fixture
async def shim(fork, shim_of):
    async with shim_of(*fork()) as shim:
        yield shim


@pytest.fixture
def options():
    """Make options for Create."""

    def make(**fields):
        message = runc_pb.Options(**fields)
        return {"type_url": message.DESCRIPTOR.full_name, "value": message.SerializeToString()}

    return make


@pytest.fixture
def fifo(tmp_path):
    """Make a FIFO."""

    def make(name):
        path = tmp_path / name
        os.mkfifo(path, 0o600)
        return path

    return make
