"""The same wrong requests to Debian's containerd and to runtimed: clients decide by the code what to do next.

Each row was asked of both. Where ours is another code, containerd's does not tell the client what was wrong: a regular
expression that is none finds nothing, and what has no name ends as UNKNOWN.
"""

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import grpc
import pytest

from runtimed.api import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
    types_pb2,
)
from runtimed.api import containers_pb2_grpc as containers
from runtimed.api import content_pb2_grpc as content
from runtimed.api import diff_pb2_grpc as diff
from runtimed.api import events_service_pb2 as events_pb2
from runtimed.api import events_service_pb2_grpc as events
from runtimed.api import images_pb2_grpc as images
from runtimed.api import introspection_pb2_grpc as introspection
from runtimed.api import leases_pb2_grpc as leases
from runtimed.api import namespaces_pb2_grpc as namespaces
from runtimed.api import snapshots_pb2_grpc as snapshots
from runtimed.api import tasks_pb2_grpc as tasks

pytestmark = pytest.mark.root

NAMESPACE = "error-codes"
NO_DIGEST = "sha256:" + "0" * 64


class Row(NamedTuple):
    stub: Any  # its class
    method: str
    request: Any
    code: str  # of containerd
    ours: str = ""  # if it is another
    namespace: str = NAMESPACE


def target(digest=NO_DIGEST, size=1):
    return types_pb2.Descriptor(media_type="x", digest=digest, size=size)


def image(name="there", **given):
    return images_pb2.Image(name=name, target=given.pop("target", target()), **given)


def container(id="there", runtime="io.containerd.runc.v2", **given):
    made = containers_pb2.Container(id=id, **given)
    made.runtime.name = runtime
    made.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    made.spec.value = b"{}"
    return made


def mask(request, *paths):
    request.update_mask.paths.extend(paths)
    return request


def writes(*requests):
    return [content_pb2.WriteContentRequest(**request) for request in requests]


C, IM, L, N, S, T = containers_pb2, images_pb2, leases_pb2, namespaces_pb2, snapshots_pb2, tasks_pb2
GET = content_pb2
SNAP: Any = {"snapshotter": "overlayfs"}
WRITE, COMMIT, STAT = content_pb2.WRITE, content_pb2.COMMIT, content_pb2.STAT

of_containers = partial(Row, containers.ContainersStub)
of_images = partial(Row, images.ImagesStub)
of_leases = partial(Row, leases.LeasesStub)
of_namespaces = partial(Row, namespaces.NamespacesStub)
of_content = partial(Row, content.ContentStub)
of_snapshots = partial(Row, snapshots.SnapshotsStub)
of_tasks = partial(Row, tasks.TasksStub)
of_diff = partial(Row, diff.DiffStub)
of_events = partial(Row, events.EventsStub)
of_introspection = partial(Row, introspection.IntrospectionStub)

ROWS = {
    # containers
    "container get none": of_containers("Get", C.GetContainerRequest(id="none"), "NOT_FOUND"),
    "container get unnamed": of_containers("Get", C.GetContainerRequest(), "NOT_FOUND"),
    "container create twice": of_containers(
        "Create", C.CreateContainerRequest(container=container()), "ALREADY_EXISTS"
    ),
    "container create unnamed": of_containers(
        "Create", C.CreateContainerRequest(container=container("")), "INVALID_ARGUMENT"
    ),
    "container create bad id": of_containers(
        "Create", C.CreateContainerRequest(container=container("a/b")), "INVALID_ARGUMENT"
    ),
    "container create long id": of_containers(
        "Create", C.CreateContainerRequest(container=container("a" * 77)), "INVALID_ARGUMENT"
    ),
    "container create no runtime": of_containers(
        "Create", C.CreateContainerRequest(container=container("x", runtime="")), "INVALID_ARGUMENT"
    ),
    "container create no spec": of_containers(
        "Create",
        C.CreateContainerRequest(container=containers_pb2.Container(id="x", runtime={"name": "r"})),
        "INVALID_ARGUMENT",
    ),
    "container create key without snapshotter": of_containers(
        "Create", C.CreateContainerRequest(container=container("x", snapshot_key="k")), "INVALID_ARGUMENT"
    ),
    "container create long label": of_containers(
        "Create", C.CreateContainerRequest(container=container("x", labels={"k": "v" * 4096})), "INVALID_ARGUMENT"
    ),
    "container update none": of_containers(
        "Update", C.UpdateContainerRequest(container=container("none")), "NOT_FOUND"
    ),
    "container update unnamed": of_containers(
        "Update", C.UpdateContainerRequest(container=container("")), "INVALID_ARGUMENT"
    ),
    "container update runtime": of_containers(
        "Update", mask(C.UpdateContainerRequest(container=container()), "runtime"), "INVALID_ARGUMENT"
    ),
    "container update unknown field": of_containers(
        "Update", mask(C.UpdateContainerRequest(container=container()), "nothing"), "INVALID_ARGUMENT"
    ),
    "container update snapshot key": of_containers(
        "Update",
        mask(C.UpdateContainerRequest(container=container(snapshot_key="z")), "snapshot_key"),
        "INVALID_ARGUMENT",
    ),
    "container delete none": of_containers("Delete", C.DeleteContainerRequest(id="none"), "NOT_FOUND"),
    "container delete unnamed": of_containers("Delete", C.DeleteContainerRequest(), "NOT_FOUND"),
    "container list bad filter": of_containers(
        "List", C.ListContainersRequest(filters=["id~=["]), "OK", "INVALID_ARGUMENT"
    ),
    "container list half filter": of_containers("List", C.ListContainersRequest(filters=["id=="]), "INVALID_ARGUMENT"),
    "container list unknown field": of_containers("List", C.ListContainersRequest(filters=["nothing==x"]), "OK"),
    "container list no namespace": of_containers(
        "List", C.ListContainersRequest(), "FAILED_PRECONDITION", namespace=""
    ),
    "container list bad namespace": of_containers(
        "List", C.ListContainersRequest(), "INVALID_ARGUMENT", namespace="a/b"
    ),
    # images
    "image get none": of_images("Get", IM.GetImageRequest(name="none"), "NOT_FOUND"),
    "image get unnamed": of_images("Get", IM.GetImageRequest(), "NOT_FOUND"),
    "image create twice": of_images("Create", IM.CreateImageRequest(image=image()), "ALREADY_EXISTS"),
    "image create unnamed": of_images("Create", IM.CreateImageRequest(image=image("")), "INVALID_ARGUMENT"),
    "image create bad digest": of_images(
        "Create", IM.CreateImageRequest(image=image("x", target=target("sha256:xyz"))), "INVALID_ARGUMENT"
    ),
    "image create no size": of_images(
        "Create", IM.CreateImageRequest(image=image("x", target=target(size=0))), "INVALID_ARGUMENT"
    ),
    "image create long label": of_images(
        "Create", IM.CreateImageRequest(image=image("x", labels={"k": "v" * 4096})), "INVALID_ARGUMENT"
    ),
    "image update none": of_images("Update", IM.UpdateImageRequest(image=image("none")), "NOT_FOUND"),
    "image update unnamed": of_images("Update", IM.UpdateImageRequest(image=image("")), "INVALID_ARGUMENT"),
    "image update unknown field": of_images(
        "Update", mask(IM.UpdateImageRequest(image=image()), "nothing"), "INVALID_ARGUMENT"
    ),
    "image delete none": of_images("Delete", IM.DeleteImageRequest(name="none"), "NOT_FOUND"),
    "image delete unnamed": of_images("Delete", IM.DeleteImageRequest(), "NOT_FOUND"),
    "image list bad filter": of_images("List", IM.ListImagesRequest(filters=["name~=["]), "OK", "INVALID_ARGUMENT"),
    "image list no namespace": of_images("List", IM.ListImagesRequest(), "FAILED_PRECONDITION", namespace=""),
    # leases
    "lease create twice": of_leases("Create", L.CreateRequest(id="there"), "ALREADY_EXISTS"),
    "lease create unnamed": of_leases("Create", L.CreateRequest(), "OK"),
    "lease create bad id": of_leases("Create", L.CreateRequest(id="a/b c"), "OK"),
    "lease create long label": of_leases(
        "Create", L.CreateRequest(id="l", labels={"k": "v" * 4096}), "OK", "INVALID_ARGUMENT"
    ),
    "lease delete none": of_leases("Delete", L.DeleteRequest(id="none"), "NOT_FOUND"),
    "lease list bad filter": of_leases("List", L.ListRequest(filters=["id~=["]), "OK", "INVALID_ARGUMENT"),
    "lease add to none": of_leases(
        "AddResource", L.AddResourceRequest(id="none", resource={"id": NO_DIGEST, "type": "content"}), "NOT_FOUND"
    ),
    "lease add unknown type": of_leases(
        "AddResource", L.AddResourceRequest(id="there", resource={"id": "x", "type": "things"}), "UNIMPLEMENTED"
    ),
    "lease add bad digest": of_leases(
        "AddResource", L.AddResourceRequest(id="there", resource={"id": "x", "type": "content"}), "INVALID_ARGUMENT"
    ),
    "lease add snapshots only": of_leases(
        "AddResource", L.AddResourceRequest(id="there", resource={"id": "x", "type": "snapshots"}), "INVALID_ARGUMENT"
    ),
    "lease add no id": of_leases(
        "AddResource", L.AddResourceRequest(id="there", resource={"type": "ingests"}), "UNKNOWN", "INVALID_ARGUMENT"
    ),
    "lease add what is not there": of_leases(
        "AddResource", L.AddResourceRequest(id="there", resource={"id": NO_DIGEST, "type": "content"}), "OK"
    ),
    "lease remove from none": of_leases(
        "DeleteResource", L.DeleteResourceRequest(id="none", resource={"id": NO_DIGEST, "type": "content"}), "NOT_FOUND"
    ),
    "lease remove what is not there": of_leases(
        "DeleteResource",
        L.DeleteResourceRequest(id="there", resource={"id": "sha256:" + "1" * 64, "type": "content"}),
        "OK",
    ),
    "lease resources of none": of_leases("ListResources", L.ListResourcesRequest(id="none"), "NOT_FOUND"),
    # namespaces
    "namespace get none": of_namespaces("Get", N.GetNamespaceRequest(name="none"), "OK"),
    "namespace create twice": of_namespaces(
        "Create", N.CreateNamespaceRequest(namespace={"name": NAMESPACE}), "ALREADY_EXISTS"
    ),
    "namespace create unnamed": of_namespaces("Create", N.CreateNamespaceRequest(namespace={}), "INVALID_ARGUMENT"),
    "namespace create bad name": of_namespaces(
        "Create", N.CreateNamespaceRequest(namespace={"name": "a/b"}), "INVALID_ARGUMENT"
    ),
    "namespace create bad label": of_namespaces(
        "Create", N.CreateNamespaceRequest(namespace={"name": "x", "labels": {"k": "v" * 4096}}), "INVALID_ARGUMENT"
    ),
    "namespace update none": of_namespaces(
        "Update", N.UpdateNamespaceRequest(namespace={"name": "made", "labels": {"a": "b"}}), "OK"
    ),
    "namespace update unknown field": of_namespaces(
        "Update", mask(N.UpdateNamespaceRequest(namespace={"name": NAMESPACE}), "nothing"), "INVALID_ARGUMENT"
    ),
    "namespace delete none": of_namespaces("Delete", N.DeleteNamespaceRequest(name="never"), "NOT_FOUND"),
    "namespace delete not empty": of_namespaces(
        "Delete", N.DeleteNamespaceRequest(name=NAMESPACE), "FAILED_PRECONDITION"
    ),
    # content
    "content info none": of_content("Info", GET.InfoRequest(digest=NO_DIGEST), "NOT_FOUND"),
    "content info bad digest": of_content("Info", GET.InfoRequest(digest="x"), "INVALID_ARGUMENT"),
    "content info no digest": of_content("Info", GET.InfoRequest(), "INVALID_ARGUMENT"),
    "content update none": of_content(
        "Update", mask(GET.UpdateRequest(info={"digest": NO_DIGEST, "labels": {"a": "b"}}), "labels"), "NOT_FOUND"
    ),
    "content update bad digest": of_content("Update", GET.UpdateRequest(info={"digest": "x"}), "INVALID_ARGUMENT"),
    "content delete none": of_content("Delete", GET.DeleteContentRequest(digest=NO_DIGEST), "NOT_FOUND"),
    "content delete bad digest": of_content("Delete", GET.DeleteContentRequest(digest="x"), "INVALID_ARGUMENT"),
    "content read none": of_content("Read", GET.ReadContentRequest(digest=NO_DIGEST), "NOT_FOUND"),
    "content read bad digest": of_content("Read", GET.ReadContentRequest(digest="x"), "INVALID_ARGUMENT"),
    "content list bad filter": of_content(
        "List", GET.ListContentRequest(filters=["digest~=["]), "OK", "INVALID_ARGUMENT"
    ),
    "content status none": of_content("Status", GET.StatusRequest(ref="none"), "NOT_FOUND"),
    "content status unnamed": of_content("Status", GET.StatusRequest(), "NOT_FOUND"),
    "content abort none": of_content("Abort", GET.AbortRequest(ref="none"), "NOT_FOUND"),
    "content statuses bad filter": of_content(
        "ListStatuses", GET.ListStatusesRequest(filters=["ref~=["]), "OK", "INVALID_ARGUMENT"
    ),
    "content write nothing": of_content("Write", writes(), "UNKNOWN", "OK"),
    "content write unnamed": of_content("Write", writes({"action": WRITE, "data": b"x"}), "INVALID_ARGUMENT"),
    "content write bad expected": of_content(
        "Write", writes({"action": STAT, "ref": "r1", "expected": "x"}), "OK", "INVALID_ARGUMENT"
    ),
    "content write gap": of_content(
        "Write", writes({"action": WRITE, "ref": "r2", "data": b"x", "offset": 5}), "OUT_OF_RANGE"
    ),
    "content commit wrong size": of_content(
        "Write", writes({"action": COMMIT, "ref": "r3", "data": b"abc", "total": 5}), "FAILED_PRECONDITION"
    ),
    "content commit wrong digest": of_content(
        "Write", writes({"action": COMMIT, "ref": "r4", "data": b"abc", "expected": NO_DIGEST}), "FAILED_PRECONDITION"
    ),
    "content too much for the total": of_content(
        "Write", writes({"action": STAT, "ref": "r5", "total": 2}, {"action": WRITE, "data": b"abc"}), "OK"
    ),
    "content another total": of_content(
        "Write", writes({"action": STAT, "ref": "r6", "total": 2}, {"action": STAT, "total": 3}), "OK"
    ),
    "content another expected": of_content(
        "Write",
        writes(
            {"action": STAT, "ref": "r7", "expected": NO_DIGEST}, {"action": STAT, "expected": "sha256:" + "1" * 64}
        ),
        "OK",
    ),
    "content bad label": of_content(
        "Write",
        writes({"action": COMMIT, "ref": "r8", "data": b"abc", "labels": {"k": "v" * 4096}}),
        "INVALID_ARGUMENT",
    ),
    # snapshots
    "snapshot no snapshotter": of_snapshots(
        "Stat", S.StatSnapshotRequest(snapshotter="none", key="x"), "INVALID_ARGUMENT"
    ),
    "snapshot empty snapshotter": of_snapshots("Stat", S.StatSnapshotRequest(key="x"), "INVALID_ARGUMENT"),
    "snapshot stat none": of_snapshots("Stat", S.StatSnapshotRequest(key="none", **SNAP), "NOT_FOUND"),
    "snapshot usage none": of_snapshots("Usage", S.UsageRequest(key="none", **SNAP), "NOT_FOUND"),
    "snapshot mounts none": of_snapshots("Mounts", S.MountsRequest(key="none", **SNAP), "NOT_FOUND"),
    "snapshot mounts committed": of_snapshots("Mounts", S.MountsRequest(key="base", **SNAP), "FAILED_PRECONDITION"),
    "snapshot prepare twice": of_snapshots("Prepare", S.PrepareSnapshotRequest(key="active", **SNAP), "ALREADY_EXISTS"),
    "snapshot prepare unnamed": of_snapshots(
        "Prepare", S.PrepareSnapshotRequest(**SNAP), "UNKNOWN", "INVALID_ARGUMENT"
    ),
    "snapshot prepare no parent": of_snapshots(
        "Prepare", S.PrepareSnapshotRequest(key="p1", parent="none", **SNAP), "NOT_FOUND"
    ),
    "snapshot prepare active parent": of_snapshots(
        "Prepare", S.PrepareSnapshotRequest(key="p2", parent="active", **SNAP), "INVALID_ARGUMENT"
    ),
    "snapshot view no parent": of_snapshots(
        "View", S.ViewSnapshotRequest(key="v1", parent="none", **SNAP), "NOT_FOUND"
    ),
    "snapshot commit none": of_snapshots("Commit", S.CommitSnapshotRequest(name="n", key="none", **SNAP), "NOT_FOUND"),
    "snapshot commit unnamed": of_snapshots(
        "Commit", S.CommitSnapshotRequest(key="active", **SNAP), "UNKNOWN", "INVALID_ARGUMENT"
    ),
    "snapshot commit to what is there": of_snapshots(
        "Commit", S.CommitSnapshotRequest(name="base", key="active", **SNAP), "ALREADY_EXISTS"
    ),
    "snapshot commit committed": of_snapshots(
        "Commit", S.CommitSnapshotRequest(name="n2", key="base", **SNAP), "FAILED_PRECONDITION"
    ),
    "snapshot commit view": of_snapshots(
        "Commit", S.CommitSnapshotRequest(name="n3", key="view", **SNAP), "FAILED_PRECONDITION"
    ),
    "snapshot remove none": of_snapshots("Remove", S.RemoveSnapshotRequest(key="none", **SNAP), "NOT_FOUND"),
    "snapshot remove parent": of_snapshots(
        "Remove", S.RemoveSnapshotRequest(key="base", **SNAP), "FAILED_PRECONDITION"
    ),
    "snapshot update none": of_snapshots(
        "Update",
        mask(S.UpdateSnapshotRequest(info={"name": "none", "labels": {"a": "b"}}, **SNAP), "labels"),
        "NOT_FOUND",
    ),
    "snapshot update kind": of_snapshots(
        "Update", mask(S.UpdateSnapshotRequest(info={"name": "base"}, **SNAP), "kind"), "INVALID_ARGUMENT"
    ),
    "snapshot list bad filter": of_snapshots(
        "List", S.ListSnapshotsRequest(filters=["name~=["], **SNAP), "OK", "INVALID_ARGUMENT"
    ),
    "snapshot bad label": of_snapshots(
        "Prepare", S.PrepareSnapshotRequest(key="p3", labels={"k": "v" * 4096}, **SNAP), "INVALID_ARGUMENT"
    ),
    # tasks
    **{
        f"task {method.lower()} none": of_tasks(method, request(container_id="none"), "NOT_FOUND")
        for method, request in (
            ("Start", T.StartRequest),
            ("Delete", T.DeleteTaskRequest),
            ("Get", T.GetRequest),
            ("Kill", T.KillRequest),
            ("Pause", T.PauseTaskRequest),
            ("Resume", T.ResumeTaskRequest),
            ("ListPids", T.ListPidsRequest),
            ("Checkpoint", T.CheckpointTaskRequest),
            ("Update", T.UpdateTaskRequest),
            ("Wait", T.WaitRequest),
            ("ResizePty", T.ResizePtyRequest),
            ("CloseIO", T.CloseIORequest),
        )
    },
    "task create without container": of_tasks("Create", T.CreateTaskRequest(container_id="none"), "NOT_FOUND"),
    "task exec none": of_tasks("Exec", T.ExecProcessRequest(container_id="none", exec_id="e"), "NOT_FOUND"),
    "task exec unnamed": of_tasks("Exec", T.ExecProcessRequest(container_id="there"), "INVALID_ARGUMENT"),
    "task delete process none": of_tasks(
        "DeleteProcess", T.DeleteProcessRequest(container_id="none", exec_id="e"), "NOT_FOUND"
    ),
    "task metrics bad filter": of_tasks("Metrics", T.MetricsRequest(filters=["id~=["]), "OK", "INVALID_ARGUMENT"),
    # the rest
    "diff apply bad digest": of_diff("Apply", diff_pb2.ApplyRequest(diff=target("x")), "NOT_FOUND", "INVALID_ARGUMENT"),
    "diff apply none": of_diff("Apply", diff_pb2.ApplyRequest(diff=target()), "NOT_FOUND"),
    "diff bad media type": of_diff("Diff", diff_pb2.DiffRequest(media_type="x"), "UNIMPLEMENTED"),
    "events publish no topic": of_events(
        "Publish", events_pb2.PublishRequest(event={"type_url": "x"}), "INVALID_ARGUMENT"
    ),
    "events publish relative topic": of_events(
        "Publish", events_pb2.PublishRequest(topic="a/b", event={"type_url": "x"}), "INVALID_ARGUMENT"
    ),
    "plugins bad filter": of_introspection(
        "Plugins", introspection_pb2.PluginsRequest(filters=["id~=["]), "OK", "INVALID_ARGUMENT"
    ),
}


@pytest.fixture(scope="module")
def channel(daemon):
    """A namespace with one of each kind, for what is refused because of what is there."""
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        metadata = [("containerd-namespace", NAMESPACE)]

        def call(stub, method, request):
            return getattr(stub(channel), method)(request, metadata=metadata, timeout=20)

        call(leases.LeasesStub, "Create", L.CreateRequest(id="there"))
        call(containers.ContainersStub, "Create", C.CreateContainerRequest(container=container()))
        call(images.ImagesStub, "Create", IM.CreateImageRequest(image=image()))
        held = [*metadata, ("containerd-lease", "there")]
        stub = snapshots.SnapshotsStub(channel)
        stub.Prepare(S.PrepareSnapshotRequest(key="first", **SNAP), metadata=held)
        stub.Commit(S.CommitSnapshotRequest(name="base", key="first", **SNAP), metadata=held)
        stub.Prepare(S.PrepareSnapshotRequest(key="active", parent="base", **SNAP), metadata=held)
        stub.View(S.ViewSnapshotRequest(key="view", parent="base", **SNAP), metadata=held)
        yield channel
        for key in ("view", "active", "base"):
            stub.Remove(S.RemoveSnapshotRequest(key=key, **SNAP), metadata=metadata)
        call(images.ImagesStub, "Delete", IM.DeleteImageRequest(name="there"))
        call(containers.ContainersStub, "Delete", C.DeleteContainerRequest(id="there"))
        for lease in call(leases.LeasesStub, "List", L.ListRequest()).leases:
            call(leases.LeasesStub, "Delete", L.DeleteRequest(id=lease.id, sync=True))
        for status in call(content.ContentStub, "ListStatuses", content_pb2.ListStatusesRequest()).statuses:
            call(content.ContentStub, "Abort", content_pb2.AbortRequest(ref=status.ref))
        with suppress(grpc.RpcError):  # containerd counts blobs that its next collection takes
            call(namespaces.NamespacesStub, "Delete", N.DeleteNamespaceRequest(name=NAMESPACE))
        call(namespaces.NamespacesStub, "Delete", N.DeleteNamespaceRequest(name="made"))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_code_is_the_one_that_clients_know(daemon, channel, row):
    call = getattr(row.stub(channel), row.method)
    request = iter(row.request) if isinstance(row.request, list) else row.request
    code: str = "OK"
    details: str | None = ""
    try:
        answer = call(request, metadata=[("containerd-namespace", row.namespace)] * bool(row.namespace), timeout=20)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as exc:
        code, details = exc.code().name, exc.details()
    is_ours = "runtimed" in daemon.directory.name
    assert code == (row.ours or row.code if is_ours else row.code), details
