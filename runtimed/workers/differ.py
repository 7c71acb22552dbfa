"""Making a layer of what two snapshots differ in."""

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

from runtimed.diff import stacks
from runtimed.diff.changes import compare, compare_layer
from runtimed.diff.compressing import compressor
from runtimed.diff.compression import Compression
from runtimed.diff.files import NotALayer
from runtimed.errors import InvalidArgument
from runtimed.mounts import Mount, mounted
from runtimed.workers import confinement, jobs

_CHUNK = 256 * 1024


def diff(job: jobs.Diff) -> jobs.Done:
    """Do *job*; see :meth:`runtimed.workers.pool.Pool.diff` for what it promises."""
    if not job.upper:
        raise InvalidArgument("no mounts to make a layer of")
    with ExitStack() as held:
        held.enter_context(confinement.private_mounts())
        # Of our own, for there is one mount point and there are two trees.
        base = held.enter_context(mounted([Mount("tmpfs", "tmpfs", options=("size=64k",))], job.mountpoint))
        lower = _shown(job.lower, base / "lower", held) if job.lower else None
        layer = stacks.top_layer(job.lower, job.upper)
        if lower is not None and layer is not None:
            try:
                with _Output(job) as output:
                    compare_layer(lower, layer, output.write, job.epoch)
                    return output.finish()
            except NotALayer:
                pass  # looking at everything finds it out
        upper = _shown(job.upper, base / "upper", held)
        with _Output(job) as output:
            compare(lower, upper, output.write, job.epoch)
            return output.finish()


def _shown(mounts: tuple[Mount, ...], mountpoint: Path, held: ExitStack) -> Path:
    mountpoint.mkdir()
    return held.enter_context(mounted(stacks.read_only(mounts), mountpoint))


class _Output:
    """The file of a layer, from its beginning: compressed and hashed while it is written."""

    def __init__(self, job: jobs.Diff) -> None:
        # Who sets the clock wants the bytes to be those of another machine.
        self._compressor = compressor(job.compression, same_everywhere=job.epoch is not None)
        self._tar = hashlib.sha256()
        self._blob = self._tar if job.compression is Compression.NONE else hashlib.sha256()
        self._size = 0
        self._held = bytearray()
        self._fd = os.open(job.path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) >= _CHUNK:
            self._flush()

    def finish(self) -> jobs.Done:
        """Write what is still held, and say what the file is."""
        self._flush()
        self._put(self._compressor.flush())
        return jobs.Done(
            digest=f"sha256:{self._blob.hexdigest()}", size=self._size, diff_id=f"sha256:{self._tar.hexdigest()}"
        )

    def _flush(self) -> None:
        data = bytes(self._held)
        self._held.clear()
        if self._blob is not self._tar:
            self._tar.update(data)
        self._put(self._compressor.compress(data))

    def _put(self, data: bytes) -> None:
        self._blob.update(data)
        self._size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
