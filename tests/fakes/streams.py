"""The client's end of streams, as containerd's Go client has it: bytes in pieces of 32 KiB, within the window."""

import grpc

from runtimed.api import streaming_pb2
from runtimed.api import transfer_types_pb2 as types
from runtimed.api.streaming_pb2_grpc import StreamingStub
from runtimed.services.streaming import to_any, unpack
from tests.fakes.server import NAMESPACE

PIECE = 32 << 10
WINDOW = 64 << 10


async def opened(channel, id):
    """Return an open stream called *id*."""
    call = StreamingStub(channel).Stream(metadata=NAMESPACE)
    await call.write(to_any(streaming_pb2.StreamInit(id=id)))
    await call.read()
    return call


async def send_bytes(call, data, *, end=True):
    """Send *data* as far as the daemon wants it; say that this is the *end*."""
    window, offset = 0, 0
    while offset < len(data):
        while window <= 0:
            packed = await call.read()
            if packed is grpc.aio.EOF:
                return
            update = types.WindowUpdate()
            unpack(packed, update)
            window += update.update
        piece = data[offset : offset + min(PIECE, window)]
        try:
            await call.write(to_any(types.Data(data=piece)))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            return  # refused: the daemon has ended the stream
        window -= len(piece)
        offset += len(piece)
    if end:
        await call.done_writing()


async def receive_bytes(call):
    """Return all that the daemon sends."""
    data, window = b"", 0
    while True:
        if window <= 0:  # no sooner: of a stream that has ended grpc reads nothing more after a write
            try:
                await call.write(to_any(types.WindowUpdate(update=WINDOW)))
            except (grpc.aio.AioRpcError, grpc.aio.UsageError):
                return data
            window += WINDOW
        packed = await call.read()
        if packed is grpc.aio.EOF:
            return data
        message = types.Data()
        unpack(packed, message)
        window -= len(message.data)
        assert window >= 0
        data += message.data
