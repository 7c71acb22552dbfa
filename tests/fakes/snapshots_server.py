"""A proxy snapshotter: another process that serves the Snapshots service, with our native snapshotter behind it.

    python -m tests.fakes.snapshots_server SOCKET ROOT

Prints a line when it listens and ends with its standard input. Written against the wire contract, as somebody else's
would be: it shares no code with the daemon's own service.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from runtimed.api import snapshots_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.snapshots_pb2_grpc import SnapshotsServicer, add_SnapshotsServicer_to_server
from runtimed.errors import RuntimedError
from runtimed.mounts import Mount
from runtimed.snapshots.loader import load
from runtimed.snapshots.snapshotter import Info, Kind, Snapshotter

_KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}
_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class Servicer(SnapshotsServicer):
    """Answers for one snapshotter, whatever name a request has for it."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def Prepare(self, request: pb.PrepareSnapshotRequest, context: Any) -> pb.PrepareSnapshotResponse:
        made = answer(context, lambda: self._snapshotter.prepare(request.key, request.parent, dict(request.labels)))
        return pb.PrepareSnapshotResponse(mounts=map(mount, made))

    def View(self, request: pb.ViewSnapshotRequest, context: Any) -> pb.ViewSnapshotResponse:
        made = answer(context, lambda: self._snapshotter.view(request.key, request.parent, dict(request.labels)))
        return pb.ViewSnapshotResponse(mounts=map(mount, made))

    def Mounts(self, request: pb.MountsRequest, context: Any) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=map(mount, answer(context, lambda: self._snapshotter.mounts(request.key))))

    def Commit(self, request: pb.CommitSnapshotRequest, context: Any) -> Empty:
        answer(context, lambda: self._snapshotter.commit(request.name, request.key, dict(request.labels)))
        return Empty()

    def Remove(self, request: pb.RemoveSnapshotRequest, context: Any) -> Empty:
        answer(context, lambda: self._snapshotter.remove(request.key))
        return Empty()

    def Stat(self, request: pb.StatSnapshotRequest, context: Any) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=record(answer(context, lambda: self._snapshotter.stat(request.key))))

    def Update(self, request: pb.UpdateSnapshotRequest, context: Any) -> pb.UpdateSnapshotResponse:
        assert list(request.update_mask.paths) == ["labels"]
        wanted = request.info
        updated = answer(context, lambda: self._snapshotter.update(wanted.name, dict(wanted.labels)))
        return pb.UpdateSnapshotResponse(info=record(updated))

    def List(self, request: pb.ListSnapshotsRequest, context: Any) -> Iterator[pb.ListSnapshotsResponse]:
        # Children first, which containerd's own service may do: it lists by key.
        for info in reversed([*answer(context, self._snapshotter.list)]):
            yield pb.ListSnapshotsResponse(info=[record(info)])

    def Usage(self, request: pb.UsageRequest, context: Any) -> pb.UsageResponse:
        usage = answer(context, lambda: self._snapshotter.usage(request.key))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: pb.CleanupRequest, context: Any) -> Empty:
        answer(context, self._snapshotter.cleanup)
        return Empty()


def answer(context: Any, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimedError as exc:
        context.abort(_STATUS[exc.code], str(exc))


def mount(one: Mount) -> types_pb2.Mount:
    return types_pb2.Mount(type=one.type, source=one.source, target=one.target, options=one.options)


def record(info: Info) -> pb.Info:
    message = pb.Info(name=info.name, parent=info.parent, kind=_KINDS[info.kind], labels=info.labels)
    message.created_at.FromNanoseconds(info.created_at)
    message.updated_at.FromNanoseconds(info.updated_at)
    return message


@contextmanager
def serving(socket: Path, root: Path) -> Iterator[None]:
    """Hold such a process, listening."""
    command = [sys.executable, "-m", "tests.fakes.snapshots_server", str(socket), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == "listening\n"
            yield
        finally:
            process.stdin.close()
            process.wait()


def main(address: str, root: str) -> None:
    snapshotter = load(Path(root), {})["native"].snapshotter
    assert snapshotter is not None
    server = grpc.server(ThreadPoolExecutor(8))
    add_SnapshotsServicer_to_server(Servicer(snapshotter), server)
    server.add_insecure_port(f"unix:{address}")
    server.start()
    print("listening", flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
