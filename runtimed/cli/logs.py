"""``rctl logs``, and where the output of detached containers goes: one file a container, below the daemon's root."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import click

from runtimed import labels
from runtimed.api import containers_pb2 as containers
from runtimed.api import introspection_pb2 as introspection
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.logfile import LogFile, path_of
from runtimed.client.process import Process
from runtimed.errors import FailedPrecondition, NotFound, os_errors
from runtimed.identifiers import validate
from runtimed.threads import blocking

_FOLLOW_S = 0.1  # how often a followed file is looked at


async def default_path(client: Client, id: str) -> Path:
    """Return where the log of container *id* is kept.

    Raises:
        NotFound: the daemon does not tell its root, as containerd before 2.0 does not.
    """
    filters = ["type==io.containerd.runtime.v2,id==task"]
    answer = await client.call(
        service(introspection, "Introspection").Plugins, introspection.PluginsRequest(filters=filters)
    )
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
    if path_of(uri) == path:
        with os_errors(f"log {path}"):
            await blocking(path.unlink, missing_ok=True)


@click.command("logs", short_help="Print the output of a detached container.")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last LINES lines.")
@click.argument("id", shell_complete=complete.containers)
@click.pass_obj
def logs_command(settings: Settings, is_followed: bool, lines: int | None, id: str) -> int:
    """Print the output of a detached container (stdout and stderr as they came).

    Of a log in Kubernetes' format, stderr goes to stderr.

    \b
    rctl logs web
    rctl logs -f -n 100 web
    """

    async def work(client: Client) -> int:
        with LogFile(await _log_of(client, id)) as log:
            if lines is not None:
                await blocking(log.skip_to_last, lines)
            if is_followed:
                await follow(client, id, log)
            else:
                await blocking(log.copy)
        return 0

    return run(settings, work)


async def _log_of(client: Client, id: str) -> str:
    """Return the URI of the file with the output of the container's task, or of the one that we chose ourselves."""
    request = containers.GetContainerRequest(id=id)
    container = (await client.call(service(containers, "Containers").Get, request)).container
    try:
        answer = await client.call(service(tasks, "Tasks").Get, tasks.GetRequest(container_id=id))
        if path_of(answer.process.stdout) is not None:
            return str(answer.process.stdout)
    except NotFound:
        pass
    uri = container.labels.get(labels.LOG_URI, "")
    if not uri:
        error = FailedPrecondition(f"container {id!r} has no log")
        error.add_note("only containers run with -d have one; the output of others went to whoever ran them")
        raise error
    if path_of(uri) != await default_path(client, id):
        # The task has gone, and the label may have come from an image: it is shown, not followed.
        raise FailedPrecondition(f"container {id!r} has ended; its output was sent to {uri}")
    return str(uri)


async def follow(client: Client, id: str, log: LogFile) -> None:
    """Copy what comes to *log* until the task of container *id* has ended."""
    ended = asyncio.create_task(_ended(client, id))
    try:
        while not ended.done():
            await blocking(log.copy)
            await asyncio.wait([ended], timeout=_FOLLOW_S)
        await blocking(log.copy)  # what came between the last look and the end
        ended.result()
    finally:
        ended.cancel()


async def _ended(client: Client, id: str) -> None:
    with suppress(NotFound):  # no task: nothing will be added
        await Process(client, id).wait()
