"""Registries as they are configured: from a reference to a client for it, or to what one would do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimed import config
from runtimed.oci.reference import Reference
from runtimed.registry import credentials, hosts_toml, loading
from runtimed.registry.auth import AskCredentials
from runtimed.registry.client import RegistryClient
from runtimed.registry.hosts import Endpoint
from runtimed.threads import blocking
from runtimed.workers.proxies import proxy_for


@dataclass(frozen=True, slots=True)
class Explained:
    """A host that would be asked: how it is spoken to, and where that was said. No secrets."""

    endpoint: Endpoint
    credentials: str  # where they are from; "" is none
    proxy: str  # its address; "" is none


class Registries:
    """What the daemon knows of registries. All but the configuration itself is read anew for each client."""

    def __init__(self, settings: config.Registry | None = None) -> None:
        self._settings = settings or config.Registry(config_path="", docker_config="")
        self._stored = credentials.Stored(self._settings)

    @property
    def foreign_layers(self) -> bool:
        """Whether layers that are kept elsewhere, by what an image says, are pulled and pushed like others."""
        return self._settings.foreign_layers

    async def client(
        self,
        reference: Reference,
        *,
        hosts_directory: str = "",
        default_scheme: str = "",
        headers: Mapping[str, str] | None = None,
        credentials_of_caller: AskCredentials | None = None,
        push_scopes: Sequence[str] = (),
    ) -> RegistryClient:
        """Return a client for *reference*; *hosts_directory* of a caller takes the place of those configured.

        Credentials are the caller's, and where it has none the daemon's own.

        Raises:
            InvalidArgument, PermissionDenied: what is configured for it cannot be used; names file and line.
        """
        await blocking(loading.load)  # not in the thread that serves everybody
        asks = [credentials_of_caller] if credentials_of_caller else []
        return RegistryClient(
            reference,
            endpoints=await self._endpoints(reference, hosts_directory, default_scheme),
            headers=headers,
            credentials=credentials.first_of(*asks, self._stored.ask),
            push_scopes=push_scopes,
            connections=self._settings.connections,
        )

    async def explain(self, reference: Reference, *, default_scheme: str = "") -> list[Explained]:
        """Return the hosts that would be asked for *reference*, in order. Nobody is asked. Raises as :meth:`client`."""
        explained = []
        for endpoint in await self._endpoints(reference, "", default_scheme):
            found = await self._stored.find(endpoint.authority)
            proxy = proxy_for(endpoint.base.scheme, endpoint.base.raw_host or "", endpoint.base.port)
            explained.append(Explained(endpoint, found.source if found else "", str(proxy or "")))
        return explained

    async def _endpoints(self, reference: Reference, directory: str, default_scheme: str) -> list[Endpoint]:
        directories = directory or self._settings.config_path
        paths = [Path(one) for one in directories.split(":") if one]
        return await blocking(hosts_toml.endpoints, paths, reference.host, default_scheme)
