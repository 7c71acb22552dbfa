"""The Doctor service, which is ours alone."""

from collections.abc import Awaitable, Callable, Mapping

from runtimed.api import doctor_pb2 as pb
from runtimed.doctor.doctor import Doctor
from runtimed.errors import DataLoss, NotFound
from runtimed.images.accounting import Accounts
from runtimed.images.checking import check_layers
from runtimed.images.repair import Repairer
from runtimed.metadata.snapshots import Snapshots
from runtimed.services.context import Context, namespace_of, timestamp
from runtimed.snapshots.snapshotter import Checkable
from runtimed.threads import blocking
from runtimed.workers.pool import Pool


class DoctorService:
    """Needs no namespace: what is stray may belong to any, or to none."""

    def __init__(
        self,
        doctor: Doctor,
        snapshotters: Mapping[str, Snapshots],
        pool: Pool,
        repairer: Repairer,
        account: Callable[[], Awaitable[Accounts]],
    ) -> None:
        self._doctor = doctor
        self._snapshotters = snapshotters
        self._pool = pool
        self._repairer = repairer
        self._account = account

    async def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        findings = await self._doctor.check(repair=request.repair)
        response = pb.CheckResponse()
        for found in findings:
            response.findings.add(
                kind=found.kind,
                what=found.what,
                detail=found.detail,
                since=timestamp(found.since),
                action=found.action,
                error=found.error,
            )
        for fact in await self._doctor.facts():
            response.facts.add(name=fact.name, value=fact.value, warning=fact.warning)
        return response

    async def CheckLayers(self, request: pb.CheckLayersRequest, context: Context) -> pb.CheckLayersResponse:
        response = pb.CheckLayersResponse()
        for layer in await check_layers(self._snapshotters.values(), self._pool):
            response.layers.add(
                snapshotter=layer.snapshotter,
                namespace=layer.namespace,
                name=layer.name,
                path=str(layer.path),
                size=layer.size,
                error=layer.error,
            )
        return response

    async def RepairLayers(self, request: pb.RepairLayersRequest, context: Context) -> pb.RepairLayersResponse:
        response = pb.RepairLayersResponse()
        namespace = namespace_of(context)
        for snapshots in self._snapshotters.values():
            if not isinstance(snapshots.snapshotter, Checkable):
                continue
            for row in await blocking(snapshots.committed, namespace):
                found, error = "", ""
                try:
                    found = await self._repairer.mend(snapshots, row)
                except NotFound:
                    continue  # removed meanwhile
                except DataLoss as exc:
                    error = str(exc)
                response.layers.add(snapshotter=snapshots.name, name=row.key, found=found, error=error)
        return response

    async def DiskUsage(self, request: pb.DiskUsageRequest, context: Context) -> pb.DiskUsageResponse:
        found = await self._account()
        response = pb.DiskUsageResponse(other=found.other, total=found.total)
        for name in ("blobs", "ingests", "layers", "active"):
            group = getattr(found, name)
            getattr(response, name).MergeFrom(pb.UsageGroup(count=group.count, size=group.size, unused=group.unused))
        for image in found.images:
            response.images.add(
                digest=image.digest,
                names=[pb.ImageUsage.Name(namespace=namespace, name=name) for namespace, name in image.names],
                blobs=image.blobs,
                layers=image.layers,
                unique=image.unique,
                shared=image.shared,
            )
        return response
