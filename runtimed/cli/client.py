"""The connection of a command."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from runtimed.client import Client, connect
from runtimed.client.connection import DaemonLost, service, together

__all__ = ["Client", "DaemonLost", "Settings", "run", "service", "together"]


class Settings(msgspec.Struct):
    """The global options."""

    address: str = ""  # a path, or unix:///path
    namespace: str = ""
    json: bool = False
    debug: bool = False

    @property
    def socket_path(self) -> Path:
        return Path(self.address.removeprefix("unix://")).absolute()


def run(settings: Settings, work: Callable[[Client], Awaitable[int]]) -> int:
    """Return the exit status of *work*, given a connection."""

    async def connected_work() -> int:
        async with connect(settings.address, namespace=settings.namespace) as client:
            return await work(client)

    return asyncio.run(connected_work())
