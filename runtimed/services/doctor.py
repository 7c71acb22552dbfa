"""The Doctor service, which is ours alone."""

from runtimed.api import doctor_pb2 as pb
from runtimed.api.doctor_pb2_grpc import DoctorServicer
from runtimed.doctor.doctor import Doctor
from runtimed.services.context import Context, timestamp


class DoctorService(DoctorServicer):
    """Needs no namespace: what is stray may belong to any, or to none."""

    def __init__(self, doctor: Doctor) -> None:
        self._doctor = doctor

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
