"""``rctl logs``, and where the output of detached containers goes: one file a container, below the daemon's root."""

import asyncio
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from runtimed import labels
from runtimed.api import containers_pb2 as containers
from runtimed.api import introspection_pb2 as introspection
from runtimed.api import tasks_pb2 as tasks
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.introspection_pb2_grpc import IntrospectionStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.process import Process
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, os_errors
from runtimed.identifiers import validate
from runtimed.threads import blocking

_FOLLOW_S = 0.1  # how often a followed file is looked at
_CHUNK = 1 << 16  # bytes


async def default_path(client: Client, id: str) -> Path:
    """Return where the log of container *id* is kept.

    Raises:
        NotFound: the daemon does not tell its root, as containerd before 2.0 does not.
    """
    filters = ["type==io.containerd.runtime.v2,id==task"]
    answer = await client.call(IntrospectionStub(client.channel).Plugins, introspection.PluginsRequest(filters=filters))
    roots = [plugin.exports["root"] for plugin in answer.plugins if plugin.exports.get("root")]
    if not roots:
        error = NotFound("the daemon does not say where logs are kept")
        error.add_note("give a file with --log PATH")
        raise error
    validate(client.namespace, "namespace")
    return Path(roots[0]) / "logs" / client.namespace / f"{validate(id, 'container')}.log"


def make(path: Path) -> None:
    """Make an empty log file that only root reads; what a former container of the same ID left is replaced."""
    with os_errors(f"log {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


async def remove(client: Client, container: containers.Container) -> None:
    """Remove the container's log if it is where we keep them.

    Another file, which ``--log`` named, is the user's; and a label alone, which other clients may have copied from an
    image, must not choose a file to delete (CVE-2026-53488 was of this kind).
    """
    uri = container.labels.get(labels.LOG_URI)
    if not uri:
        return
    try:
        path = await default_path(client, container.id)
    except NotFound:
        return  # a daemon that keeps no logs
    if _path(uri) == path:
        with os_errors(f"log {path}"):
            await blocking(path.unlink, missing_ok=True)


@click.command("logs", short_help="Print the output of a detached container.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last LINES lines.")
@click.argument("id")
@click.pass_obj
def logs_command(settings: Settings, follow: bool, lines: int | None, id: str) -> int:
    """Print the output of a detached container (stdout and stderr as they came)."""

    async def work(client: Client) -> int:
        path = await _log_of(client, id)
        fd = _open(path)
        try:
            if lines is not None:
                os.lseek(fd, await blocking(_start_of_last, fd, lines), os.SEEK_SET)
            if follow:
                await _follow(client, id, fd)
            else:
                await blocking(_copy, fd)
        finally:
            os.close(fd)
        return 0

    return run(settings, work)


async def _log_of(client: Client, id: str) -> Path:
    """Return the file that the container's task writes, or wrote: what the task says, else our own default place."""
    request = containers.GetContainerRequest(id=id)
    container = (await client.call(ContainersStub(client.channel).Get, request)).container
    try:
        answer = await client.call(TasksStub(client.channel).Get, tasks.GetRequest(container_id=id))
        if (path := _path(answer.process.stdout)) is not None:
            return path
    except NotFound:
        pass
    uri = container.labels.get(labels.LOG_URI, "")
    if not uri:
        error = FailedPrecondition(f"container {id!r} has no log")
        error.add_note("only containers run with -d have one; the output of others went to whoever ran them")
        raise error
    path = await default_path(client, id)
    if _path(uri) != path:
        # The task has gone, and the label may have come from an image: it is shown, not followed.
        raise FailedPrecondition(f"container {id!r} has ended; its output was sent to {uri}")
    return path


def _path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _open(path: Path) -> int:
    with os_errors(f"log {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"log {path} is not a regular file")
    return fd


def _start_of_last(fd: int, lines: int) -> int:
    """Return the offset at which the last *lines* lines of the file begin, reading from its end."""
    position = size = os.fstat(fd).st_size
    wanted = lines
    if size and os.pread(fd, 1, size - 1) == b"\n":
        wanted += 1  # the newline that ends the last line begins no other
    if not lines:
        return size
    while position > 0:
        begin = max(0, position - _CHUNK)
        chunk = os.pread(fd, position - begin, begin)
        newlines = chunk.count(b"\n")
        if newlines >= wanted:
            index = len(chunk)
            for _ in range(wanted):
                index = chunk.rindex(b"\n", 0, index)
            return begin + index + 1
        wanted -= newlines
        position = begin
    return 0


def _copy(fd: int) -> None:
    """Copy the file from where it stands to its end."""
    sys.stdout.flush()
    while data := os.read(fd, _CHUNK):
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


async def _follow(client: Client, id: str, fd: int) -> None:
    ended = asyncio.create_task(_ended(client, id))
    try:
        while not ended.done():
            await blocking(_copy, fd)
            await asyncio.wait([ended], timeout=_FOLLOW_S)
        await blocking(_copy, fd)  # what came between the last look and the end
        ended.result()
    finally:
        ended.cancel()


async def _ended(client: Client, id: str) -> None:
    with suppress(NotFound):  # no task: nothing will be added
        await Process(client, id).wait()
