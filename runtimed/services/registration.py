"""Which methods a gRPC server offers: those that a servicer class defines itself.

The generated base classes define every method of a service, as an answer "not implemented". Those are not registered,
so that grpc itself answers UNIMPLEMENTED, and what reflection and logs see is what there is.
"""

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from runtimed.rpc.grpc_server import Server


def register(server: Server, service: ServiceDescriptor, servicer: Any) -> None:
    """Offer *service* on *server*, with the methods that the class of *servicer* defines; before the server starts."""
    handlers = {
        method.name: _handler(method, getattr(servicer, method.name))
        for method in service.methods
        if _defines(type(servicer), method.name)
    }
    if not handlers:
        raise TypeError(f"{type(servicer).__name__} defines no method of {service.full_name}")
    server.add_registered_method_handlers(service.full_name, handlers)


def _defines(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__ if not base.__module__.startswith("runtimed.api."))


def _handler(method: MethodDescriptor, function: Any) -> Any:
    requests = "stream" if method.client_streaming else "unary"
    responses = "stream" if method.server_streaming else "unary"
    make = getattr(grpc, f"{requests}_{responses}_rpc_method_handler")
    return make(
        function,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
