"""What there is, told to a plugin that has just come: in pieces, if it does not fit into one message."""

from collections.abc import Iterator, Sequence

from google.protobuf.message import Message

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition
from runtimed.nri.connection import Connection
from runtimed.rpc.frames import MAX_MESSAGE

_MOST = MAX_MESSAGE - (64 << 10)  # bytes of a piece: what ttrpc puts around it takes its share


def pieces(
    pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container], most: int = _MOST
) -> Iterator[pb.SynchronizeRequest]:
    """Yield requests of at most *most* bytes, of which each but the last says that there is more; at least one."""
    piece, size = pb.SynchronizeRequest(), 0
    things: list[Message] = [*pods, *containers]
    for thing in things:
        added = thing.ByteSize() + 8
        if size and size + added > most:
            piece.more = True
            yield piece
            piece, size = pb.SynchronizeRequest(), 0
        if isinstance(thing, pb.PodSandbox):
            piece.pods.append(thing)
        elif isinstance(thing, pb.Container):
            piece.containers.append(thing)
        size += added
    yield piece


async def synchronize(
    plugin: Connection, pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container], limit_s: float
) -> list[pb.ContainerUpdate]:
    """Tell a plugin of all, and return what it wants changed; *limit_s* is for each piece.

    Raises:
        DeadlineExceeded, Unavailable: no answer in time; it is gone.
        FailedPrecondition: it does not understand pieces, and one message does not suffice.
        RuntimedError: what the plugin says.
    """
    answer = pb.SynchronizeResponse()
    for piece in pieces(pods, containers):
        answer = await plugin.synchronize(piece, limit_s)
        if piece.more and (answer.update or not answer.more):
            raise FailedPrecondition(
                f"NRI plugin {plugin}: does not understand synchronization in pieces, which {len(pods)} pods and "
                f"{len(containers)} containers need"
            )
    return list(answer.update)
