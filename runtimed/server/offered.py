"""The gRPC services that the daemon offers, over its parts."""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from runtimed.api import (
    containers_pb2,
    content_pb2,
    cri_pb2,
    diff_pb2,
    doctor_pb2,
    events_service_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    mounts_pb2,
    namespaces_pb2,
    registry_pb2,
    sandbox_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    version_pb2,
)
from runtimed.images.accounting import account
from runtimed.metadata import facts
from runtimed.server.parts import Parts
from runtimed.services import introspection
from runtimed.services.containers import ContainersService
from runtimed.services.content import ContentService
from runtimed.services.diff import DiffService
from runtimed.services.doctor import DoctorService
from runtimed.services.events import EventsService
from runtimed.services.health import HEALTH
from runtimed.services.images import ImagesService
from runtimed.services.introspection import IntrospectionService
from runtimed.services.leases import LeasesService
from runtimed.services.mounts import MountsService
from runtimed.services.namespaces import NamespacesService
from runtimed.services.registry import RegistryService
from runtimed.services.sandbox_controllers import SandboxControllerService
from runtimed.services.sandboxes import SandboxStoreService
from runtimed.services.snapshots import SnapshotsService
from runtimed.services.streaming import StreamingService
from runtimed.services.tasks import TasksService
from runtimed.services.version import VersionService


async def services(parts: Parts) -> list[tuple[ServiceDescriptor, Any]]:
    """Return each service with the servicer that answers for it; the last tells of all others."""
    content, database, events, snapshotters = parts.content, parts.database, parts.events, parts.snapshotters
    collect = parts.collector.collect
    account_of = partial(account, parts.config.root, database, content, snapshotters)
    offered: list[tuple[ServiceDescriptor, Any]] = [
        (_service(version_pb2, "Version"), VersionService()),
        (_service(namespaces_pb2, "Namespaces"), NamespacesService(database, events)),
        (_service(containers_pb2, "Containers"), ContainersService(database, events, content, parts.deprecations)),
        (_service(content_pb2, "Content"), ContentService(content, events)),
        (_service(images_pb2, "Images"), ImagesService(database, events, collect)),
        (_service(leases_pb2, "Leases"), LeasesService(database, collect)),
        (_service(snapshots_pb2, "Snapshots"), SnapshotsService(snapshotters, events, parts.repairer)),
        (_service(diff_pb2, "Diff"), DiffService(content, parts.pool, snapshotters, events, parts.processors)),
        (_service(tasks_pb2, "Tasks"), TasksService(parts.tasks, parts.mounts)),
        (_service(mounts_pb2, "Mounts"), MountsService(parts.mounts)),
        (_service(sandbox_pb2, "Store"), SandboxStoreService(database)),
        (_service(sandbox_pb2, "Controller"), SandboxControllerService(database, parts.sandboxes)),
        (_service(events_service_pb2, "Events"), EventsService(events)),
        (_service(streaming_pb2, "Streaming"), StreamingService(parts.streams)),
        (_service(transfer_pb2, "Transfer"), parts.transfer),
        (_service(registry_pb2, "Registry"), RegistryService(parts.registries)),
        (
            _service(doctor_pb2, "Doctor"),
            DoctorService(parts.doctor, snapshotters, parts.pool, parts.repairer, account_of),
        ),
        (_service(cri_pb2, "RuntimeService"), parts.cri.runtime),
        (_service(cri_pb2, "ImageService"), parts.cri.images),
    ]
    introspected = _service(introspection_pb2, "Introspection")
    names = [*names_of(offered), introspected.full_name, HEALTH.full_name]
    plugins = introspection.plugins(parts.loaded.values(), parts.config.root, names, parts.oci_runtimes)
    identity = await database.write(facts.ensure, "uuid", str(uuid.uuid4()))
    servicer = IntrospectionService(identity, plugins, parts.launcher, parts.deprecations)
    return [*offered, (introspected, servicer)]


def names_of(offered: Sequence[tuple[ServiceDescriptor, Any]]) -> list[str]:
    return [service.full_name for service, _ in offered]


def _service(module: Any, name: str) -> ServiceDescriptor:
    service: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return service
