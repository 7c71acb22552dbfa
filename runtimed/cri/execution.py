"""A further process in a container, with FIFOs of ours for its streams, as any client of the Task API has them.

<state>/cri/exec/<id>/      the FIFOs; gone when the process is
"""

import asyncio
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from runtimed.cri import container_exit, pipes
from runtimed.cri.core import Core
from runtimed.cri.images import NAMESPACE
from runtimed.cri.state import Container
from runtimed.errors import FailedPrecondition, NotFound, RuntimedError
from runtimed.metadata import containers
from runtimed.metadata.containers import Opaque
from runtimed.oci.runtime_spec import PROCESS_TYPE_URL
from runtimed.tasks.client import Stdio
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_ENDED_WITHIN_S = 10.0  # from SIGKILL to the exit
_WAITED_FOR_S = 12.0  # by whose exec it is


class Execution:
    """One process. ``fds`` has our ends of its streams by their names; they never block."""

    def __init__(self, core: Core, container: Container) -> None:
        self.id = f"exec-{secrets.token_hex(8)}"
        self.fds: dict[str, int] = {}
        self._core = core
        self._container = container
        self._directory = core.directory / "exec" / self.id
        self._starting: asyncio.Task[None] | None = None
        self._has_ended = self._is_gone = False

    async def start(self, command: Sequence[str], streams: Sequence[str], *, tty: bool = False) -> None:
        """Run *command* with some of stdin, stdout and stderr.

        Raises:
            FailedPrecondition: the container has ended meanwhile.
            RuntimedError: the runtime's own error: there is no such program, say.
        """
        # Not cancelled with the caller: it must be known whether there is a process to end.
        self._starting = self._core.spawn(self._start(command, streams, tty=tty))
        await asyncio.shield(self._starting)

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        exit = await self._core.tasks.wait(NAMESPACE, self._container.id, self.id)
        self._has_ended = True
        return exit.status

    async def delete(self) -> None:
        """Remove one that has ended; all that it has written is in the FIFOs then."""
        await self._core.tasks.delete_exec(NAMESPACE, self._container.id, self.id)
        self._is_gone = True

    async def end_input(self) -> None:
        """Let the process see the end of its input."""
        os.close(self.fds.pop("stdin"))
        with suppress(RuntimedError):  # it has ended
            await self._core.tasks.close_io(NAMESPACE, self._container.id, self.id, stdin=True)

    async def resize(self, width: int, height: int) -> None:
        with suppress(RuntimedError):  # it has ended
            await self._core.tasks.resize_pty(NAMESPACE, self._container.id, self.id, width, height)

    async def end(self, before_closing: Callable[[], None] = lambda: None) -> None:
        """End the process whatever state it is in, and remove everything; who still reads stops *before_closing*.

        With a shim that does not answer this takes its time, of which the caller is not kept waiting for all.
        """
        await asyncio.wait([self._core.spawn(self._end(before_closing))], timeout=_WAITED_FOR_S)

    async def _end(self, before_closing: Callable[[], None]) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()  # the caller has heard it, or has left
            try:
                async with asyncio.timeout(_ENDED_WITHIN_S):
                    await self._remove()
            except RuntimedError:
                pass  # it never was, or has gone with its container
            except TimeoutError:
                log.warning("a process that was killed does not end",
                            extra={"container": self._container.id, "exec": self.id})  # fmt: skip
        before_closing()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        await blocking(shutil.rmtree, self._directory, ignore_errors=True)

    async def _remove(self) -> None:
        if self._is_gone:
            return
        if not self._has_ended:
            with suppress(NotFound):
                await self._core.tasks.kill(NAMESPACE, self._container.id, self.id, signal.SIGKILL, all=False)
            await self.wait()
        await self.delete()

    async def _start(self, command: Sequence[str], streams: Sequence[str], *, tty: bool) -> None:
        process = await _process_of(self._core, self._container)
        process |= {"args": list(command), "terminal": tty}
        process.pop("consoleSize", None)
        if tty and isinstance(env := process.get("env"), list):
            process["env"] = [*env, "TERM=xterm"]
        self.fds = await blocking(pipes.make, self._directory, streams)
        stdio = Stdio(**{name: str(self._directory / name) for name in streams}, terminal=tty)
        spec = Opaque(PROCESS_TYPE_URL, msgspec.json.encode(process))
        try:
            await self._core.tasks.exec(NAMESPACE, self._container.id, self.id, stdio, spec)
            await self._core.tasks.start(NAMESPACE, self._container.id, self.id)
        except RuntimedError as exc:
            if not await container_exit.has_ended(self._container):
                raise
            # The runtime only has that a pipe is broken.
            raise FailedPrecondition(f"container {self._container.id} has ended: {exc}") from exc


async def _process_of(core: Core, container: Container) -> dict[str, object]:
    """Return the ``process`` of a container's spec, which a further process starts from."""
    if container.process is None:
        record = await core.db.read(containers.get, NAMESPACE, container.id)
        container.process = msgspec.json.decode(record.spec.value)["process"]
    return dict(container.process)
