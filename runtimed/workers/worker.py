"""One worker process, seen from the daemon."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from runtimed.errors import Unavailable
from runtimed.workers import jobs
from runtimed.workers.nursery import Nursery, Process

log = logging.getLogger(__name__)

_END_LIMIT_S = 30.0


class Worker:
    """A process that does one job at a time. It ends when this end of its socket closes, or when the daemon dies."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, nursery: Nursery) -> Self:
        """Start a worker process. Raises as :meth:`Nursery.fork`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await nursery.fork(theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # also what ends a process that has started
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive and not self._reader.at_eof()

    async def run(self, job: jobs.Job, progress: Callable[[int], None]) -> jobs.Done | jobs.Failed:
        """Do *job*. If this is cancelled or raises, the process is in the middle of it: :meth:`kill` it.

        Raises:
            Unavailable: the process died.
        """
        with suppress(ConnectionError):
            self._writer.write(jobs.encode(job))
            await self._writer.drain()
            while line := await self._reader.readline():
                answer = jobs.decode_answer(line)
                if not isinstance(answer, jobs.Progress):
                    return answer
                progress(answer.offset)
        raise Unavailable(f"{jobs.subject_of(job)}: worker process {self.pid} {await self._how_it_ended()}; try again")

    def tell(self, growth: jobs.Grown) -> None:
        """Say how far the file is that the process follows."""
        self._writer.write(jobs.encode(growth))

    async def kill(self) -> None:
        """End the process and wait until it is gone, and with it what it had mounted.

        A caller that is cancelled meanwhile hears of it afterwards: what it undoes next must not run beside the job.
        """
        ending = asyncio.create_task(self._end())
        cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self) -> None:
        self._writer.close()
        self._process.kill()
        try:
            async with asyncio.timeout(_END_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            log.error("worker process does not end", extra={"pid": self.pid})

    async def _how_it_ended(self) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):  # its socket closes a moment before it can be reaped
                await self._process.wait()
        status = self._process.status
        if status is None:
            return "closed its socket" if self._process.is_alive else "was killed"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
