"""One repository, wherever it is had: on the hosts that stand for a registry, tried in order.

A host that has not what is asked for, refuses, or gives wrong bytes is passed over. One that fails for the moment is
tried again when the others have been, for as long as patience lasts.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from yarl import URL

from runtimed.errors import FailedPrecondition, Internal, ResourceExhausted, RuntimedError, Unavailable
from runtimed.oci.reference import Reference
from runtimed.registry import hosts
from runtimed.registry.answers import Answer, Sent
from runtimed.registry.auth import AskCredentials
from runtimed.registry.hosts import Capability, Endpoint
from runtimed.registry.patience import Patience, is_nobody_there

if TYPE_CHECKING:
    from runtimed.registry.host import Body, HostClient

__all__ = ["Answer", "Patience", "RegistryClient", "Sent"]

_T = TypeVar("_T")


class RegistryClient:
    """One repository of a registry. An asynchronous context manager: holds connections while open."""

    def __init__(
        self,
        reference: Reference,
        *,
        endpoints: Sequence[Endpoint] = (),
        default_scheme: str = "",
        headers: Mapping[str, str] | None = None,
        credentials: AskCredentials | None = None,
        patience: Patience | None = None,
        push_scopes: Sequence[str] = (),
        connections: int = 1,
    ) -> None:
        """Prepare requests for *reference* to *endpoints*, the best first; without any to the host that it names.

        *headers* go with each request to the registry itself, not to mirrors or where it redirects. With *push_scopes*
        tokens are asked for with those, else for pulling. A large blob that comes slowly is fetched by up to
        *connections* at a time.
        """
        from runtimed.registry.host import HostClient  # here, for what it loads: :mod:`runtimed.registry.loading`

        self.reference = reference
        self.patience = patience or Patience()
        self.connections = connections
        self._hosts = [
            HostClient(one, reference, headers=headers, credentials=credentials, push_scopes=push_scopes)
            for one in endpoints or [hosts.endpoint(reference.host, default_scheme)]
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in self._hosts:
            await host.close()

    async def get(
        self, kind: str, name: str, *, accept: str = "*/*", limit: int, check: Callable[[Answer], None] | None = None
    ) -> Answer:
        """Return one of the repository's ``manifests`` or ``blobs`` of at most *limit* bytes, if *check* lets it pass.

        Raises:
            NotFound, Unauthenticated, PermissionDenied: what the registry says, with host, reference and remedy.
            Unavailable: no answer, or none that can be used, after some attempts; says what the last one was.
            InvalidArgument: larger than *limit*.
        And what *check* does. Of several hosts, the error says what each had to say; it is of the last one's kind.
        """

        async def attempt(host: "HostClient") -> Answer:
            answer = await host.get(host.url(kind, name), accept=accept, limit=limit)
            if check:
                check(answer)
            return answer

        is_tag = kind == "manifests" and ":" not in name
        return await self.anywhere(Capability.RESOLVE if is_tag else Capability.PULL, attempt)

    async def anywhere(
        self,
        capability: Capability,
        attempt: "Callable[[HostClient], Awaitable[_T]]",
        progress: Callable[[], Awaitable[int]] | None = None,
    ) -> _T:
        """Return what *attempt* does for the first host that has *capability* and with which it succeeds.

        Patience begins anew whenever *progress* is more than before. Raises as :meth:`get`.
        """
        left = self._able(capability)
        tried: dict[HostClient, RuntimedError] = {}
        failures, reached = 0, await progress() if progress else 0
        while True:
            for host in list(left):
                try:
                    return await attempt(host)
                except (ResourceExhausted, Internal):
                    raise  # ours, not the host's
                except RuntimedError as exc:
                    tried[host] = exc
                    # Who is not there will not be in a moment, and the user should hear it at once.
                    if not isinstance(exc, Unavailable) or is_nobody_there(exc):
                        left.remove(host)
            error = self._error(tried)
            if not left:
                raise error
            now = await progress() if progress else 0
            failures, reached = 1 if now > reached else failures + 1, now
            waits = [one.retry_after_s for one in map(tried.__getitem__, left) if isinstance(one, Unavailable)]
            waited = Unavailable(str(error))
            waited.retry_after_s = None if None in waits else min((wait for wait in waits if wait), default=None)
            try:
                await self.patience.wait(failures, waited)
            except Unavailable:
                raise error from None

    def _able(self, capability: Capability) -> "list[HostClient]":
        able = [host for host in self._hosts if capability in host.endpoint.capabilities]
        if not able:
            configured = ", ".join(f"{host.endpoint} ({host.endpoint.source})" for host in self._hosts)
            raise FailedPrecondition(f"image {self.reference}: no host may be used to {capability}: {configured}")
        return able

    def _error(self, tried: "Mapping[HostClient, RuntimedError]") -> RuntimedError:
        """Return one error for what several hosts have said, the registry itself last."""
        *_, last = tried.values()
        if len(tried) == 1:
            return last
        said = "; ".join(
            f"{host.endpoint} ({host.endpoint.source}): {str(exc).removeprefix(host.subject).removeprefix(': ')}"
            for host, exc in tried.items()
        )
        return type(last)(f"image {self.reference}: none of {len(tried)} hosts gives it: {said}")

    # -- pushing: to one host

    @property
    def target(self) -> "HostClient":
        """The host that is pushed to. Raises FailedPrecondition: none may be."""
        return self._able(Capability.PUSH)[0]

    def url(self, kind: str, name: str) -> URL:
        """Return the URL of one of the repository's ``manifests`` or ``blobs`` where it is pushed to."""
        return self.target.url(kind, name)

    async def send(
        self,
        method: str,
        url: URL,
        *,
        accepted: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: "Body | None" = None,
        length: int = 0,
    ) -> Sent:
        """Make one request; see :meth:`HostClient.send`."""
        return await self.target.send(method, url, accepted=accepted, headers=headers, body=body, length=length)

    def location(self, sent: Sent) -> URL:
        """Return where an upload goes on; see :meth:`HostClient.location`."""
        return self.target.location(sent)
