"""The Registry service, which is ours alone."""

from runtimed.api import registry_pb2 as pb
from runtimed.oci import reference as references
from runtimed.registry import referrers
from runtimed.registry.registries import Registries
from runtimed.registry.resolver import resolve
from runtimed.services.context import Context


class RegistryService:
    """Needs no namespace: what is said holds for all."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        reference = references.parse(request.reference)
        response = pb.ExplainResponse(reference=str(reference))
        for one in await self._registries.explain(reference):
            endpoint = one.endpoint
            response.hosts.add(
                url=str(endpoint.base / reference.repository / "manifests" / reference.object),
                source=endpoint.source,
                capabilities=sorted(endpoint.capabilities),
                credentials=one.credentials,
                proxy=one.proxy,
                skip_verify=endpoint.tls.skip_verify,
                authorities=endpoint.tls.authorities,
                client_certificates=[certificate for certificate, _ in endpoint.tls.identities],
                headers=endpoint.headers,
            )
        return response

    async def Referrers(self, request: pb.ReferrersRequest, context: Context) -> pb.ReferrersResponse:
        reference = references.parse(request.reference)
        async with await self._registries.client(reference) as client:
            digest = reference.digest or (await resolve(client))[0].digest
            response = pb.ReferrersResponse(digest=digest)
            for one in await referrers.listed(client, digest, request.artifact_type):
                response.referrers.add(
                    media_type=one.media_type,
                    digest=one.digest,
                    size=one.size,
                    artifact_type=one.artifact_type,
                    annotations=one.annotations,
                )
        return response
