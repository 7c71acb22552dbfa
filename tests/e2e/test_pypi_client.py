"""The Python client of long ago: containerd 1.5.3 on PyPI, with the protobuf of its time, reads all that there is."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.e2e]

_PACKAGES = ("containerd==1.5.3", "protobuf==3.20.3", "googleapis-common-protos==1.56.4")

_READER = """
import hashlib, json, sys
import grpc
from containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from containerd.services.content.v1 import content_pb2, content_pb2_grpc
from containerd.services.events.v1 import events_pb2, events_pb2_grpc
from containerd.services.images.v1 import images_pb2, images_pb2_grpc
from containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from containerd.services.namespaces.v1 import namespace_pb2, namespace_pb2_grpc
from containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from containerd.services.version.v1 import version_pb2_grpc
from google.protobuf import __version__
from google.protobuf.empty_pb2 import Empty

address, namespace = sys.argv[1:]
meta = (("containerd-namespace", namespace),)
found = {"protobuf": __version__}
with grpc.insecure_channel(f"unix://{address}") as channel:
    found["version"] = version_pb2_grpc.VersionStub(channel).Version(Empty()).version
    spaces = namespace_pb2_grpc.NamespacesStub(channel)
    found["namespaces"] = [one.name for one in spaces.List(namespace_pb2.ListNamespacesRequest()).namespaces]
    images = images_pb2_grpc.ImagesStub(channel)
    listed = images.List(images_pb2.ListImagesRequest(), metadata=meta).images
    found["images"] = [one.name for one in listed]
    target = images.Get(images_pb2.GetImageRequest(name=listed[0].name), metadata=meta).image.target
    content = content_pb2_grpc.ContentStub(channel)
    info = content.Info(content_pb2.InfoRequest(digest=target.digest), metadata=meta).info
    read = content.Read(content_pb2.ReadContentRequest(digest=target.digest), metadata=meta)
    data = b"".join(part.data for part in read)
    found["manifest"] = [info.size == len(data), "sha256:" + hashlib.sha256(data).hexdigest() == target.digest]
    blobs = content.List(content_pb2.ListContentRequest(), metadata=meta)
    found["blobs"] = sum(len(part.info) for part in blobs)
    snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
    every = snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs"), metadata=meta)
    found["snapshots"] = [one.name for part in every for one in part.info]
    found["usage"] = [
        snapshots.Usage(snapshots_pb2.UsageRequest(snapshotter="overlayfs", key=key), metadata=meta).size > 0
        for key in found["snapshots"]
    ]
    containers = containers_pb2_grpc.ContainersStub(channel)
    here = containers.List(containers_pb2.ListContainersRequest(), metadata=meta).containers
    found["containers"] = [[one.id, one.image, one.runtime.name] for one in here]
    tasks = tasks_pb2_grpc.TasksStub(channel)
    running = tasks.List(tasks_pb2.ListTasksRequest(), metadata=meta).tasks
    found["tasks"] = [[one.id, one.status] for one in running]
    found["pids"] = len(tasks.ListPids(tasks_pb2.ListPidsRequest(container_id=here[0].id), metadata=meta).processes)
    metrics = tasks.Metrics(tasks_pb2.MetricsRequest(), metadata=meta).metrics
    found["metrics"] = [one.id for one in metrics]
    leases = leases_pb2_grpc.LeasesStub(channel).List(leases_pb2.ListRequest(), metadata=meta).leases
    found["leases"] = [one.id for one in leases]
    introspection = introspection_pb2_grpc.IntrospectionStub(channel)
    plugins = introspection.Plugins(introspection_pb2.PluginsRequest()).plugins
    found["plugins"] = len(plugins)
    found["uuid"] = len(introspection.Server(Empty()).uuid)
    following = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(), timeout=20)
    following.initial_metadata()
    spaces.Update(namespace_pb2.UpdateNamespaceRequest(
        namespace=namespace_pb2.Namespace(name=namespace, labels={"a": "b"})
    ))
    found["event"] = next(following).topic
    following.cancel()
    try:
        images.Get(images_pb2.GetImageRequest(name="none"), metadata=meta)
    except grpc.RpcError as exc:
        found["missing"] = exc.code().name
print(json.dumps(found))
"""


def test_everything_can_be_read(daemon, pulled, tmp_path):
    packages = tmp_path / "packages"  # in front of what is newer
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", packages, *_PACKAGES], check=True, capture_output=True)
    daemon.ctr("leases", "create", "--id", "a-lease")
    daemon.ctr("run", "-d", "--null-io", pulled, "box", "sleep", "600")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READER, str(daemon.address), daemon.namespace],
            env={**os.environ, "PYTHONPATH": str(packages)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        daemon.ctr("tasks", "rm", "-f", "box")
        daemon.ctr("containers", "rm", "box")
        daemon.ctr("leases", "rm", "a-lease")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("snapshots")[-1:] != []
    assert all(found.pop("usage"))
    assert found.pop("blobs") >= 5  # manifest, config, three layers
    assert found.pop("plugins") > 10
    assert found == {
        "protobuf": "3.20.3",
        "version": found["version"],
        "namespaces": found["namespaces"],
        "images": [pulled],
        "manifest": [True, True],
        "containers": [["box", pulled, "io.containerd.runc.v2"]],
        "tasks": [["box", 2]],
        "pids": 1,
        "metrics": ["box"],
        "leases": ["a-lease"],
        "uuid": 36,
        "event": "/namespaces/update",
        "missing": "NOT_FOUND",
    }
    assert daemon.namespace in found["namespaces"]
    assert "runtimed" in found["version"]
