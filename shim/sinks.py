"""Output that the shim itself has to do with, by the URI that a client gives for it.

``binary://PROGRAM?KEY=VALUE`` is a program that reads it (``shim.logger``), ``cri://PATH?max_line=N`` a log that the
shim writes (``shim.crilog``). Either is loaded when it is asked for, where the shim's parent has not loaded it.
"""

from typing import NamedTuple, Protocol

from runtimed.errors import FailedPrecondition
from shim.exits import Children
from shim.stdio import Output


class Origin(NamedTuple):
    """Whose streams they are."""

    children: Children
    namespace: str
    id: str  # the container's, or the exec's
    uid: int = 0  # owner of the streams
    gid: int = 0


class Sink(Protocol):
    """What takes the output of one process, stdout, stderr or both."""

    def output(self, stream: str) -> Output:
        """Return a stream into this, ``stdout`` or ``stderr``, each once and before :meth:`open`."""

    async def open(self) -> None:
        """Begin. Raises InvalidArgument, FailedPrecondition, DeadlineExceeded, ..."""

    def attach(self, path: str) -> None:
        """Give the output to a client on the FIFO *path* too. Raises FailedPrecondition: this cannot."""

    def settle(self) -> None:
        """Take what is there now, without waiting: the process has ended."""

    async def drained(self) -> None:
        """Wait until the streams have ended and everything is taken; for ever, if somebody holds one of them."""

    def close(self) -> None:
        """Take no more, and begin to end. Once only."""

    async def closed(self) -> None:
        """Wait, for a limited time, until nothing is left of it."""


class Sinks:
    """The sinks of one process, which its streams may share: the same URI is the same sink."""

    __slots__ = ("_by_uri", "origin")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._by_uri: dict[str, Sink] = {}

    def output(self, uri: str, stream: str) -> Output:
        """Return the stream that *uri* names, which need not lead to a sink. Raises as :meth:`Output.open`."""
        origin = self.origin
        if not uri.startswith(("binary://", "cri://")):
            return Output.open(uri, stream, origin.uid, origin.gid)
        sink = self._by_uri.get(uri)
        if sink is None:
            sink = self._by_uri[uri] = _sink(uri, stream, origin)
        return sink.output(stream)

    async def open(self) -> None:
        for sink in self._by_uri.values():
            await sink.open()

    def attach(self, path: str) -> None:
        """Give the output to a client on the FIFO *path* too.

        Raises:
            FailedPrecondition: it does not go to one log.
            InvalidArgument, NotFound: *path* is no FIFO that somebody has open for reading.
        """
        if len(self._by_uri) != 1:
            raise FailedPrecondition("a client can be attached only where all output goes to one log, cri://")
        for sink in self._by_uri.values():
            sink.attach(path)

    def settle(self) -> None:
        for sink in self._by_uri.values():
            sink.settle()

    async def drained(self) -> None:
        for sink in self._by_uri.values():
            await sink.drained()

    def close(self) -> None:
        for sink in self._by_uri.values():
            sink.close()

    async def closed(self) -> None:
        for sink in self._by_uri.values():
            await sink.closed()


def _sink(uri: str, stream: str, origin: Origin) -> Sink:
    if uri.startswith("binary://"):
        from shim.logger import Logger

        return Logger(uri, stream, origin)
    from shim.crilog import CriLog

    return CriLog(uri, stream, origin)
