"""What runs in the guests of test_cut.py: look at what the last cut left, then pull, commit, remove and collect.

Images and files follow from a number, so that each boot knows what has to be there.
"""

import hashlib
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from runtimed.api import snapshots_pb2
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from runtimed.mounts import Mount, mounted_temporarily
from tests import daemon as daemons
from tests.daemon import PrivateDaemon
from tests.fakes.registry import FakeRegistry
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

LAYERS, FILES = 3, 60
ROOT = {"containerd.io/gc.root": "now"}
NAMESPACE = "rtd-cuts"
DATA = Path("/data/runtimed")
STATE = Path("/run/rtd-cuts")  # in memory, as /run is


def content(name: str) -> bytes:
    """Return what is in the file *name*: a header that tells, and bytes that hardly compress."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    return name.encode() + b"\n" + random.Random(seed).randbytes(2000 + seed % 30_000)


def add_image(layout: Layout, number: int) -> str:
    layers = []
    for layer in range(LAYERS):
        names = [f"image{number}/layer{layer}/file{file}" for file in range(FILES)]
        layers.append(layout.layer({name: content(name) for name in names}))
    layout.image(f"image{number}", layers, platform=PLATFORM)
    return f"image{number}"


def committed(daemon: PrivateDaemon) -> dict[str, int]:
    """Look through every committed snapshot and return how many files each holds.

    Raises:
        AssertionError: a file is not what was in the layer, or a layer has not all of its files.
    """
    counts = {}
    metadata = (("containerd-namespace", daemon.namespace),)
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        stub = SnapshotsStub(channel)
        infos = [
            info
            for page in stub.List(snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs"), metadata=metadata)
            for info in page.info
        ]
        for number, info in enumerate(infos):
            if info.kind != snapshots_pb2.COMMITTED:
                continue
            view = snapshots_pb2.ViewSnapshotRequest(
                snapshotter="overlayfs", key=f"look-{number}", parent=info.name, labels=ROOT
            )
            mounts = stub.View(view, metadata=metadata).mounts
            with mounted_temporarily(
                [Mount(it.type, it.source, it.target, tuple(it.options)) for it in mounts]
            ) as root:
                counts[info.name] = look_through(root)
            removal = snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=f"look-{number}")
            stub.Remove(removal, metadata=metadata)
    return counts


def look_through(root: Path) -> int:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        name = str(path.relative_to(root))
        assert path.read_bytes() == content(name), f"{name} is not whole: {path.stat().st_size} bytes"
    assert files, "a committed layer without a file"
    assert len(files) % FILES == 0, f"a committed layer lacks files: {len(files)}"
    return len(files)


def commit(daemon: PrivateDaemon, number: int) -> None:
    """Commit a snapshot of FILES files, as a client does that builds an image."""
    metadata = (("containerd-namespace", daemon.namespace),)
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        stub = SnapshotsStub(channel)
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"build-{number}", labels=ROOT)
        mounts = stub.Prepare(prepare, metadata=metadata).mounts
        with mounted_temporarily([Mount(it.type, it.source, it.target, tuple(it.options)) for it in mounts]) as root:
            for file in range(FILES):
                path = root / f"image{number}/build/file{file}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content(str(path.relative_to(root))))
        done = snapshots_pb2.CommitSnapshotRequest(
            snapshotter="overlayfs", name=f"built-{number}", key=f"build-{number}", labels=ROOT
        )
        stub.Commit(done, metadata=metadata)


def ways(daemon: PrivateDaemon) -> str:
    """Say how many layers are files, and how many directories."""
    snapshots = daemon.root / "snapshotters/overlayfs/snapshots"
    return f"{len([*snapshots.glob('*/layer.erofs')])} files, {len([*snapshots.glob('*/fs')])} directories"


@contextmanager
def registry(numbers: range) -> Iterator[FakeRegistry]:
    """A registry with the images of *numbers*."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, FakeRegistry() as running:
        layout = Layout(Path(place, "layout"))
        for number in numbers:
            add_image(layout, number)
        running.add(layout.root, "cuts")
        yield running


def main(first: int, promised: list[str]) -> None:
    """Check what is there, pull the image before *first* again, then *first* and more until the power goes."""
    acknowledged = [name for name in promised if not name.startswith("built-")]
    builds = [name for name in promised if name.startswith("built-")]
    daemons.START_LIMIT_S = 60.0
    DATA.mkdir(exist_ok=True)
    daemon = PrivateDaemon(DATA, namespace=NAMESPACE)
    daemon.state, daemon.address = STATE, STATE / "runtimed.sock"
    STATE.mkdir()
    with registry(range(max(first - 1, 0), first + 3)) as running:
        daemon.start()
        if first:
            listed = set(daemon.rctl("images", "-q").stdout.split())
            assert listed >= set(acknowledged), f"acknowledged, and gone: {set(acknowledged) - listed}"
            counts = committed(daemon)
            say(f"found {sorted(counts.values())} files in the layers of {len(listed)} images: {ways(daemon)}")
            assert counts.keys() >= set(builds), f"committed, and gone: {set(builds) - counts.keys()}"
            log = daemon.log.read_text()
            assert "layers are checked when they are first used" in log, "the power cut was not noticed"
            assert "layer is damaged" not in log, "a layer was committed before it was on disk"
            daemon.rctl("pull", f"{running.host}/cuts:image{first - 1}", timeout=120)
            pulled = sorted(committed(daemon).values())
            assert pulled.count(LAYERS * FILES) >= 1, f"the pull did not repair it: {pulled}"
            say("whole")
        previous = ""
        for number in range(first, first + 3):
            reference = f"{running.host}/cuts:image{number}"
            say(f"pulling {number}")
            daemon.rctl("pull", reference, timeout=120)
            say(f"acknowledged {reference}")
            say(f"committing {number}")
            commit(daemon, number)
            say(f"built built-{number}")
            if previous:
                say(f"removing {previous}")
                daemon.rctl("rmi", previous)
                say("collecting")
                daemon.rctl("gc", "run")
            previous = reference
        say(f"pulled everything: {ways(daemon)}")
        daemon.stop()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
