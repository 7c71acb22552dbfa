"""What shims that are not our own log, to the FIFO in their bundle that containerd's shims log to."""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

from runtimed.tasks.bundle import Bundle
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_CHUNK = 16 << 10  # bytes read at once; a line that is longer is cut


class ShimLogs:
    """The FIFOs that are read."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}  # by bundle

    async def open(self, bundle: Bundle) -> None:
        """Log what the shim of *bundle* logs, until :meth:`close`. It waits for a reader before it starts."""
        fd = await blocking(bundle.make_log)
        self._fds[bundle.path] = fd
        asyncio.get_running_loop().add_reader(fd, _read, fd, bundle)

    def close(self, bundle: Bundle) -> None:
        if (fd := self._fds.pop(bundle.path, None)) is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def close_all(self) -> None:
        """Stop reading; what shims write then is lost, and they go on."""
        for fd in self._fds.values():
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._fds.clear()


def _read(fd: int, bundle: Bundle) -> None:
    with suppress(BlockingIOError):
        for line in os.read(fd, _CHUNK).decode(errors="replace").splitlines():
            log.debug("shim", extra={"namespace": bundle.namespace, "task": bundle.id, "line": line})
