"""The services of images, containers, namespaces and leases over a real socket: conversion, events, status codes."""

import json
from contextlib import closing

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from runtimed.api import (
    containers_pb2,
    containers_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    types_pb2,
)
from runtimed.content.local import LocalStore
from runtimed.deprecations import Deprecations
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci import digest
from runtimed.services.containers import ContainersService
from runtimed.services.images import ImagesService
from runtimed.services.leases import LeasesService
from runtimed.services.namespaces import NamespacesService
from runtimed.services.sandboxes import SandboxStoreService
from tests.fakes.events import RecordedEvents
from tests.fakes.server import NAMESPACE, served

SPEC = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"a":1}')


@pytest.fixture
def events():
    return RecordedEvents()


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "metadata.db")


@pytest.fixture
def content(database, tmp_path):
    return Content(database, LocalStore(tmp_path / "content"))


def add_blob(content, document):
    """Make a blob of *document*, bytes or what JSON is made of; return its digest."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with closing(content.begin("default", "ref", expected=digest.of(data))) as ingest:
        ingest.write(data)
        ingest.commit(len(data), digest.of(data), {})
    return digest.of(data)


@pytest.fixture
async def channel(events, database, content, tmp_path):
    try:
        async with served(
            tmp_path / "s",
            lambda server: images_pb2_grpc.add_ImagesServicer_to_server(ImagesService(database, events), server),
            lambda server: containers_pb2_grpc.add_ContainersServicer_to_server(
                ContainersService(database, events, content, Deprecations()), server
            ),
            lambda server: namespaces_pb2_grpc.add_NamespacesServicer_to_server(
                NamespacesService(database, events), server
            ),
            lambda server: leases_pb2_grpc.add_LeasesServicer_to_server(LeasesService(database), server),
            lambda server: sandbox_pb2_grpc.add_StoreServicer_to_server(SandboxStoreService(database), server),
        ) as channel:
            yield channel
    finally:
        database.close()


@pytest.fixture
def images(channel):
    return images_pb2_grpc.ImagesStub(channel)


@pytest.fixture
def containers(channel):
    return containers_pb2_grpc.ContainersStub(channel)


@pytest.fixture
def namespaces(channel):
    return namespaces_pb2_grpc.NamespacesStub(channel)


@pytest.fixture
def sandboxes(channel):
    return sandbox_pb2_grpc.StoreStub(channel)


@pytest.fixture
def leases(channel):
    return leases_pb2_grpc.LeasesStub(channel)


async def code(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await awaitable
    return failed.value.code().name


def image(name="busybox", **fields):
    target = types_pb2.Descriptor(media_type="m", digest=digest.of(b"x"), size=3, annotations={"k": "v"})
    return images_pb2.Image(name=name, target=target, **fields)


def container(id="c1", **fields):
    return containers_pb2.Container(
        id=id,
        runtime=containers_pb2.Container.Runtime(
            name="io.containerd.runc.v2", options=Any(type_url="containerd.runc.v1.Options", value=b"\xff\x00")
        ),
        spec=SPEC,
        **fields,
    )


async def test_an_image_from_create_to_delete(images, events):
    created = (
        await images.Create(images_pb2.CreateImageRequest(image=image(labels={"a": "1"})), metadata=NAMESPACE)
    ).image
    assert created.target == image().target
    assert created.created_at.ToNanoseconds() > 0
    assert (await images.Get(images_pb2.GetImageRequest(name="busybox"), metadata=NAMESPACE)).image == created
    found = await images.List(images_pb2.ListImagesRequest(filters=["name==busybox"]), metadata=NAMESPACE)
    assert list(found.images) == [created]
    request = images_pb2.UpdateImageRequest(image=image(labels={"a": "2"}), update_mask=FieldMask(paths=["labels.a"]))
    assert (await images.Update(request, metadata=NAMESPACE)).image.labels["a"] == "2"
    wrong = images_pb2.DeleteImageRequest(name="busybox", target=types_pb2.Descriptor(digest=digest.of(b"y")))
    assert await code(images.Delete(wrong, metadata=NAMESPACE)) == "NOT_FOUND"
    await images.Delete(images_pb2.DeleteImageRequest(name="busybox", sync=True), metadata=NAMESPACE)
    assert await code(images.Get(images_pb2.GetImageRequest(name="busybox"), metadata=NAMESPACE)) == "NOT_FOUND"
    assert events.published == [
        ("default", "/images/create", images_pb2.ImageCreate(name="busybox", labels={"a": "1"})),
        ("default", "/images/update", images_pb2.ImageUpdate(name="busybox", labels={"a": "2"})),
        ("default", "/images/delete", images_pb2.ImageDelete(name="busybox")),
    ]


async def test_an_image_that_is_taken_or_wrong_publishes_nothing(images, events):
    await images.Create(images_pb2.CreateImageRequest(image=image()), metadata=NAMESPACE)
    create = images_pb2.CreateImageRequest
    assert await code(images.Create(create(image=image()), metadata=NAMESPACE)) == "ALREADY_EXISTS"
    assert await code(images.Create(create(), metadata=NAMESPACE)) == "INVALID_ARGUMENT"
    assert await code(images.Create(create(image=image()))) == "FAILED_PRECONDITION"
    assert events.topics == ["/images/create"]


async def test_an_image_has_the_time_that_the_client_asks_for(images):
    request = images_pb2.CreateImageRequest(image=image(), source_date_epoch=Timestamp(seconds=42))
    assert (await images.Create(request, metadata=NAMESPACE)).image.created_at == Timestamp(seconds=42)


async def test_a_container_from_create_to_delete(containers, events):
    given = container(
        image="busybox",
        labels={"a": "1"},
        snapshotter="overlayfs",
        snapshot_key="k",
        sandbox="pod",
        extensions={"io.x/e": Any(type_url="t/e", value=b"\x80")},
    )
    created = (
        await containers.Create(containers_pb2.CreateContainerRequest(container=given), metadata=NAMESPACE)
    ).container
    stripped = containers_pb2.Container()
    stripped.CopyFrom(created)
    stripped.ClearField("created_at")
    stripped.ClearField("updated_at")
    assert stripped == given
    get = containers_pb2.GetContainerRequest(id="c1")
    assert (await containers.Get(get, metadata=NAMESPACE)).container == created
    change = container(image="other", labels={"a": "2"})
    request = containers_pb2.UpdateContainerRequest(container=change, update_mask=FieldMask(paths=["image"]))
    changed = (await containers.Update(request, metadata=NAMESPACE)).container
    assert (changed.image, dict(changed.labels)) == ("other", {"a": "1"})
    await containers.Delete(containers_pb2.DeleteContainerRequest(id="c1"), metadata=NAMESPACE)
    assert await code(containers.Get(get, metadata=NAMESPACE)) == "NOT_FOUND"
    (_, _, create_event), (_, _, update_event), (_, _, delete_event) = events.published
    assert events.topics == ["/containers/create", "/containers/update", "/containers/delete"]
    assert (create_event.id, create_event.image, create_event.runtime.options) == (
        "c1",
        "busybox",
        given.runtime.options,
    )
    assert (update_event.id, update_event.image, update_event.snapshot_key) == ("c1", "other", "k")
    assert delete_event.id == "c1"


async def test_a_container_without_options_has_none(containers):
    given = containers_pb2.Container(id="c", runtime=containers_pb2.Container.Runtime(name="r"), spec=SPEC)
    created = await containers.Create(containers_pb2.CreateContainerRequest(container=given), metadata=NAMESPACE)
    assert not created.container.runtime.HasField("options")


async def test_containers_are_listed_in_one_message_or_one_by_one(containers):
    for number in range(3):
        await containers.Create(
            containers_pb2.CreateContainerRequest(container=container(f"c{number}")), metadata=NAMESPACE
        )
    listing = containers_pb2.ListContainersRequest(filters=["id~=c[01]"])
    found = (await containers.List(listing, metadata=NAMESPACE)).containers
    assert [one.id for one in found] == ["c0", "c1"]
    assert [one.container async for one in containers.ListStream(listing, metadata=NAMESPACE)] == list(found)
    wrong = containers_pb2.ListContainersRequest(filters=["id="])
    assert await code(containers.List(wrong, metadata=NAMESPACE)) == "INVALID_ARGUMENT"


async def test_what_is_no_container_is_refused(containers, events):
    create = containers_pb2.CreateContainerRequest
    for given in (container("../x"), containers_pb2.Container(id="c", spec=SPEC), containers_pb2.Container(id="c")):
        assert await code(containers.Create(create(container=given), metadata=NAMESPACE)) == "INVALID_ARGUMENT"
    assert events.published == []


async def test_a_namespace_from_create_to_delete(namespaces, events):
    namespace = namespaces_pb2.Namespace(name="moby", labels={"a": "1"})
    created = await namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=namespace))
    assert created.namespace == namespace
    assert await code(namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=namespace))) == "ALREADY_EXISTS"
    assert (await namespaces.Get(namespaces_pb2.GetNamespaceRequest(name="moby"))).namespace == namespace
    request = namespaces_pb2.UpdateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name="moby", labels={"b": "2"}), update_mask=FieldMask(paths=["labels.b"])
    )
    assert dict((await namespaces.Update(request)).namespace.labels) == {"a": "1", "b": "2"}
    assert [one.name for one in (await namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces] == ["moby"]
    await namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name="moby"))
    assert await code(namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name="moby"))) == "NOT_FOUND"
    assert [(ns, topic) for ns, topic, _ in events.published] == [
        ("moby", "/namespaces/create"),
        ("moby", "/namespaces/update"),
        ("moby", "/namespaces/delete"),
    ]


async def test_a_namespace_that_is_not_there_has_no_labels_and_is_not_made(namespaces):
    answer = await namespaces.Get(namespaces_pb2.GetNamespaceRequest(name="moby"))
    assert answer.namespace == namespaces_pb2.Namespace(name="moby")
    assert not (await namespaces.List(namespaces_pb2.ListNamespacesRequest())).namespaces


async def test_a_namespace_that_is_in_use_is_not_deleted(namespaces, containers):
    await containers.Create(containers_pb2.CreateContainerRequest(container=container()), metadata=NAMESPACE)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name="default"))
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "still has containers" in str(failed.value.details())


async def test_a_lease_from_create_to_delete(leases):
    labels = {"containerd.io/gc.expire": "2026-11-25T05:00:00Z"}
    request = leases_pb2.CreateRequest(id="moby/prune.images", labels=labels)
    lease = (await leases.Create(request, metadata=NAMESPACE)).lease
    assert (lease.id, dict(lease.labels)) == ("moby/prune.images", labels)
    assert lease.created_at.ToNanoseconds() > 0
    assert await code(leases.Create(request, metadata=NAMESPACE)) == "ALREADY_EXISTS"
    found = await leases.List(leases_pb2.ListRequest(filters=["id==moby/prune.images"]), metadata=NAMESPACE)
    assert list(found.leases) == [lease]
    resource = leases_pb2.Resource(type="content", id=digest.of(b"x"))
    added = leases_pb2.AddResourceRequest(id=lease.id, resource=resource)
    await leases.AddResource(added, metadata=NAMESPACE)
    held = leases_pb2.ListResourcesRequest(id=lease.id)
    assert list((await leases.ListResources(held, metadata=NAMESPACE)).resources) == [resource]
    await leases.DeleteResource(leases_pb2.DeleteResourceRequest(id=lease.id, resource=resource), metadata=NAMESPACE)
    assert not (await leases.ListResources(held, metadata=NAMESPACE)).resources
    await leases.Delete(leases_pb2.DeleteRequest(id=lease.id, sync=True), metadata=NAMESPACE)
    for call in (
        leases.Delete(leases_pb2.DeleteRequest(id=lease.id), metadata=NAMESPACE),
        leases.ListResources(held, metadata=NAMESPACE),
        leases.AddResource(added, metadata=NAMESPACE),
    ):
        assert await code(call) == "NOT_FOUND"


async def test_a_lease_without_an_id_gets_one(leases):
    assert (await leases.Create(leases_pb2.CreateRequest(), metadata=NAMESPACE)).lease.id


async def test_a_sandbox_is_created_read_changed_and_deleted(sandboxes):
    given = types_pb2.Sandbox(
        sandbox_id="pod",
        sandboxer="pause",
        runtime=types_pb2.Sandbox.Runtime(name="io.containerd.runc.v2", options=Any(type_url="t", value=b"o")),
        spec=SPEC,
        labels={"a": "1"},
        extensions={"e": Any(type_url="t", value=b"e")},
    )
    stored = (await sandboxes.Create(sandbox_pb2.StoreCreateRequest(sandbox=given), metadata=NAMESPACE)).sandbox
    assert stored.created_at == stored.updated_at
    expected = types_pb2.Sandbox()
    expected.CopyFrom(given)
    expected.created_at.CopyFrom(stored.created_at)
    expected.updated_at.CopyFrom(stored.updated_at)
    assert stored == expected
    assert (await sandboxes.Get(sandbox_pb2.StoreGetRequest(sandbox_id="pod"), metadata=NAMESPACE)).sandbox == stored

    change = types_pb2.Sandbox(sandbox_id="pod", labels={"a": "2", "b": "x"})
    request = sandbox_pb2.StoreUpdateRequest(sandbox=change, fields=["labels.a"])
    changed = (await sandboxes.Update(request, metadata=NAMESPACE)).sandbox
    assert (dict(changed.labels), changed.spec) == ({"a": "2"}, SPEC)
    listed = await sandboxes.List(sandbox_pb2.StoreListRequest(filters=["labels.a==2"]), metadata=NAMESPACE)
    assert list(listed.list) == [changed]
    listed = await sandboxes.List(sandbox_pb2.StoreListRequest(filters=["labels.a==1"]), metadata=NAMESPACE)
    assert not listed.list

    await sandboxes.Delete(sandbox_pb2.StoreDeleteRequest(sandbox_id="pod"), metadata=NAMESPACE)
    assert not (await sandboxes.List(sandbox_pb2.StoreListRequest(), metadata=NAMESPACE)).list


async def test_what_a_bare_sandbox_does_not_have_stays_absent(sandboxes):
    request = sandbox_pb2.StoreCreateRequest(sandbox=types_pb2.Sandbox(sandbox_id="pod"))
    stored = (await sandboxes.Create(request, metadata=NAMESPACE)).sandbox
    assert not stored.HasField("spec")
    assert not stored.runtime.HasField("options")


async def test_errors_of_the_sandbox_store(sandboxes):
    one = types_pb2.Sandbox(sandbox_id="pod")
    await sandboxes.Create(sandbox_pb2.StoreCreateRequest(sandbox=one), metadata=NAMESPACE)
    there, unknown = sandbox_pb2.StoreCreateRequest(sandbox=one), types_pb2.Sandbox(sandbox_id="other")
    for awaited, expected in (
        (sandboxes.Create(there, metadata=NAMESPACE), "ALREADY_EXISTS"),
        (sandboxes.Create(sandbox_pb2.StoreCreateRequest(), metadata=NAMESPACE), "INVALID_ARGUMENT"),
        (sandboxes.Create(there), "FAILED_PRECONDITION"),
        (sandboxes.Get(sandbox_pb2.StoreGetRequest(sandbox_id="other"), metadata=NAMESPACE), "NOT_FOUND"),
        (sandboxes.Delete(sandbox_pb2.StoreDeleteRequest(sandbox_id="other"), metadata=NAMESPACE), "NOT_FOUND"),
        (sandboxes.Update(sandbox_pb2.StoreUpdateRequest(sandbox=unknown), metadata=NAMESPACE), "NOT_FOUND"),
        (sandboxes.Update(sandbox_pb2.StoreUpdateRequest(sandbox=one, fields=["x"]), metadata=NAMESPACE),
         "INVALID_ARGUMENT"),
        (sandboxes.List(sandbox_pb2.StoreListRequest(filters=["=="]), metadata=NAMESPACE), "INVALID_ARGUMENT"),
    ):  # fmt: skip
        assert await code(awaited) == expected


async def test_a_namespace_with_a_sandbox_is_not_empty(sandboxes, namespaces):
    request = sandbox_pb2.StoreCreateRequest(sandbox=types_pb2.Sandbox(sandbox_id="pod"))
    await sandboxes.Create(request, metadata=NAMESPACE)
    name = NAMESPACE[0][1]
    assert await code(namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=name))) == "FAILED_PRECONDITION"


LOG_URI = "containerd.io/restart.loguri"


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"Labels": {LOG_URI: "binary:///bin/evil"}}},
        {"CONFIG": {"LABELS": {LOG_URI: "binary:///bin/evil"}}, "rootfs": 1},
        b'{"config": {"Labels": {"%b": "x"}, "Labels": {"%b": "binary:///bin/evil"}}}' % ((LOG_URI.encode(),) * 2),
    ],
)
async def test_a_log_uri_is_never_the_images(content, images, containers, config):
    manifest = add_blob(content, {"config": {"digest": add_blob(content, config)}, "layers": []})
    index = add_blob(content, {"manifests": [{"digest": manifest}, {"digest": digest.of(b"not here")}]})
    made = image("evil")
    made.target.digest = index
    await images.Create(images_pb2.CreateImageRequest(image=made), metadata=NAMESPACE)

    async def create(id, uri, name="evil"):
        container = containers_pb2.Container(id=id, image=name, spec=SPEC, labels={LOG_URI: uri, "a": "1"})
        container.runtime.name = "r"
        request = containers_pb2.CreateContainerRequest(container=container)
        return dict((await containers.Create(request, metadata=NAMESPACE)).container.labels)

    assert await create("copied", "binary:///bin/evil") == {"a": "1"}
    assert await create("own", "file:///log") == {LOG_URI: "file:///log", "a": "1"}
    assert await create("other", "binary:///bin/evil", "nosuch") == {LOG_URI: "binary:///bin/evil", "a": "1"}

    change = containers_pb2.Container(id="own", labels={LOG_URI: "binary:///bin/evil"})
    request = containers_pb2.UpdateContainerRequest(container=change)
    request.update_mask.paths.append(f"labels.{LOG_URI}")
    changed = (await containers.Update(request, metadata=NAMESPACE)).container
    assert dict(changed.labels) == {"a": "1"}
