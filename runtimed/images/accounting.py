"""What is on disk, and whose it is: images, their blobs and layers, what containers wrote, and the rest.

Everything counts once, however many namespaces and images share it, and as what it takes on disk (st_blocks), so that
the sum is what du(1) says of the root directory.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runtimed import gcgraph
from runtimed.errors import NotFound, RuntimedError
from runtimed.gcgraph import Node
from runtimed.metadata import gc, images, namespaces, snapshot_rows
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx
from runtimed.metadata.snapshots import Snapshots
from runtimed.snapshots.snapshotter import Kind
from runtimed.snapshots.trees import BLOCK, disk_usage
from runtimed.threads import blocking

_SNAPSHOTS = "snapshots/"


@dataclass(frozen=True, slots=True)
class Piece:
    """A blob or a snapshot on disk; ``type`` is ``content`` or ``snapshots/<snapshotter>``, ``id`` the store's own."""

    type: str
    id: str


@dataclass(slots=True)
class Group:
    """How many there are of something, and what they take, in bytes; of that, what no image holds."""

    count: int = 0
    size: int = 0
    unused: int = 0

    def add(self, size: int, *, is_used: bool) -> None:
        self.count += 1
        self.size += size
        self.unused += 0 if is_used else size


@dataclass(slots=True)
class ImageUsage:
    """What an image takes, in bytes; all its names, with their namespaces, are one image."""

    digest: str
    names: list[tuple[str, str]] = field(default_factory=list)  # namespace and name
    blobs: int = 0
    layers: int = 0
    unique: int = 0  # of both: what would go with it
    shared: int = 0  # what other images hold, too


@dataclass(slots=True)
class Accounts:
    """The whole; ``other`` is databases, directories, and what nothing else here explains."""

    images: list[ImageUsage] = field(default_factory=list)
    blobs: Group = field(default_factory=Group)
    ingests: Group = field(default_factory=Group)
    layers: Group = field(default_factory=Group)  # committed snapshots
    active: Group = field(default_factory=Group)  # what containers and builds write to, and views
    other: int = 0
    total: int = 0


async def account(root: Path, db: Database, content: Content, snapshotters: Mapping[str, Snapshots]) -> Accounts:
    """Measure what is below *root*, the daemon's. Goes through every directory there, which may take long.

    What changes meanwhile is counted or not. Raises OSError as what it stands for.
    """
    owned, names = await db.read(_owners, [*snapshotters])
    return await blocking(_measure, root, content, snapshotters, owned, names)


def _owners(tx: Tx, snapshotters: Iterable[str]) -> tuple[dict[Piece, set[str]], dict[str, list[tuple[str, str]]]]:
    """Return of each piece the digests of the images that hold it, and of each image its names."""
    graph = gc.load(tx, 0)
    backend = {
        Node(row.namespace, _SNAPSHOTS + snapshotter, row.key): row.backend_key
        for snapshotter in snapshotters
        for row in snapshot_rows.every(tx, snapshotter)
    }
    owned: dict[Piece, set[str]] = {}
    names: dict[str, list[tuple[str, str]]] = {}
    for namespace in namespaces.list(tx):
        for image in images.list(tx, namespace.name):
            digest = image.target.digest
            names.setdefault(digest, []).append((namespace.name, image.name))
            for node in graph.below(Node(namespace.name, gcgraph.IMAGES, image.name)):
                piece = _piece(node, backend)
                if piece is not None:
                    owned.setdefault(piece, set()).add(digest)
    return owned, names


def _piece(node: Node, backend: Mapping[Node, str]) -> Piece | None:
    if node.type == gcgraph.CONTENT:
        return Piece(node.type, node.id)
    key = backend.get(node)
    return Piece(node.type, key) if key is not None else None


def _measure(
    root: Path,
    content: Content,
    snapshotters: Mapping[str, Snapshots],
    owned: Mapping[Piece, set[str]],
    names: Mapping[str, list[tuple[str, str]]],
) -> Accounts:
    accounts = Accounts()
    usages = {digest: ImageUsage(digest, sorted(named)) for digest, named in names.items()}
    accounts.total = disk_usage(root).size
    for digest in content.store.digests():
        with suppress(FileNotFoundError):
            size = content.store.path(digest).stat().st_blocks * BLOCK
            owners = owned.get(Piece(gcgraph.CONTENT, digest), set())
            accounts.blobs.add(size, is_used=bool(owners))
            for owner in owners:
                usages[owner].blobs += size
                _share(usages[owner], size, owners)
    for directory in content.store.ingests():
        with suppress(FileNotFoundError):
            accounts.ingests.add(disk_usage(root / "content" / "ingest" / directory).size, is_used=False)
    device = root.stat().st_dev
    for name, snapshots in snapshotters.items():
        before = accounts.layers.size + accounts.active.size
        with suppress(RuntimedError):  # a proxy's process that is not there
            for info in snapshots.snapshotter.list():
                _add_snapshot(accounts, snapshots, info.name, info.kind, usages, owned)
        with suppress(FileNotFoundError):
            if (root / "snapshotters" / name).stat().st_dev != device:  # mounted there: not in the total so far
                accounts.total += accounts.layers.size + accounts.active.size - before
    explained = sum(group.size for group in (accounts.blobs, accounts.ingests, accounts.layers, accounts.active))
    accounts.other = max(accounts.total - explained, 0)
    accounts.images = sorted(usages.values(), key=lambda usage: (-usage.unique, usage.digest))
    return accounts


def _add_snapshot(
    accounts: Accounts,
    snapshots: Snapshots,
    key: str,
    kind: Kind,
    usages: Mapping[str, ImageUsage],
    owned: Mapping[Piece, set[str]],
) -> None:
    try:
        size = snapshots.snapshotter.usage(key).size
    except NotFound:
        return  # gone meanwhile
    owners = owned.get(Piece(_SNAPSHOTS + snapshots.name, key), set())
    (accounts.layers if kind is Kind.COMMITTED else accounts.active).add(size, is_used=bool(owners))
    for owner in owners:
        usages[owner].layers += size
        _share(usages[owner], size, owners)


def _share(usage: ImageUsage, size: int, owners: set[str]) -> None:
    if len(owners) == 1:
        usage.unique += size
    else:
        usage.shared += size
