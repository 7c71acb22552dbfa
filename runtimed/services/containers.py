"""containerd.services.containers.v1: container records over gRPC."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from runtimed import labels
from runtimed.api import containers_pb2 as pb
from runtimed.api import events_pb2
from runtimed.deprecations import Deprecations
from runtimed.errors import NotFound
from runtimed.images import config_labels
from runtimed.metadata import containers, images
from runtimed.metadata.containers import Container, Opaque
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.services.context import Context, Publisher, namespace_of, timestamp
from runtimed.services.fieldmask import paths_of
from runtimed.threads import blocking

log = logging.getLogger(__name__)


class ContainersService:
    """Reads and writes container records; tasks are another service."""

    def __init__(self, db: Database, events: Publisher, content: Content, deprecations: Deprecations) -> None:
        self._db = db
        self._events = events
        self._content = content
        self._deprecations = deprecations

    async def Get(self, request: pb.GetContainerRequest, context: Context) -> pb.GetContainerResponse:
        container = self._db.look_up(containers.get, namespace_of(context), request.id)
        return pb.GetContainerResponse(container=_to_proto(container))

    async def List(self, request: pb.ListContainersRequest, context: Context) -> pb.ListContainersResponse:
        return pb.ListContainersResponse(containers=map(_to_proto, await self._list(request, context)))

    async def ListStream(
        self, request: pb.ListContainersRequest, context: Context
    ) -> AsyncIterator[pb.ListContainerMessage]:
        for container in await self._list(request, context):
            yield pb.ListContainerMessage(container=_to_proto(container))

    async def Create(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        namespace = namespace_of(context)
        given = await self._without_image_log(namespace, _from_proto(request.container))
        stored = await self._db.write(containers.create, namespace, given)
        self._deprecations.container(stored.runtime, stored.labels)
        answer = _to_proto(stored)
        event = events_pb2.ContainerCreate(
            id=stored.id,
            image=stored.image,
            runtime=events_pb2.ContainerCreate.Runtime(name=stored.runtime, options=_options(stored)),
        )
        self._events.publish(namespace, "/containers/create", event)
        return pb.CreateContainerResponse(container=answer)

    async def Update(self, request: pb.UpdateContainerRequest, context: Context) -> pb.UpdateContainerResponse:
        namespace = namespace_of(context)
        given = await self._without_image_log(namespace, _from_proto(request.container))
        stored = await self._db.write(containers.update, namespace, given, paths_of(request.update_mask))
        event = events_pb2.ContainerUpdate(
            id=stored.id, image=stored.image, labels=stored.labels, snapshot_key=stored.snapshot_key
        )
        self._events.publish(namespace, "/containers/update", event)
        return pb.UpdateContainerResponse(container=_to_proto(stored))

    async def Delete(self, request: pb.DeleteContainerRequest, context: Context) -> Empty:
        namespace = namespace_of(context)
        await self._db.write(containers.delete, namespace, request.id)
        self._events.publish(namespace, "/containers/delete", events_pb2.ContainerDelete(id=request.id))
        return Empty()

    async def _without_image_log(self, namespace: str, container: Container) -> Container:
        """Return *container* without a log URI that its image asks for.

        Clients copy an image's labels to the container. With this one, the maker of the image would have the daemon
        write to files or run programs of the host when the container is restarted.
        """
        uri = container.labels.get(labels.RESTART_LOG_URI)
        if uri is None:
            return container
        image = container.image
        if not image and container.id:  # an update need not say it
            with suppress(NotFound):
                image = (await self._db.read(containers.get, namespace, container.id)).image
        try:
            target = (await self._db.read(images.get, namespace, image)).target
        except NotFound:
            return container
        said = await blocking(config_labels.values, self._content, namespace, target.digest, labels.RESTART_LOG_URI)
        if uri not in said:
            return container
        log.warning("a log URI is the image's, and left out", extra={"container": container.id, "image": image})
        others = {key: value for key, value in container.labels.items() if key != labels.RESTART_LOG_URI}
        return replace(container, labels=others)

    async def _list(self, request: pb.ListContainersRequest, context: Context) -> Sequence[Container]:
        return await self._db.read(containers.list, namespace_of(context), list(request.filters))


def _from_proto(container: pb.Container) -> Container:
    options = container.runtime.options
    return Container(
        id=container.id,
        image=container.image,
        runtime=container.runtime.name,
        runtime_options=_from_any(options) if container.runtime.HasField("options") else None,
        spec=_from_any(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        sandbox=container.sandbox,
        extensions={name: _from_any(value) for name, value in container.extensions.items()},
        labels=dict(container.labels),
    )


def _to_proto(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=pb.Container.Runtime(name=container.runtime, options=_options(container)),
        spec=_to_any(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp(container.created_at),
        updated_at=timestamp(container.updated_at),
        extensions={name: _to_any(value) for name, value in container.extensions.items()},
        sandbox=container.sandbox,
    )


def _from_any(value: Any) -> Opaque:
    return Opaque(value.type_url, value.value)


def _to_any(value: Opaque) -> Any:
    return Any(type_url=value.type_url, value=value.value)


def _options(container: Container) -> Any | None:
    return _to_any(container.runtime_options) if container.runtime_options else None
