"""Credentials for a registry, asked of the client over its auth stream."""

import asyncio

from runtimed.api import transfer_types_pb2 as types
from runtimed.errors import Unauthenticated, Unavailable
from runtimed.registry.auth import AskCredentials, Credentials
from runtimed.services.streaming import Stream, unpack

_CREDENTIALS_LIMIT_S = 60.0  # the client may have to ask a person, or a helper program


def asking(stream: Stream, reference: str) -> AskCredentials:
    """Return a function that asks the client for credentials over its auth stream, one question at a time."""
    lock = asyncio.Lock()

    async def ask(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        question = types.AuthRequest(host=host, reference=reference, wwwauthenticate=challenges)
        async with lock:
            try:
                async with asyncio.timeout(_CREDENTIALS_LIMIT_S):
                    await stream.send(question)
                    packed = await stream.receive()
            except Unavailable:
                packed = None
            except TimeoutError:
                raise Unavailable(
                    f"no credentials for {host} from the client in {_CREDENTIALS_LIMIT_S:.0f} s"
                ) from None
        if packed is None:
            raise Unauthenticated(f"the client was asked for credentials for {host} and has closed the stream")
        answer = types.AuthResponse()
        unpack(packed, answer)
        match answer.authType:
            case types.CREDENTIALS:
                return Credentials(username=answer.username, secret=answer.secret)
            case types.REFRESH:
                return Credentials(secret=answer.secret) if answer.secret else None
            case types.HEADER:
                return Credentials(header=answer.secret)
        return None

    return ask
