"""``rctl ps`` and ``rctl rm``."""

import asyncio

import click

from runtimed.api import containers_pb2 as containers
from runtimed.api import task_types_pb2
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete, logs, output
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.each import each
from runtimed.cli.run import end
from runtimed.client.create import delete_container, remove_snapshot
from runtimed.client.process import Process
from runtimed.errors import FailedPrecondition, NotFound

_STATUS = {
    task_types_pb2.CREATED: "created",
    task_types_pb2.RUNNING: "running",
    task_types_pb2.STOPPED: "exited",
    task_types_pb2.PAUSED: "paused",
    task_types_pb2.PAUSING: "pausing",
}


@click.command("ps", short_help="List containers.")
@output.formatted
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only the IDs.")
@click.pass_obj
def ps_command(settings: Settings, everything: bool, quiet: bool) -> int:
    """List containers.

    \b
    rctl ps -a
    rctl ps -q | xargs rctl kill
    """

    async def work(client: Client) -> int:
        listed, running = await asyncio.gather(
            _records(client),
            client.call(service(tasks, "Tasks").List, tasks.ListTasksRequest()),
        )
        # A container's task has the container's ID; containerd before 2.0 gives it as id, and no container_id.
        by_id = {task.container_id or task.id: task for task in running.tasks}
        found = [(record, by_id.get(record.id)) for record in listed]
        ended = (None, task_types_pb2.STOPPED)
        if not everything:
            found = [(record, task) for record, task in found if (task and task.status) not in ended]
        found.sort(key=lambda pair: pair[0].created_at.ToNanoseconds(), reverse=True)
        if settings.json:
            output.print_json([_as_json(record, task) for record, task in found])
        elif quiet:
            output.print_lines(record.id for record, _ in found)
        else:
            headers = ("ID", "IMAGE", "STATUS", "PID", "CREATED")
            output.print_table(headers, [_as_row(record, task) for record, task in found])
        return 0

    return run(settings, work)


async def _records(client: Client) -> list[containers.Container]:
    """Return all records: one at a time, as together they may be more than a message takes."""
    listing = service(containers, "Containers").ListStream
    return [answer.container async for answer in client.messages(listing, containers.ListContainersRequest())]


def _as_row(record: containers.Container, task: task_types_pb2.Process | None) -> tuple[str, ...]:
    status = state(task)
    if task and status == "exited":
        status = f"exited ({task.exit_status})"
    pid = str(task.pid) if task and task.pid and task.status != task_types_pb2.STOPPED else ""
    created = f"{output.age(record.created_at.seconds)} ago" if record.created_at.seconds else ""
    return (record.id, record.image, status, pid, created)


def _as_json(record: containers.Container, task: task_types_pb2.Process | None) -> dict[str, object]:
    ended = task is not None and task.status == task_types_pb2.STOPPED
    return {
        "id": record.id,
        "image": record.image,
        "status": state(task),
        "pid": task.pid if task and not ended else None,
        "exit_status": task.exit_status if task and ended else None,
        "runtime": record.runtime.name,
        "snapshotter": record.snapshotter,
        "labels": dict(record.labels),
        "created_at": output.timestamp(record.created_at),
    }


def state(task: task_types_pb2.Process | None) -> str:
    """Return a container's state in a word; without a task there is only the record."""
    return "stopped" if task is None else _STATUS.get(task.status, "unknown")


@click.command("rm", short_help="Remove containers.")
@click.option("-f", "--force", is_flag=True, help="End it first if it runs.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def rm_command(settings: Settings, force: bool, ids: tuple[str, ...]) -> int:
    """Remove containers with their files and logs.

    \b
    rctl rm web
    rctl rm -f $(rctl ps -aq)
    """

    async def remove(client: Client, id: str) -> str:
        await _remove(client, id, force=force)
        return id

    return each(settings, ids, remove)


async def _remove(client: Client, id: str, *, force: bool) -> None:
    request = containers.GetContainerRequest(id=id)
    record = (await client.call(service(containers, "Containers").Get, request)).container
    process = Process(client, id)
    try:
        task = (await client.call(service(tasks, "Tasks").Get, tasks.GetRequest(container_id=id))).process
    except NotFound:
        task = None
    if task is not None and task.status == task_types_pb2.STOPPED:
        await process.delete()
    elif task is not None and not force:
        raise FailedPrecondition(f"container {id!r} is {state(task)}; end it with 'rctl kill {id}', or use rm -f")
    elif task is not None:
        await end(process)
    if record.snapshot_key:
        await remove_snapshot(client, record.snapshotter, record.snapshot_key)
    await delete_container(client, id)
    await logs.remove(client, record)
