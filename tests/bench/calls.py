"""Suite ``calls``: small calls, one after the other over one connection, as ctr makes some fifty for each container."""

import argparse
import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from runtimed.api import content_pb2 as content
from runtimed.api import namespaces_pb2 as namespaces
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.errors import NotFound
from runtimed.rpc.grpc_client import Channel
from tests.bench.commands import pulled
from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.bench.sides import Ours, Theirs, both

_COUNT = 1000


def suite(args: argparse.Namespace) -> list[Row]:
    """Return a row for each call and side: a thousand of them. The CPU time is the daemon's."""
    rows = []
    with both() as (ours, theirs):
        pulled(ours, theirs)
        requests = {GO: _requests(theirs), OURS: _requests(ours)}
        for path in requests[GO]:
            found = alternate(
                path,
                max(1, args.runs // 3),
                {
                    GO: lambda path=path: _calls(theirs, path, requests[GO][path]),  # type: ignore[misc]
                    OURS: lambda path=path: _calls(ours, path, requests[OURS][path]),  # type: ignore[misc]
                },
            )
            rows += [Row.timed(f"{_COUNT} {path.rpartition('.')[2]}", who, samples) for who, samples in found.items()]
    return rows


def _requests(side: Ours | Theirs) -> Mapping[str, Message]:
    """Return what is asked for: nothing at all, a row, a small blob, a snapshot that is not there."""
    listed = subprocess.run(side.ctr("content", "ls", "-q"), capture_output=True, text=True, check=True)
    digest = listed.stdout.split()[0]
    service = "/containerd.services"
    return {
        f"{service}.version.v1.Version/Version": Empty(),
        f"{service}.namespaces.v1.Namespaces/Get": namespaces.GetNamespaceRequest(name="default"),
        f"{service}.content.v1.Content/Info": content.InfoRequest(digest=digest),
        f"{service}.content.v1.Content/Read": content.ReadContentRequest(digest=digest, size=100),
        f"{service}.snapshots.v1.Snapshots/Stat": snapshots.StatSnapshotRequest(snapshotter="overlayfs", key="x"),
    }


def _calls(side: Ours | Theirs, path: str, request: Message) -> Sample:
    address = Path(side.daemon.address if isinstance(side, Ours) else side.address)
    return side.account.run(lambda: asyncio.run(_one_after_the_other(address, path, request)), settle=False)


async def _one_after_the_other(address: Path, path: str, request: Message) -> None:
    channel = Channel(address)
    message = request.SerializeToString()
    for _ in range(_COUNT):
        try:
            await channel.unary(path, [("containerd-namespace", "default")], message)
        except NotFound:
            continue
    await channel.close()
