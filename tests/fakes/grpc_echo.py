"""A small gRPC service, on our server, or on grpc's."""

import asyncio
import socket
from contextlib import asynccontextmanager

import grpc

from runtimed.api import content_pb2 as pb
from runtimed.api.content_pb2_grpc import ContentServicer, add_ContentServicer_to_server
from runtimed.errors import NotFound
from runtimed.rpc.grpc_server import Context, Server
from runtimed.services.interceptors import wrapped

CONTENT = "/containerd.services.content.v1.Content"
LARGE = bytes(range(256)) * (15 << 12)  # 15 MiB: many windows


class Echo(ContentServicer):
    """Gives back what it gets."""

    def __init__(self):
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()

    async def Info(self, request, context):
        if request.digest == "wait":
            self.begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.ended.set()
        if request.digest == "metadata":
            return pb.InfoResponse(info=pb.Info(digest=dict(context.invocation_metadata())["key"]))
        if request.digest == "missing":
            if isinstance(context, Context):
                raise NotFound("content 'ä%\n'")
            await context.abort(grpc.StatusCode.NOT_FOUND, "content 'ä%\n'")
        return pb.InfoResponse(info=pb.Info(digest=request.digest))

    async def Read(self, request, context):
        try:
            for offset in range(request.size):
                yield pb.ReadContentResponse(offset=offset, data=(LARGE * 2)[: request.offset])
            if request.digest == "wait":
                self.begun.set()
                await asyncio.sleep(60)
        finally:
            self.ended.set()

    async def Write(self, requests, context):
        async for request in requests:
            yield pb.WriteContentResponse(offset=len(request.data))


@asynccontextmanager
async def ours(path, echo):
    server = Server(wrapped)
    add_ContentServicer_to_server(echo, server)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    await server.serve(sock)
    try:
        yield server
    finally:
        await server.stop()
