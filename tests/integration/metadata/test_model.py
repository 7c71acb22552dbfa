"""Metadata, leases, labels and garbage collection against a model, with the daemon killed at chosen points meanwhile.

What is referenced is never lost; what is not goes at last, from the tables and from the disk. The daemon collects when
it likes, so what nothing refers to may be there or not, until a collection that is waited for has ended.
"""

import hashlib
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from runtimed.api import containers_pb2, content_pb2, images_pb2, leases_pb2, snapshots_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.content_pb2_grpc import ContentStub
from runtimed.api.images_pb2_grpc import ImagesStub
from runtimed.api.leases_pb2_grpc import LeasesStub
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.records import FUTURE, GC_EXPIRE, GC_FLAT, PAST, SNAPSHOTTER, Record, Records, Thing

pytestmark = [pytest.mark.root, pytest.mark.slow]

BLOBS = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in (b"a" * 100, b"b" * 5000, b"c")}
DIGESTS, NAMES = list(BLOBS), ["x", "y"]
TEMPORARY = "temporary"
POINTS = ["gc.marked", "gc.swept", "gc.removed", "content.renamed"]

digests, names, flags = strategies.sampled_from(DIGESTS), strategies.sampled_from(NAMES), strategies.booleans()
indices = strategies.integers(0, 3)
references = strategies.one_of(
    strategies.tuples(
        strategies.sampled_from(["gc.ref.content", "gc.ref.content.0", "gc.ref.content/n", "gc.bref.content"]), digests
    ),
    strategies.tuples(
        strategies.sampled_from([f"gc.ref.snapshot.{SNAPSHOTTER}", "gc.ref.image", "gc.bref.image.0"]), names
    ),
    strategies.tuples(strategies.sampled_from([f"gc.bref.snapshot.{SNAPSHOTTER}/m", "gc.bref.container"]), names),
    strategies.just(("gc.root", "1")),
    strategies.sampled_from([("gc.expire", PAST), ("gc.expire", FUTURE)]),
)
labels = strategies.lists(references, min_size=1, max_size=3).map(
    lambda pairs: {f"containerd.io/{key}": value for key, value in pairs}
)
expiries = strategies.sampled_from([{}, {}, {GC_EXPIRE: FUTURE}, {GC_EXPIRE: PAST}])


class Killed(Exception):
    """The daemon died of a failpoint before it answered."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon(start=False) as daemon:
        # No collection before one is asked for: one that dies of a failpoint must not do so before READY.
        daemon.config.write_text("version = 1\n[gc]\nstartup_delay_ms = 600000\n")
        daemon.start()
        yield daemon


class Machine(RuleBasedStateMachine):
    """Two namespaces, which share blobs, of one daemon. Each rule is one request."""

    daemon: PrivateDaemon  # of the class that a test makes

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = [f"model-{secrets.token_hex(3)}-{letter}" for letter in "ab"]
        self.namespace = self.namespaces[0]
        self.records = {namespace: Records() for namespace in self.namespaces}
        self.kills = 0
        self.connect()

    # -- the daemon

    def connect(self) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{self.daemon.address}",
            options=[("grpc.use_local_subchannel_pool", 1)],  # else a new channel waits as one before it did
        )
        self.content, self.images = ContentStub(self.channel), ImagesStub(self.channel)
        self.leases, self.containers = LeasesStub(self.channel), ContainersStub(self.channel)
        self.snapshots = SnapshotsStub(self.channel)

    def restart(self, failpoints: str = "") -> None:
        self.channel.close()
        self.daemon.kill()
        self.daemon.environment = {"RUNTIMED_FAILPOINTS": failpoints}
        self.daemon.start()
        self.connect()
        self.tidy()

    def steadily(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do what may be done twice: a collection that nobody asked for can be the end of the daemon at any time."""
        try:
            return work(*args)
        except Killed:
            self.restart()
            return work(*args)

    def wait_for_collection(self) -> None:
        with suppress(grpc.RpcError):
            self.call(self.leases.Create, leases_pb2.CreateRequest(id=TEMPORARY))
        self.call(self.leases.Delete, leases_pb2.DeleteRequest(id=TEMPORARY, sync=True))

    def tidy(self) -> None:
        """Remove what requests that were not carried out have left: as their clients would."""
        of = {"snapshotter": SNAPSHOTTER}
        for key in [f"-{name}" for name in NAMES]:
            with suppress(grpc.RpcError):
                self.call(self.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(key=key, **of))
        for status in self.call(self.content.ListStatuses, content_pb2.ListStatusesRequest()).statuses:
            self.call(self.content.Abort, content_pb2.AbortRequest(ref=status.ref))
        with suppress(grpc.RpcError):
            self.call(self.leases.Delete, leases_pb2.DeleteRequest(id=TEMPORARY))

    def call(self, method: Any, request: Any, lease: str = "", namespace: str = "") -> Any:
        metadata = [("containerd-namespace", namespace or self.namespace)] + [("containerd-lease", lease)] * bool(lease)
        try:
            return method(request, metadata=metadata, timeout=20)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            assert self.daemon.process
            assert self.daemon.process.wait(timeout=20) == -signal.SIGKILL
            raise Killed from exc

    def written(self, request: content_pb2.WriteContentRequest, **options: Any) -> Any:
        return list(self.content.Write(iter([request]), **options))

    # -- the model

    def do(
        self, request: Callable[[], Any], after: Records, expected: str = "", *involved: Thing, is_done: bool = False
    ) -> None:
        """Make the request; *after* is what there is then if it succeeds, *expected* the code if it should not.

        *involved* are the things that decide that; of one that nothing refers to nobody knows whether it is there. With
        *is_done* there is *after* although the request fails.
        """
        before = self.records[self.namespace]
        live = before.live()
        is_sure = all(thing in live or thing not in before for thing in involved)
        code = ""
        try:
            request()
        except grpc.RpcError as exc:
            code = exc.code().name
        except Killed:
            self.restart()
            is_sure = False
        self.steadily(self.tidy)
        if is_sure:
            assert code == expected
        self.compare(before, after if is_done or not (is_sure and expected) else before, is_sure=is_sure)

    def compare(self, before: Records, after: Records, *, is_sure: bool = True) -> None:
        """Compare what there is with *after*, or with both if it is not sure that the request was carried out."""
        live = before.live()
        kept = live & after.live()
        if is_sure:
            kept |= after.live() - set(before)
        seen = self.steadily(self.observed, self.namespace)
        assert kept <= set(seen), f"lost: {kept - set(seen)}"
        known = set(after) if is_sure else {*before, *after}
        assert set(seen) <= known, f"came back: {set(seen) - known}"
        for thing, record in seen.items():
            expected = [after.get(thing)] + [before.get(thing)] * (not is_sure)
            assert record in expected, f"{thing}: {record}, not {expected}"
        self.records[self.namespace] = seen

    def observed(self, namespace: str) -> Records:
        records = Records()

        def ask(method: Any, request: Any) -> Any:
            return self.call(method, request, namespace=namespace)

        for blobs in ask(
            lambda *args, **options: list(self.content.List(*args, **options)), content_pb2.ListContentRequest()
        ):
            for blob in blobs.info:
                records["content", blob.digest] = Record(dict(blob.labels))
        for image in ask(self.images.List, images_pb2.ListImagesRequest()).images:
            records["images", image.name] = Record(dict(image.labels), {("content", image.target.digest)})
        for container in ask(self.containers.List, containers_pb2.ListContainersRequest()).containers:
            records["containers", container.id] = Record(
                dict(container.labels), {("snapshots", container.snapshot_key)}
            )
        for snapshots in ask(self.snapshots.List, snapshots_pb2.ListSnapshotsRequest(snapshotter=SNAPSHOTTER)):
            for info in snapshots.info:
                parents = {("snapshots", info.parent)} if info.parent else set()
                records["snapshots", info.name] = Record(dict(info.labels), parents)
        for lease in ask(self.leases.List, leases_pb2.ListRequest()).leases:
            with suppress(grpc.RpcError):  # it has just expired
                held = ask(self.leases.ListResources, leases_pb2.ListResourcesRequest(id=lease.id)).resources
                resources = {(one.type.partition("/")[0], one.id) for one in held}
                records["leases", lease.id] = Record(dict(lease.labels), resources)
        return records

    def lease(self, index: int) -> str:
        """Return a lease for a request: one that is there for certain, or none."""
        there = sorted(id for kind, id in self.records[self.namespace].live() if kind == "leases")
        return there[index] if index < len(there) else ""

    # -- rules

    @rule(index=strategies.sampled_from([0, 0, 0, 1]))
    def in_namespace(self, index: int) -> None:
        self.namespace = self.namespaces[index]

    @rule(digest=digests, labels=labels, lease_index=indices, is_expected=flags)
    def write(self, digest: str, labels: dict[str, str], lease_index: int, is_expected: bool) -> None:
        before, thing, lease = self.records[self.namespace], ("content", digest), self.lease(lease_index)
        elsewhere = [name for name, records in self.records.items() if name != self.namespace and thing in records]
        is_expected = is_expected and not elsewhere  # shared then: see below
        after = before.copied()
        if thing not in before.live():
            after[thing] = Record(labels)  # whether it is new or not: nothing would refer to an older one
        if lease:
            after["leases", lease].holds.add(thing)
        request = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=f"ref-{digest[7:13]}",
            data=BLOBS[digest],
            expected=digest * is_expected,
            labels=labels,
        )
        known = "ALREADY_EXISTS" if thing in before else ""
        self.do(lambda: self.call(self.written, request, lease), after, known, thing, is_done=True)

    @rule(digest=digests, lease_index=indices)
    def share(self, digest: str, lease_index: int) -> None:
        """Say that one is about to write what another namespace has: it is here then, with what its bytes refer to."""
        before, thing, lease = self.records[self.namespace], ("content", digest), self.lease(lease_index)
        there = [records[thing] for records in self.records.values() if thing in records.live()]
        if thing in before or not there:
            return
        after = before.copied()
        inherited = [pair for pair in there[0].labels.items() if pair[0].startswith("containerd.io/gc.ref.content")]
        after[thing] = Record(dict(inherited))
        if lease:
            after["leases", lease].holds.add(thing)
        request = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="shared", expected=digest)
        self.do(lambda: self.call(self.written, request, lease), after, "ALREADY_EXISTS", is_done=True)

    @rule(digest=digests)
    def delete_blob(self, digest: str) -> None:
        request = content_pb2.DeleteContentRequest(digest=digest)
        self.delete(self.content.Delete, request, ("content", digest))

    @rule(digest=digests, labels=labels)
    def label_blob(self, digest: str, labels: dict[str, str]) -> None:
        thing = ("content", digest)
        request = content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest, labels=labels))
        request.update_mask.paths.append("labels")
        self.change(self.content.Update, request, thing, labels)

    @rule(name=names, digest=digests, labels=labels, lease_index=indices)
    def name_image(self, name: str, digest: str, labels: dict[str, str], lease_index: int) -> None:
        before, thing, lease = self.records[self.namespace], ("images", name), self.lease(lease_index)
        after = before.copied()
        after[thing] = Record(labels, {("content", digest)})
        if lease and GC_EXPIRE in labels:
            after["leases", lease].holds.add(thing)
        image = images_pb2.Image(name=name, labels=labels)
        image.target.media_type, image.target.digest, image.target.size = "application/octet-stream", digest, 1
        request = images_pb2.CreateImageRequest(image=image)
        known = "ALREADY_EXISTS" if thing in before else ""
        self.do(lambda: self.call(self.images.Create, request, lease), after, known, thing)

    @rule(name=names)
    def delete_image(self, name: str) -> None:
        self.delete(self.images.Delete, images_pb2.DeleteImageRequest(name=name), ("images", name))

    @rule(name=names, labels=expiries, is_flat=flags)
    def take_lease(self, name: str, labels: dict[str, str], is_flat: bool) -> None:
        before, thing = self.records[self.namespace], ("leases", name)
        labels = labels | ({GC_FLAT: "1"} if is_flat else {})
        after = before.copied()
        after[thing] = Record(labels)
        request = leases_pb2.CreateRequest(id=name, labels=labels)
        known = "ALREADY_EXISTS" if thing in before else ""
        self.do(lambda: self.call(self.leases.Create, request), after, known, thing)

    @rule(name=names, digest=digests, key=names, is_blob=flags, is_held=flags)
    def hold(self, name: str, digest: str, key: str, is_blob: bool, is_held: bool) -> None:
        """Put something into a lease, which need not be there yet, or take it out."""
        before, thing = self.records[self.namespace], ("leases", name)
        held = ("content", digest) if is_blob else ("snapshots", key)
        after = before.copied()
        if thing in after:
            (after[thing].holds.add if is_held else after[thing].holds.discard)(held)
        resource = leases_pb2.Resource(type="content" if is_blob else f"snapshots/{SNAPSHOTTER}", id=held[1])
        method = self.leases.AddResource if is_held else self.leases.DeleteResource
        request = (leases_pb2.AddResourceRequest if is_held else leases_pb2.DeleteResourceRequest)(
            id=name, resource=resource
        )
        self.do(lambda: self.call(method, request), after, "" if thing in before else "NOT_FOUND", thing)

    @rule(name=names)
    def delete_lease(self, name: str) -> None:
        self.delete(self.leases.Delete, leases_pb2.DeleteRequest(id=name), ("leases", name))

    @rule(key=names, parent=strategies.sampled_from(["", *NAMES]), labels=labels, lease_index=indices)
    def snapshot(self, key: str, parent: str, labels: dict[str, str], lease_index: int) -> None:
        """Prepare and commit: a committed snapshot, of the name that it was prepared under but for a dash."""
        before, thing, below = self.records[self.namespace], ("snapshots", key), ("snapshots", parent)
        lease = self.lease(lease_index)
        after = before.copied()
        after[thing] = Record(labels, {below} if parent else set())
        if lease:
            after["leases", lease].holds.add(thing)
        code = "NOT_FOUND" if parent and below not in before else "ALREADY_EXISTS" if thing in before else ""

        def make() -> None:
            of: Any = {"snapshotter": SNAPSHOTTER, "key": f"-{key}"}
            self.call(self.leases.Create, leases_pb2.CreateRequest(id=TEMPORARY))  # an active snapshot is not held
            self.call(self.snapshots.Prepare, snapshots_pb2.PrepareSnapshotRequest(parent=parent, **of), TEMPORARY)
            commit = snapshots_pb2.CommitSnapshotRequest(name=key, labels=labels, **of)
            self.call(self.snapshots.Commit, commit, lease)

        self.do(make, after, code, thing, *[below] * bool(parent))

    @rule(key=names, labels=labels)
    def label_snapshot(self, key: str, labels: dict[str, str]) -> None:
        info = snapshots_pb2.Info(name=key, labels=labels)
        request = snapshots_pb2.UpdateSnapshotRequest(snapshotter=SNAPSHOTTER, info=info)
        self.change(self.snapshots.Update, request, ("snapshots", key), labels)

    @rule(key=names)
    def remove_snapshot(self, key: str) -> None:
        before, thing = self.records[self.namespace], ("snapshots", key)
        children = [child for child, record in before.items() if child[0] == "snapshots" and thing in record.holds]
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key)
        code = "FAILED_PRECONDITION" if children and thing in before else ""
        self.delete(self.snapshots.Remove, request, thing, code, *children)

    @rule(id=names, key=names, labels=labels)
    def container(self, id: str, key: str, labels: dict[str, str]) -> None:
        before, thing = self.records[self.namespace], ("containers", id)
        container = containers_pb2.Container(id=id, snapshotter=SNAPSHOTTER, snapshot_key=key, labels=labels)
        container.runtime.name, container.spec.type_url = "io.containerd.runc.v2", "x"
        after = before.copied()
        after[thing] = Record(labels, {("snapshots", key)})
        request = containers_pb2.CreateContainerRequest(container=container)
        known = "ALREADY_EXISTS" if thing in before else ""
        self.do(lambda: self.call(self.containers.Create, request), after, known, thing)

    @rule(id=names)
    def delete_container(self, id: str) -> None:
        self.delete(self.containers.Delete, containers_pb2.DeleteContainerRequest(id=id), ("containers", id))

    @rule()
    def collect(self) -> None:
        """Wait for a collection: what nothing refers to has gone, from the disk too."""
        self.steadily(self.wait_for_collection)
        for namespace in self.namespaces:
            seen, expected = self.steadily(self.observed, namespace), self.records[namespace].collected()
            assert seen == expected, namespace
            self.records[namespace] = seen
        things = [thing for records in self.records.values() for thing in records]
        blobs = {f"sha256:{path.name}" for path in (self.daemon.root / "content/blobs/sha256").glob("*")}
        assert blobs == {id for kind, id in things if kind == "content"}
        directories = list((self.daemon.root / f"snapshotters/{SNAPSHOTTER}/snapshots").iterdir())
        assert len(directories) == sum(kind == "snapshots" for kind, _ in things)

    @precondition(lambda self: self.kills < 1)
    @rule(point=strategies.sampled_from(POINTS), after=strategies.integers(0, 1))
    def kill(self, point: str, after: int) -> None:
        """Kill the daemon, and have the next one die at a point of its work; the rule of that time goes on from it."""
        self.kills += 1
        self.restart(f"{point}={after}*off->panic" if after else f"{point}=panic")
        self.compare(self.records[self.namespace], self.records[self.namespace])

    # -- inside

    def delete(self, method: Any, request: Any, thing: Thing, code: str = "", *involved: Thing) -> None:
        before = self.records[self.namespace]
        after = before.copied()
        after.pop(thing, None)
        expected = code or ("" if thing in before else "NOT_FOUND")
        self.do(lambda: self.call(method, request), after, expected, thing, *involved)

    def change(self, method: Any, request: Any, thing: Thing, labels: dict[str, str]) -> None:
        before = self.records[self.namespace]
        after = before.copied()
        if thing in after:
            after[thing].labels = labels
        self.do(lambda: self.call(method, request), after, "" if thing in before else "NOT_FOUND", thing)

    def teardown(self) -> None:
        """Delete every root, and see that nothing is left of anything."""
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            return
        for namespace in self.namespaces:
            self.namespace = namespace
            for kind, id in sorted(self.records[self.namespace]):
                match kind:
                    case "containers":
                        self.delete_container(id)
                    case "leases":
                        self.delete_lease(id)
                    case "images":
                        self.delete_image(id)
                    case "content":
                        self.label_blob(id, {})
                    case "snapshots":
                        self.label_snapshot(id, {})
        self.collect()
        assert not any(self.records.values())
        self.channel.close()


def test_what_is_referenced_is_never_lost_and_what_is_not_goes_at_last(daemon):
    run_state_machine_as_test(
        type("Bound", (Machine,), {"daemon": daemon}),
        settings=settings(
            report_multiple_bugs=False,
            max_examples=10,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            phases=[
                Phase.generate
            ],  # what the daemon collects meanwhile differs each time: nothing can be made smaller
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
