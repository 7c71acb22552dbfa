"""Suite ``limits``: ten thousand images and containers, a hundred thousand blobs in a namespace, and a tenth of it."""

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from google.protobuf.message import Message

from runtimed.api import containers_pb2 as containers_pb
from runtimed.api import content_pb2 as content_pb
from runtimed.api import images_pb2 as images_pb
from runtimed.metadata import containers, images
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.images import Image
from runtimed.oci.descriptor import Descriptor
from runtimed.rpc.grpc_client import Channel
from tests.bench.samples import Row, progress
from tests.bench.sides import Ours, side

_IMAGES, _CONTAINERS, _BLOBS = 10_000, 10_000, 100_000
_NAMESPACE = "default"
_SERVICES = "/containerd.services"
_KEPT = json.dumps({"containerd.io/gc.root": "yes"})
_SPEC = json.dumps({"ociVersion": "1.0.2", "process": {"args": ["sh"], "cwd": "/"}, "filler": "x" * 500}).encode()


def suite(args: argparse.Namespace) -> list[Row]:
    """Return rows for the whole of it and for a tenth: start, lists, filters, and the daemon's memory after each."""
    rows = []
    for part in (10, 1):
        share = args.limits // part
        progress(f"limits: {share} percent")
        rows += _measured(_IMAGES * share // 100, _CONTAINERS * share // 100, _BLOBS * share // 100, args.runs)
    return rows


def _measured(image_count: int, container_count: int, blob_count: int, runs: int) -> list[Row]:
    what = f"{image_count} images, {container_count} containers, {blob_count} blobs"
    with side(Ours) as ours:
        ours.stop()
        with closing(Database(ours.daemon.root / "metadata.db")) as db:
            db.submit(_fill, image_count, container_count, blob_count).result()
        _make_blobs(ours.daemon.root / "content", blob_count)
        starts = []
        for _ in range(max(1, runs // 10)):
            began = time.monotonic()
            ours.start()
            starts.append((time.monotonic() - began) * 1e3)
            ours.stop()
        ours.start()
        rows = [Row(f"start: {what}", "ours", starts, aim="2000 ms" if image_count == _IMAGES else "")]
        rows.append(Row(f"memory at rest: {what}", "ours", [_rss_mb(ours.pid)], unit="MB"))
        for name, path, request in _requests():
            times = [asyncio.run(_timed(ours.daemon.address, path, request)) for _ in range(max(1, runs // 3))]
            rows.append(Row(f"{name}: {what}", "ours", times))
        rows.append(Row(f"memory afterwards: {what}", "ours", [_rss_mb(ours.pid)], unit="MB"))
    return rows


def _fill(tx: Tx, image_count: int, container_count: int, blob_count: int) -> None:
    for number in range(image_count):
        target = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=_digest(number), size=1)
        images.create(tx, _NAMESPACE, Image(name=f"example.org/{number}:1", target=target, labels={"n": str(number)}))
    for number in range(container_count):
        spec = Opaque("types.containerd.io/opencontainers/runtime-spec/1/Spec", _SPEC)
        container = Container(id=f"c{number}", runtime="io.containerd.runc.v2", spec=spec, labels={"n": str(number)})
        containers.create(tx, _NAMESPACE, container)
    rows = ((_NAMESPACE, _digest(number), len(_blob(number)), _KEPT, 1, 1) for number in range(blob_count))
    tx.executemany("INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)", rows)


def _make_blobs(store: Path, count: int) -> None:
    for number in range(count):
        data = _blob(number)
        (store / "blobs/sha256" / hashlib.sha256(data).hexdigest()).write_bytes(data)


def _blob(number: int) -> bytes:
    return str(number).encode()


def _digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(_blob(number)).hexdigest()}"


def _requests() -> Iterator[tuple[str, str, Message]]:
    wanted = 'labels."n"==77'
    yield "list images", "images.v1.Images/List", images_pb.ListImagesRequest()
    yield "filter images", "images.v1.Images/List", images_pb.ListImagesRequest(filters=[wanted])
    yield "list containers", "containers.v1.Containers/ListStream", containers_pb.ListContainersRequest()
    one = containers_pb.ListContainersRequest(filters=[wanted])
    yield "filter containers", "containers.v1.Containers/ListStream", one
    yield "list blobs", "content.v1.Content/List", content_pb.ListContentRequest()
    digest = content_pb.ListContentRequest(filters=[f"digest=={_digest(7)}"])
    yield "filter blobs", "content.v1.Content/List", digest


async def _timed(address: Path, path: str, request: Message) -> float:
    """Return how many milliseconds the whole answer takes."""
    channel = Channel(address)
    try:
        began = time.monotonic()
        metadata = [("containerd-namespace", _NAMESPACE)]
        call = await channel.call(f"{_SERVICES}.{path}", metadata, request.SerializeToString())
        while await call.receive() is not None:
            pass
        return (time.monotonic() - began) * 1e3
    finally:
        await channel.close()


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000
