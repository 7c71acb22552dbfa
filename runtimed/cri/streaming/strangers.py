"""Connections that are not served."""

import asyncio


class TurnedAway(asyncio.Protocol):
    """Closes its connection at once: nobody has a URL, or too many have connected without one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
