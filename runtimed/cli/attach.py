"""Being where a process's input comes from and its output goes: streams, terminal and signals, until it exits."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from runtimed.cli import terminal
from runtimed.cli.output import note
from runtimed.client.process import Process
from runtimed.client.stdio import Copier, Fifos, copy_input, copy_output
from runtimed.errors import NotFound, RuntimedError, Unavailable

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FATAL = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_INSIST = 3  # so many times the same signal without an end: the process does not listen


class Signals:
    """Signals to rctl, held for a ``with`` block: they cancel it until there is a process to forward them to."""

    def __init__(self) -> None:
        self.caught: int | None = None  # what cancelled the block
        self._process: Process | None = None
        self._is_holding = False
        self._held: int | None = None
        self._counts: dict[int, int] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._installed: list[int] = []

    def hold(self) -> None:
        """Keep the next one until there is a process, which is being started; a second one cancels all the same."""
        self._is_holding = True

    def forward_to(self, process: Process) -> None:
        """From now on *process* gets them, and hears of a new size of the terminal."""
        self._process = process
        if self._held is not None:
            self._received(self._held)

    @property
    def is_forwarding(self) -> bool:
        return self._process is not None

    def on_resize(self) -> None:
        """Pass the size of the terminal on from now on."""
        self._install(signal.SIGWINCH, self._resize)
        self._resize()

    async def settle(self) -> None:
        """Wait for what is being forwarded."""
        if self._sending:
            await asyncio.wait(self._sending)

    def __enter__(self) -> Self:
        self._block = asyncio.current_task()
        for number in _FORWARDED:
            self._install(number, self._received, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._installed:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _install(self, number: int, handler: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(number, handler, *args)
        self._installed.append(number)

    def _received(self, number: int) -> None:
        if self._process is None and self._is_holding and self._held is None:
            self._held = number
            return
        if self._process is None:
            if number in _FATAL and self._block is not None:
                self.caught = number
                self._block.cancel()
            return
        self._counts[number] = self._counts.get(number, 0) + 1
        if self._counts[number] == _INSIST and not self._process.exec_id:
            note(
                f"container {self._process.container_id!r} does not end at this signal;"
                f" to end it: rctl kill -s KILL {self._process.container_id}"
            )
        self._send(self._kill(self._process, number))

    async def _kill(self, process: Process, number: int) -> None:
        try:
            await process.kill(number)
        except Unavailable:
            # The daemon is away, and who insists on an end meanwhile gets rctl's own.
            if number in _FATAL and self._block is not None:
                self.caught = number
                self._block.cancel()

    def _resize(self) -> None:
        if self._process is not None:
            self._send(self._process.resize(terminal.size(sys.stdin.fileno())))

    def _send(self, call: Coroutine[Any, Any, None]) -> None:
        async def send() -> None:
            try:
                await call
            except NotFound:
                pass  # it has exited, which is heard of elsewhere
            except RuntimedError as exc:
                note(f"signal not forwarded: {exc}")

        task = asyncio.create_task(send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


async def with_signals(work: Callable[[Signals], Awaitable[int]]) -> int:
    """Return the exit status of *work*: its result, or 128 and the number of the signal that ended it early."""
    with Signals() as signals:
        try:
            return await work(signals)
        except asyncio.CancelledError:
            if signals.caught is None:
                raise
            return 128 + signals.caught


async def attached(process: Process, fifos: Fifos, signals: Signals, *, has_terminal: bool) -> int:
    """Start *process*, copy its streams to and from ours, forward signals; return its exit status.

    Call it when the process has been created with the paths of *fifos*. The terminal is raw meanwhile.
    """
    with ExitStack() as held:
        if has_terminal:
            held.enter_context(terminal.raw(sys.stdin.fileno()))
        outputs = [Copier(copy_output, fifos.fd("stdout"), sys.stdout.fileno())]
        if "stderr" in fifos:
            outputs.append(Copier(copy_output, fifos.fd("stderr"), sys.stderr.fileno()))
        helpers: list[asyncio.Task[None]] = []
        source: Copier | None = None
        try:
            signals.hold()
            await process.start()
            signals.forward_to(process)
            if has_terminal:
                signals.on_resize()
            if "stdin" in fifos:
                source = Copier(copy_input, sys.stdin.fileno(), fifos.fd("stdin"))
                helpers.append(asyncio.create_task(_end_input(process, fifos, source)))
            helpers.append(asyncio.create_task(_end_unread(process, outputs[0])))
            status = await process.wait()
            await _drain(outputs)
            await signals.settle()
            return status
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            if source is not None:
                await source.close()
            # After an error: what has come is still copied. A thread that is stuck in a write is not waited for; it
            # ends with rctl.
            for output in outputs:
                output.stop(at_once=True)
            await asyncio.wait([output.finished for output in outputs], timeout=1)


async def _drain(outputs: list[Copier]) -> None:
    """Wait until everything the process wrote has been copied, however slow our reader is."""
    for output in outputs:
        output.stop()
    for output in outputs:
        await output.close()


async def _end_input(process: Process, fifos: Fifos, source: Copier) -> None:
    """When our input has ended, let the process see the end of its own."""
    await asyncio.wait([source.finished])
    try:
        await process.close_stdin()
    except RuntimedError:
        pass  # it exited without reading to the end
    finally:
        fifos.close("stdin")


async def _end_unread(process: Process, output: Copier) -> None:
    """End the process when nobody reads our output any more, as SIGPIPE ends any program in a pipeline."""
    await asyncio.wait([output.finished])
    if isinstance(output.finished.exception(), BrokenPipeError):
        note("nobody reads the output any more; ending the process")
        with suppress(NotFound):
            await process.kill(signal.SIGKILL)
