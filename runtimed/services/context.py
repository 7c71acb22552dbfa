"""What a servicer needs besides its request: the namespace, the lease, and where events go."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from runtimed import identifiers
from runtimed.errors import FailedPrecondition
from runtimed.rpc.grpc_server import Context

__all__ = ["Context"]

Collect: TypeAlias = Callable[[], Awaitable[None]]  # returns when what nothing holds has been removed

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"


class Publisher(Protocol):
    """Where a service says what it has done. The event bus is one."""

    def publish(self, namespace: str, topic: str, message: Message) -> None:
        """Tell every subscriber. Never blocks and never fails because of a subscriber."""


def namespace_of(context: Context) -> str:
    """Return the namespace of the request. If the header comes twice (BuildKit in dockerd does that) the first counts.

    Raises:
        FailedPrecondition: the request gives none.
        InvalidArgument: it is not a valid namespace.
    """
    value = _first(context, NAMESPACE_HEADER)
    if not value:
        raise FailedPrecondition(f"namespace is required: set the header {NAMESPACE_HEADER}")
    return identifiers.validate(value, "namespace")


def lease_of(context: Context) -> str:
    """Return the ID of the lease that is to hold what the request makes, or "". The first header counts."""
    return _first(context, LEASE_HEADER)


async def nothing_to_collect() -> None:
    """Stand in for the collector where there is none."""


def timestamp(ns: int) -> Timestamp:
    """Return nanoseconds since the epoch (UTC) as protobuf has them."""
    result = Timestamp()
    result.FromNanoseconds(ns)
    return result


def _first(context: Context, header: str) -> str:
    for key, value in context.invocation_metadata():
        if key == header:
            return value
    return ""
