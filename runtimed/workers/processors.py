"""Stream processors: programs that make a layer which can be applied of one that cannot, such as an encrypted one.

They are containerd's: the bytes go to standard input and come from standard output; the environment variable
STREAM_PROCESSOR_MEDIATYPE says of what type they are, and descriptor 3, if the client gave something for this
processor, is what it gave: the bytes of a ``google.protobuf.Any``. Here both ends are files, so that no byte of a layer
passes through the daemon.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Self

from runtimed.config import StreamProcessor
from runtimed.errors import InvalidArgument, from_os_error, os_errors
from runtimed.linux.rlimit import restore_nofile
from runtimed.threads import blocking

_MOST = 8  # processors one after the other
_MEDIA_TYPE = "STREAM_PROCESSOR_MEDIATYPE"
# A descriptor can only be made number 3 in the child, and Python offers no place for that between threads.
_WITH_PAYLOAD = ("/bin/sh", "-c", 'exec "$@" 3<"$0"')
_LAST_WORDS = 1000  # bytes of what a processor said that go into the error


class Processors:
    """Those that are configured, by the name that clients give payloads for."""

    def __init__(self, configured: Mapping[str, StreamProcessor], directory: Path) -> None:
        """*directory* is where layers lie meanwhile; what an earlier daemon has left there goes. Blocks."""
        self._configured = configured
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)

    @asynccontextmanager
    async def processed(
        self, blob: Path, media_type: str, payloads: Mapping[str, bytes]
    ) -> AsyncIterator[tuple[Path, str]]:
        """Yield the file and the media type that *blob* is in the end, while the block runs: itself, mostly.

        Raises:
            InvalidArgument: a processor failed, or they lead in a circle.
            NotFound: there is no such program.
        """
        if self._accepting(media_type) is None:
            yield blob, media_type
            return
        directory = await blocking(self._new_directory)
        try:
            for number in range(_MOST):
                found = self._accepting(media_type)
                if found is None:
                    break
                name, processor = found
                made = directory / str(number)
                await self._run(name, processor, blob, media_type, made, payloads.get(name))
                if number:
                    await blocking(blob.unlink)  # was made by the one before
                blob, media_type = made, processor.returns
            else:
                raise InvalidArgument(f"stream processors do not come to an end: the layer is {media_type!r} again")
            yield blob, media_type
        finally:
            await blocking(shutil.rmtree, directory)

    def _accepting(self, media_type: str) -> tuple[str, StreamProcessor] | None:
        return next((item for item in self._configured.items() if media_type in item[1].accepts), None)

    def _new_directory(self) -> Path:
        with os_errors(f"directory {self._directory}"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._directory))

    async def _run(
        self, name: str, processor: StreamProcessor, blob: Path, media_type: str, made: Path, payload: bytes | None
    ) -> None:
        command = [processor.path, *processor.args]
        if payload is not None:
            given = made.with_name(f"{made.name}.payload")
            await blocking(given.write_bytes, payload)
            command = [*_WITH_PAYLOAD, str(given), *command]
        environment = {"PATH": os.environ.get("PATH", os.defpath), _MEDIA_TYPE: media_type}
        environment |= dict(entry.partition("=")[::2] for entry in processor.env)
        with await blocking(_Streams, blob, made) as streams:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=streams.source,
                    stdout=streams.target,
                    stderr=streams.said,
                    env=environment,
                    cwd="/",
                    process_group=0,
                )
            except OSError as exc:
                raise from_os_error(exc, f"stream processor {name}: {processor.path}") from exc
            restore_nofile(process.pid)
            try:
                status = await process.wait()
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            if status:
                words = streams.last_words() or "it said nothing"
                raise InvalidArgument(f"stream processor {name}: exit status {status}: {words}")


class _Streams:
    """The files that a processor reads and writes, until the block ends. Making them blocks."""

    def __init__(self, blob: Path, made: Path) -> None:
        with os_errors(f"layer {made}"), ExitStack() as held:
            self.source = held.enter_context(blob.open("rb"))
            self.target = held.enter_context(made.open("xb"))
            self.said = held.enter_context(tempfile.TemporaryFile())
            self._held = held.pop_all()

    def last_words(self) -> str:
        """Return the end of what it said on standard error."""
        return os.pread(self.said.fileno(), 1 << 20, 0)[-_LAST_WORDS:].decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
