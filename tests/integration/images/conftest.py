import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from runtimed.api import transfer_pb2
from runtimed.api.streaming_pb2_grpc import add_StreamingServicer_to_server
from runtimed.api.transfer_pb2_grpc import TransferStub, add_TransferServicer_to_server
from runtimed.content.local import LocalStore
from runtimed.images.progress import Progress
from runtimed.images.pull import Puller
from runtimed.images.requests import Pulled, Request, Unpack
from runtimed.images.sources import RegistrySource
from runtimed.metadata import leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.mounts import mounted_temporarily, mounts_below
from runtimed.oci import platform as platforms
from runtimed.oci.reference import parse
from runtimed.registry.client import Patience, RegistryClient
from runtimed.services.streaming import StreamingService, Streams, to_any
from runtimed.services.transfer import TransferService
from runtimed.snapshots import loader
from runtimed.workers.pool import Pool
from tests.fakes.events import RecordedEvents
from tests.fakes.server import NAMESPACE, served
from tests.images.layouts import Layout

AMD64 = platforms.parse("linux/amd64")
IMPATIENT = Patience(attempts=3, first_wait_s=0.001, longest_wait_s=0.1)


@dataclass
class Store:
    """The stores of a daemon and what pulls into them."""

    content: Content
    db: Database
    snapshots: Snapshots
    pool: Pool
    puller: Puller
    said: list[Progress] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def source(self, reference: str, **options) -> RegistrySource:
        client = RegistryClient(parse(reference), **{"patience": IMPATIENT, **options})
        return RegistrySource(client, self.pool)

    async def pull(self, reference: str, namespace: str = "ns", *, source=None, unpack=True, **wanted) -> Pulled:
        """Pull and unpack for linux/amd64, unless said otherwise."""
        request = Request(
            **{
                "names": (reference,),
                "platforms": (AMD64,),
                "unpacks": (Unpack(snapshotter=self.snapshots.name, platform=AMD64),) if unpack else (),
                **wanted,
            }
        )
        [pulled] = await self.puller.pull(namespace, source or self.source(reference), request, self._hear)
        return pulled

    def _hear(self, progress: Progress) -> None:
        self.said.append(progress)
        self.wake.set()

    async def until_said(self, event: str, name: str, times: int) -> None:
        """Wait until the pulls have said so *times* times."""
        while self.events().count((event, name)) < times:
            self.wake.clear()
            await self.wake.wait()

    def files(self, chain_id: str, namespace: str = "ns") -> dict[str, bytes]:
        """Return the files of a committed snapshot."""
        mounts = self.snapshots.view(namespace, "look", chain_id, {})
        try:
            with mounted_temporarily(mounts) as root:
                return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        finally:
            self.snapshots.remove(namespace, "look")

    def left_over(self, namespace: str = "ns") -> list[str]:
        """Return what an ended pull must not leave: leases, snapshots that are not committed, mounts."""
        with self.db.reading() as tx:
            left = [lease.id for lease in leases.list(tx, namespace)]
        left += [info.name for info in self.snapshots.list(namespace) if info.kind != "committed"]
        return left + [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "runtimed-mount" in line
        ]

    def ingests(self, namespace: str = "ns") -> dict[str, int]:
        return {status.ref: status.offset for status in self.content.statuses(namespace)}

    def events(self) -> list[tuple[str, str]]:
        return [(progress.event, progress.name) for progress in self.said]


@pytest.fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Stores that unpack for the snapshotter that the test is parametrized with; overlayfs takes EROFS files."""
    name = getattr(request, "param", "native")
    db = Database(tmp_path / "metadata.db")
    content = Content(db, LocalStore(tmp_path / "content"))
    loaded = loader.load(tmp_path / "snapshotters", {"overlayfs": {"layers": "erofs"}})
    snapshotter = loaded[name].snapshotter
    assert snapshotter is not None
    snapshots = Snapshots(db, name, snapshotter)
    pool = Pool(2, mountpoint=tmp_path / "workers")
    await pool.start()
    try:
        yield Store(content, db, snapshots, pool, Puller(content, db, {name: snapshots}, pool))
    finally:
        await pool.close()
        loader.close(loaded)
        db.close()
    assert not mounts_below(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True, timeout=10)
    yield disk
    subprocess.run(["umount", disk], check=True, timeout=10)


@pytest.fixture
def events():
    return RecordedEvents()


@pytest.fixture
async def channel(tmp_path, store, events):
    streams = Streams()
    transfer = TransferService(
        store.content, store.db, {store.snapshots.name: store.snapshots}, store.pool, streams, events
    )
    async with served(
        tmp_path / "socket",
        partial(add_StreamingServicer_to_server, StreamingService(streams)),
        partial(add_TransferServicer_to_server, transfer),
    ) as channel:
        yield channel


@pytest.fixture
def transfer(channel):
    async def transfer(source, destination, progress_stream=""):
        request = transfer_pb2.TransferRequest(
            source=to_any(source),
            destination=to_any(destination),
            options=transfer_pb2.TransferOptions(progress_stream=progress_stream),
        )
        await TransferStub(channel).Transfer(request, metadata=NAMESPACE)

    return transfer
