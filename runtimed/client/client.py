"""The client: a connection with a property for each kind of thing. They are loaded when they are first asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from runtimed.client.connection import Connection

if TYPE_CHECKING:
    from runtimed.client.containers import Containers
    from runtimed.client.content import Content
    from runtimed.client.images import Images
    from runtimed.client.leases import Leases
    from runtimed.client.namespaces import Namespaces
    from runtimed.client.records import Event, Plugin, Server
    from runtimed.client.snapshots import Snapshots

DEFAULT_ADDRESS = "/run/runtimed/runtimed.sock"
DEFAULT_NAMESPACE = "default"


@asynccontextmanager
async def connect(address: str = DEFAULT_ADDRESS, *, namespace: str = DEFAULT_NAMESPACE) -> AsyncIterator["Client"]:
    """Hold a connection to the daemon at *address*, a path or ``unix:///path``, for calls in *namespace*.

    Raises:
        DaemonLost: there is none; a note says what to do.
    """
    client = Client(address, namespace)
    try:
        yield client
    finally:
        await client.close()


class Client(Connection):
    """Calls in one namespace, any number at once. :func:`connect` makes one.

    All errors are those of :mod:`runtimed.errors`; DaemonLost, one of them, says that the daemon has gone. A later call
    connects again.
    """

    @cached_property
    def images(self) -> "Images":
        from runtimed.client.images import Images

        return Images(self)

    @cached_property
    def content(self) -> "Content":
        from runtimed.client.content import Content

        return Content(self)

    @cached_property
    def containers(self) -> "Containers":
        from runtimed.client.containers import Containers

        return Containers(self)

    @cached_property
    def leases(self) -> "Leases":
        from runtimed.client.leases import Leases

        return Leases(self)

    @cached_property
    def namespaces(self) -> "Namespaces":
        from runtimed.client.namespaces import Namespaces

        return Namespaces(self)

    def snapshots(self, snapshotter: str = "overlayfs") -> "Snapshots":
        """Return the snapshots of one snapshotter."""
        from runtimed.client.snapshots import Snapshots

        return Snapshots(self, snapshotter)

    async def events(self, *filters: str) -> AsyncIterator["Event"]:
        """Yield events of all namespaces from now on, those that match any of *filters*, until the daemon stops.

        Raises:
            InvalidArgument: a filter that does not parse.
            ResourceExhausted: too slow; the message says how many events were lost.
        """
        from runtimed.client.introspection import events

        async for event in events(self, filters):
            yield event

    async def plugins(self, *filters: str) -> list["Plugin"]:
        """Return the parts of the daemon, with the error of each that could not be loaded."""
        from runtimed.client.introspection import plugins

        return await plugins(self, filters)

    async def server(self) -> "Server":
        """Return who answers."""
        from runtimed.client.introspection import server

        return await server(self)
