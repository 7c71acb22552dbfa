"""``rctl start``: run a container again whose task has ended."""

import click
import msgspec

from runtimed import labels
from runtimed.api import containers_pb2 as containers
from runtimed.api import runc_options_pb2, task_types_pb2
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete, logs
from runtimed.cli.client import Client, Settings, service
from runtimed.cli.each import each
from runtimed.client.process import Process
from runtimed.errors import FailedPrecondition, NotFound, RuntimedError
from runtimed.threads import blocking


@click.command("start", short_help="Start ended containers again.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def start_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Start containers again, in the background, with the files they left; see 'rctl logs' for the output.

    \b
    rctl start web && rctl logs -f web
    """

    async def again(client: Client, id: str) -> str:
        await start(client, id)
        return id

    return each(settings, ids, again)


async def start(client: Client, id: str, checkpoint: str = "") -> None:
    """Make and start a task of a container that has ended; from a checkpoint's directory, if one is given.

    Raises:
        NotFound: there is no such container, or no checkpoint.
        FailedPrecondition: it is running.
    """
    stub = service(containers, "Containers")
    record = (await client.call(stub.Get, containers.GetContainerRequest(id=id))).container
    process = Process(client, id)
    await _delete_ended(client, process)
    path = await logs.default_path(client, id)
    await blocking(logs.make, path)
    record.labels[labels.LOG_URI] = path.as_uri()
    update = containers.UpdateContainerRequest(container=record)
    update.update_mask.paths.append(f"labels.{labels.LOG_URI}")
    await client.call(stub.Update, update)
    mounts = snapshots.MountsRequest(snapshotter=record.snapshotter, key=record.snapshot_key)
    rootfs = (await client.call(service(snapshots, "Snapshots").Mounts, mounts)).mounts
    has_terminal = bool(msgspec.json.decode(record.spec.value).get("process", {}).get("terminal"))
    uri = path.as_uri()
    create = tasks.CreateTaskRequest(container_id=id, rootfs=rootfs, stdout=uri, stderr=uri, terminal=has_terminal)
    if checkpoint:
        _restore_from(create, record, checkpoint)
    await client.call(service(tasks, "Tasks").Create, create)
    try:
        await process.start()
    except RuntimedError:
        await process.delete()
        raise


def _restore_from(create: tasks.CreateTaskRequest, record: containers.Container, checkpoint: str) -> None:
    """Add to the runtime options of a container where its checkpoint is."""
    options, given = runc_options_pb2.Options(), record.runtime.options
    kind = options.DESCRIPTOR.full_name
    if given.type_url:
        if given.type_url.rpartition("/")[2] != kind:
            raise FailedPrecondition(f"container {record.id!r}: its runtime has options of its own, not {kind}")
        options.MergeFromString(given.value)
    options.criu_image_path = checkpoint
    create.options.type_url = kind
    create.options.value = options.SerializeToString()


async def _delete_ended(client: Client, process: Process) -> None:
    """Delete the former task. Raises FailedPrecondition if it has not ended."""
    try:
        request = tasks.GetRequest(container_id=process.container_id)
        found = (await client.call(service(tasks, "Tasks").Get, request)).process
    except NotFound:
        return
    if found.status != task_types_pb2.STOPPED:
        raise FailedPrecondition(f"container {process.container_id!r} is running")
    await process.delete()
