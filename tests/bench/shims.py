"""Suite ``shim``: shims alone, driven over ttrpc by the same program. From start to delete, and output."""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from runtimed.api import events_ttrpc_pb2
from runtimed.api import task_v3_pb2 as pb
from runtimed.api.types_pb2 import Mount
from runtimed.errors import Unavailable
from runtimed.rpc import ttrpc
from tests.bench.accounts import Account
from tests.bench.commands import make_bundle, make_rootfs, runc_alone
from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.daemon import BIN

EXECUTED = "ours, by exec"
_RESPONSES: dict[str, type[Message]] = {
    "Create": pb.CreateTaskResponse,
    "Start": pb.StartResponse,
    "Wait": pb.WaitResponse,
    "Delete": pb.DeleteResponse,
    "Connect": pb.ConnectResponse,
}
_CHUNK = 1 << 20


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of whole lives, and of bytes through stdout."""
    aims = {OURS: "0.75 wall, 0.65 CPU", "runc run": "the limit"}
    rows = []
    with Bench() as bench, runc_alone() as alone:
        lives: dict[str, Callable[[], Sample]] = {who: bench.timed_life(who) for who in (GO, OURS, EXECUTED)}
        lives["runc run"] = alone
        for life in lives.values():
            life()
        found = alternate("a shim's life", args.runs, lives)
        rows += [
            Row.timed("shim: start to delete", who, samples, aim=aims.get(who, "")) for who, samples in found.items()
        ]
        streams = {who: bench.timed_output(who, args.stdout_mb) for who in (GO, OURS)}
        through = alternate("stdout", max(1, args.runs // 6), streams)
    name = f"{args.stdout_mb} MB through stdout; CPU of the shim"
    return rows + [Row.timed(name, GO, through[GO]), Row.timed(name, OURS, through[OURS], aim="0.50 wall, CPU near 0")]


class Bench:
    """A directory, an account, a warm parent, and somebody who takes the shims' events."""

    def __enter__(self) -> "Bench":
        with ExitStack() as stack:
            self.base = Path(tempfile.mkdtemp(prefix="rtd-"))
            stack.callback(shutil.rmtree, self.base)
            self.account = Account(f"rtd-bench-{secrets.token_hex(4)}")
            stack.callback(self.account.remove)
            make_rootfs(self.base / "image")
            self._loop = asyncio.new_event_loop()
            stack.callback(self._loop.close)
            self._events = self._loop.run_until_complete(self._serve_events())
            stack.callback(lambda: self._loop.run_until_complete(self._events.close()))
            self._nursery = stack.enter_context(self._warm_parent())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def timed_life(self, who: str) -> Callable[[], Sample]:
        """Return a function that takes one container through a shim of its own."""

        def once() -> Sample:
            bundle = self._bundle(["/bin/true"])
            try:
                return self.account.run(lambda: self._loop.run_until_complete(self._life(who, bundle)))
            finally:
                shutil.rmtree(bundle)

        return once

    def timed_output(self, who: str, megabytes: int) -> Callable[[], Sample]:
        """Return a function that has a container write to its stdout; CPU is the shim's."""

        def once() -> Sample:
            bundle = self._bundle(["/bin/dd", "if=/dev/zero", "bs=1M", f"count={megabytes}"])
            for name in ("stdout", "stderr"):
                os.mkfifo(bundle / name)
            held = os.open(bundle / "stderr", os.O_RDWR)  # containerd's shim waits for a reader of it
            try:
                with self.account.entered():
                    return self._loop.run_until_complete(self._output(who, bundle, megabytes * _CHUNK))
            finally:
                os.close(held)
                shutil.rmtree(bundle)

        return once

    async def _life(self, who: str, bundle: Path) -> None:
        shim = await self._started(who, bundle)
        await shim.call("Create", self._create(bundle))
        await shim.call("Connect", pb.ConnectRequest(id=bundle.name))
        waiting = asyncio.create_task(shim.call("Wait", pb.WaitRequest(id=bundle.name)))
        await shim.call("Start", pb.StartRequest(id=bundle.name))
        exit = await waiting
        assert isinstance(exit, pb.WaitResponse)
        assert exit.exit_status == 0, exit
        await shim.end(bundle.name)

    async def _output(self, who: str, bundle: Path, expected: int) -> Sample:
        shim = await self._started(who, bundle)
        reader = asyncio.create_task(asyncio.to_thread(_read_all, bundle / "stdout"))
        await shim.call("Create", self._create(bundle, has_output=True))
        connected = await shim.call("Connect", pb.ConnectRequest(id=bundle.name))
        assert isinstance(connected, pb.ConnectResponse)
        cpu, wall = _cpu_of(connected.shim_pid), time.perf_counter()
        await shim.call("Start", pb.StartRequest(id=bundle.name))
        got = await reader
        wall, cpu = time.perf_counter() - wall, _cpu_of(connected.shim_pid) - cpu
        assert got == expected, f"{got} of {expected} bytes"
        await shim.call("Wait", pb.WaitRequest(id=bundle.name))
        await shim.end(bundle.name)
        return Sample(wall, cpu)

    async def _started(self, who: str, bundle: Path) -> "_Shim":
        version = "v3"
        if who == OURS:
            address = self._fork(bundle)
        elif who == EXECUTED:
            address = await asyncio.to_thread(self._execute, str(BIN / "containerd-shim-runtimed-v1"), bundle)
        else:
            version = "v2"
            address = await asyncio.to_thread(self._execute, "containerd-shim-runc-v2", bundle)
        return _Shim(await ttrpc.Client.connect(address, timeout_s=5), f"containerd.task.{version}.Task")

    def _fork(self, bundle: Path) -> str:
        address = str(self.base / f"{bundle.name}.sock")
        request = {
            "id": bundle.name,
            "namespace": "bench",
            "bundle": str(bundle),
            "socket": address,
            "ttrpc_address": str(self.base / "events.sock"),
            "grpc_address": "",
            "runtime": "io.containerd.runc.v2",
            "runc_root": str(self.base / "runc"),
            "debug": False,
        }
        self._nursery.send(json.dumps(request).encode())
        answer = json.loads(self._nursery.recv(65536))
        assert "pid" in answer, answer
        return address

    def _execute(self, program: str, bundle: Path) -> str:
        command = [program, "-namespace", "bench", "-address", str(self.base / "grpc.sock")]
        command += ["-publish-binary", "/bin/true", "-id", bundle.name, "start"]
        environment = {
            **os.environ,
            "GOMAXPROCS": "2",
            "TTRPC_ADDRESS": str(self.base / "events.sock"),
            "RUNTIMED_SHIM_SOCKETS": str(self.base / "s"),
            "RUNTIMED_RUNC_ROOT": str(self.base / "runc"),
        }
        done = subprocess.run(
            command, cwd=bundle, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip().removeprefix("unix://")

    def _bundle(self, words: list[str]) -> Path:
        bundle = self.base / f"s{secrets.token_hex(4)}"
        make_bundle(bundle, words, f"{self.account.containers}/{bundle.name}")
        (bundle / "log").touch()  # a daemon makes it, as a FIFO; containerd's shim ends without it
        return bundle

    def _create(self, bundle: Path, *, has_output: bool = False) -> pb.CreateTaskRequest:
        image = Mount(type="bind", source=str(self.base / "image"), options=["rbind", "rw"])
        request = pb.CreateTaskRequest(id=bundle.name, bundle=str(bundle), rootfs=[image])
        if has_output:
            request.stdout, request.stderr = str(bundle / "stdout"), str(bundle / "stderr")
        return request

    async def _serve_events(self) -> ttrpc.Server:
        async def forward(request: Message, metadata: object) -> Empty:
            return Empty()

        method = ttrpc.Method(events_ttrpc_pb2.ForwardRequest, forward)
        server = ttrpc.Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": method}})
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.base / "events.sock"))
        sock.listen()
        await server.serve(sock)
        return server

    @contextmanager
    def _warm_parent(self) -> Iterator[socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self.account.entered():
            command = [sys.executable, "-P", "-m", "shim.nursery", str(theirs.fileno()), str(self.base / "rehearsal")]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        try:
            yield ours
        finally:
            ours.close()
            process.wait(timeout=10)


class _Shim:
    def __init__(self, client: ttrpc.Client, service: str) -> None:
        self._client = client
        self._service = service

    async def call(self, method: str, request: Message) -> Message:
        return await self._client.call(self._service, method, request, _RESPONSES.get(method, Empty), timeout_s=60)

    async def end(self, id: str) -> None:
        await self.call("Delete", pb.DeleteRequest(id=id))
        with suppress(Unavailable):  # containerd's may be gone before it has answered
            await self.call("Shutdown", pb.ShutdownRequest(id=id))
        await self._client.close()


def _read_all(path: Path) -> int:
    buffer = bytearray(_CHUNK)
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def _cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and its threads (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
