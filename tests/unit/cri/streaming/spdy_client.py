"""A SPDY/3.1 client of the tests' own, from the draft; it shares but the dictionary with the daemon."""

import asyncio
import contextlib
import struct
import zlib
from collections import defaultdict

from runtimed.cri.streaming.spdy import DICTIONARY


class SpdyClient:
    """Upgrades a connection and speaks SPDY on it."""

    def __init__(self, reader, writer):
        self._reader, self.writer = reader, writer
        self._compressor = zlib.compressobj(zdict=DICTIONARY)
        self._decompressor = zlib.decompressobj(zdict=DICTIONARY)
        self.data = defaultdict(bytearray)
        self.ended = set()
        self.replied = set()
        self.resets = {}
        self.pings = []
        self._next = 1
        self.status, self.head = 0, ""

    @classmethod
    async def connect(cls, url, protocol, ssl=None):
        host, _, rest = url.partition("://")[2].partition("/")
        name, _, port = host.rpartition(":")
        reader, writer = await asyncio.open_connection(name, int(port), ssl=ssl)
        writer.write(
            f"POST /{rest} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        client = cls(reader, writer)
        client.status = int(head.split()[1])
        client.head = head
        return client

    def open(self, fin=False, **headers):
        pairs = [(key.encode(), str(value).encode()) for key, value in headers.items()]
        block = struct.pack(">I", len(pairs))
        for key, value in pairs:
            block += struct.pack(">I", len(key)) + key + struct.pack(">I", len(value)) + value
        packed = self._compressor.compress(block) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        id, self._next = self._next, self._next + 2
        self.control(1, struct.pack(">IIH", id, 0, 0) + packed, fin)
        return id

    def control(self, type, payload, flags=0):
        self.writer.write(struct.pack(">HHI", 0x8003, type, int(flags) << 24 | len(payload)) + payload)

    def send(self, id, data, fin=False):
        self.writer.write(struct.pack(">II", id, int(fin) << 24 | len(data)) + data)

    async def step(self):
        """Take one frame; return False at the end of the connection."""
        try:
            head = await self._reader.readexactly(8)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        first, rest = struct.unpack(">II", head)
        payload = await self._reader.readexactly(rest & 0xFFFFFF)
        if not first & 1 << 31:
            self.data[first] += payload
            if rest >> 24 & 1:
                self.ended.add(first)
            return True
        assert first >> 16 == 0x8003
        id = struct.unpack(">I", payload[:4])[0]
        match first & 0xFFFF:
            case 2:
                assert self._decompressor.decompress(payload[4:]) == b"\0\0\0\0"
                self.replied.add(id)
            case 3:
                self.resets[id] = struct.unpack(">I", payload[4:])[0]
            case 6:
                self.pings.append(id)
        return True

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                assert await self.step(), "the connection has ended"

    async def end(self):
        async with asyncio.timeout(10):
            while await self.step():
                pass

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
