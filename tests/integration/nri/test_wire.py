"""NRI byte by byte: a plugin of this file's own encoding, which shares no code with the daemon, and is an older one.

It knows nothing of RunPodSandbox and its like, as plugins before NRI 0.11, and gets StateChange in their place.
"""

import asyncio
import struct
from contextlib import suppress

import pytest

from runtimed.api import nri_pb2 as pb
from runtimed.config import Nri
from runtimed.errors import Unavailable
from runtimed.nri import calls
from runtimed.nri.plugins import Plugins

PLUGIN, RUNTIME = 1, 2
REQUEST, RESPONSE = 1, 2
UNIMPLEMENTED = 12


def varint(number):
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


def text(field, value):
    """A length-delimited field."""
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def parsed(data):
    """Return the fields of a message: numbers and bytes by field number, the last of each."""
    fields, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if not data[at - 1] & 128:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            fields[key >> 3] = number()
        else:
            length = number()
            fields[key >> 3] = data[at : at + length]
            at += length
    return fields


class Wire:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.left = b""

    def send(self, channel, stream, kind, payload):
        frame = struct.pack(">IIBB", len(payload), stream, kind, 0) + payload
        for part in (frame[:3], frame[3:]):  # pieces may be of any size
            self.writer.write(struct.pack(">II", channel, len(part)) + part)

    async def frame(self):
        """Return channel, stream, kind and payload of the next frame; short ones come in one piece."""
        channel, length = struct.unpack(">II", await self.reader.readexactly(8))
        data = await self.reader.readexactly(length)
        size, stream, kind, _ = struct.unpack(">IIBB", data[:10])
        assert len(data) == 10 + size
        return channel, stream, kind, data[10:]

    async def asked(self):
        """Return stream, method and payload of the daemon's next request."""
        channel, stream, kind, payload = await self.frame()
        assert (channel, kind) == (PLUGIN, REQUEST)
        request = parsed(payload)
        assert request[1] == b"nri.pkg.api.v1alpha1.Plugin"
        return stream, request[2].decode(), request.get(3, b"")

    def answer(self, stream, payload):
        self.send(PLUGIN, stream, RESPONSE, text(2, payload))

    def refuse(self, stream, code):
        self.send(PLUGIN, stream, RESPONSE, text(1, varint(1 << 3) + varint(code) + text(2, "unknown")))


class Runtime:
    def __init__(self):
        self.asked = asyncio.Event()

    async def existing(self):
        return [pb.PodSandbox(id="pod-1", name="p")], []

    async def update_containers(self, updates):
        self.updates = updates
        self.asked.set()
        return []

    async def evict(self, evictions):
        assert not evictions


async def test_the_conversation(tmp_path):
    settings = Nri(enabled=True, socket=tmp_path / "s", plugin_path=tmp_path / "none")
    plugins = Plugins(settings, runtime := Runtime(), "runtimed", "1.2")
    await plugins.start()
    wire = Wire(*await asyncio.open_unix_connection(tmp_path / "s"))

    register = text(1, "old") + text(2, "07")
    call = text(1, "nri.pkg.api.v1alpha1.Runtime") + text(2, "RegisterPlugin") + text(3, register)
    wire.send(RUNTIME, 1, REQUEST, call)
    heard = {}
    for _ in range(2):  # in either order: the answer, and the first request
        channel, stream, kind, payload = await wire.frame()
        heard[channel] = (stream, kind, parsed(payload))
    assert heard[RUNTIME][:2] == (1, RESPONSE)
    assert 1 not in heard[RUNTIME][2]  # no error
    stream, kind, request = heard[PLUGIN]
    assert (kind, request[2]) == (REQUEST, b"Configure")
    configuration = parsed(request[3])
    assert (configuration[2], configuration[3]) == (b"runtimed", b"1.2")
    assert (configuration[4], configuration[5]) == (5000, 2000)
    events = 1 << 0 | 1 << 3  # RUN_POD_SANDBOX, CREATE_CONTAINER
    wire.answer(stream, varint(2 << 3) + varint(events))

    stream, method, payload = await wire.asked()
    assert (method, parsed(parsed(payload)[1])[1]) == ("Synchronize", b"pod-1")
    limit = text(1, varint(1 << 3) + varint(500))  # cpu.shares, in its wrapper
    update = text(1, "c-1") + text(2, text(1, text(2, limit)))
    wire.answer(stream, text(1, update))

    await asyncio.wait_for(runtime.asked.wait(), 10)  # it has been taken in
    telling = asyncio.create_task(plugins.tell(calls.RUN_POD, pb.RunPodSandboxRequest(pod=pb.PodSandbox(id="pod-2"))))
    stream, method, _ = await wire.asked()
    assert method == "RunPodSandbox"
    wire.refuse(stream, UNIMPLEMENTED)
    stream, method, payload = await wire.asked()
    event = parsed(payload)
    assert (method, event[1], parsed(event[2])[1]) == ("StateChange", 1, b"pod-2")
    assert 3 not in event  # no container
    wire.answer(stream, b"")
    await telling
    assert [(one.container_id, one.linux.resources.cpu.shares.value) for one in runtime.updates] == [("c-1", 500)]

    creating = pb.CreateContainerRequest(pod=pb.PodSandbox(id="pod-2"), container=pb.Container(id="c-2"))
    making = asyncio.create_task(plugins.create(creating))
    stream, method, payload = await wire.asked()
    assert (method, parsed(parsed(payload)[2])[1]) == ("CreateContainer", b"c-2")
    variable, annotation = text(1, "K") + text(2, "v"), text(1, "k") + text(2, "a")
    wire.answer(stream, text(1, text(2, annotation) + text(4, variable)))
    adjust = (await making).result
    assert dict(adjust.annotations) == {"k": "a"}
    assert [(one.key, one.value) for one in adjust.env] == [("K", "v")]

    closing = asyncio.create_task(plugins.close())
    stream, method, _ = await wire.asked()
    assert method == "Shutdown"
    wire.answer(stream, b"")
    await closing
    assert await wire.reader.read() == b""
    wire.writer.close()


@pytest.mark.parametrize("on_timeout", ["open", "closed"])
async def test_a_plugin_that_takes_nothing_holds_up_neither_containers_nor_the_end(tmp_path, on_timeout):
    """Stopped in a debugger, say. What it is asked does not pile up either."""
    settings = Nri(enabled=True, socket=tmp_path / "s", plugin_path=tmp_path, request_timeout_ms=200,
                   on_timeout=on_timeout)  # fmt: skip
    plugins = Plugins(settings, Runtime(), "runtimed", "1")
    await plugins.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    wire = Wire(reader, writer)
    wire.send(RUNTIME, 1, REQUEST, text(1, calls.RUNTIME_SERVICE) + text(2, "RegisterPlugin")
              + text(3, text(1, "wire") + text(2, "10")))  # fmt: skip
    for _ in range(3):  # the answer; Configure and Synchronize, which are answered with nothing
        channel, stream, kind, _ = await wire.frame()
        if (channel, kind) == (PLUGIN, REQUEST):
            wire.answer(stream, b"")
    async with asyncio.timeout(20):
        while not plugins._plugins:  # noqa: ASYNC110 - the daemon gets there later
            await asyncio.sleep(0)
        [plugin] = plugins._plugins
        request = pb.CreateContainerRequest(container=pb.Container(id="c", annotations={"k": "x" * (1 << 20)}))
        for _ in range(6):
            with suppress(Unavailable):
                await plugins.create(request)
        waiting = plugin._mux._writer.transport.get_write_buffer_size()
        assert waiting < 2 << 20, waiting
        await plugins.close()
    writer.close()
