"""Which methods a gRPC server offers: those of a service that a servicer's class has."""

from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from runtimed.rpc.grpc_server import Server


def register(server: Server, service: ServiceDescriptor, servicer: Any) -> None:
    """Offer *service* on *server*, with the methods that *servicer* has; before the server starts."""
    handlers = {
        method.name: _handler(method, getattr(servicer, method.name))
        for method in service.methods
        if hasattr(servicer, method.name)
    }
    if not handlers:
        raise TypeError(f"{type(servicer).__name__} defines no method of {service.full_name}")
    server.add_registered_method_handlers(service.full_name, handlers)


def _handler(method: MethodDescriptor, function: Any) -> Any:
    """Return what a grpc.RpcMethodHandler is to a server; grpc, 25 ms of the daemon's start, is not loaded for it."""
    requests = "stream" if method.client_streaming else "unary"
    responses = "stream" if method.server_streaming else "unary"
    return SimpleNamespace(
        request_streaming=method.client_streaming,
        response_streaming=method.server_streaming,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
        **{f"{requests}_{responses}": function},
    )
