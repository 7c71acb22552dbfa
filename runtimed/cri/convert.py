"""What the services of CRI have in common: the type of a call's context, lists as streams."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import grpc.aio

T = TypeVar("T")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_AT_ONCE = 100  # items of a list that is streamed, in a message


def pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a list into the messages of a stream; an empty list is no message."""
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
