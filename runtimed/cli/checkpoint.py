"""``rctl checkpoint`` and ``rctl restore``."""

from pathlib import Path

import click

from runtimed.api import runc_options_pb2 as runc
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import print_lines
from runtimed.cli.start import start


@click.command("checkpoint", short_help="Save a container's processes to a directory.")
@click.option("--exit", "ends", is_flag=True, help="End the container then.")
@click.option("--tcp-established", "open_tcp", is_flag=True, help="With its open TCP connections.")
@click.option("--ext-unix-sk", "external_unix_sockets", is_flag=True, help="With connections to sockets outside.")
@click.option("--file-locks", "file_locks", is_flag=True, help="With the locks on files that it holds.")
@click.argument("id", shell_complete=complete.containers)
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def checkpoint_command(
    settings: Settings,
    id: str,
    directory: Path,
    ends: bool,
    open_tcp: bool,
    external_unix_sockets: bool,
    file_locks: bool,
) -> int:
    """Save the processes of a container, with what they have in memory, to DIRECTORY on the daemon's host.

    Needs CRIU. The container's files are not saved: see that they are as they were when it is restored.

    \b
    rctl checkpoint --exit web /var/tmp/web
    """

    options = runc.CheckpointOptions(
        exit=ends,
        open_tcp=open_tcp,
        external_unix_sockets=external_unix_sockets,
        file_locks=file_locks,
        image_path=str(directory.absolute()),
    )

    async def work(client: Client) -> int:
        request = tasks.CheckpointTaskRequest(container_id=id)
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
        await client.call(service(tasks, "Tasks").Checkpoint, request)
        print_lines([id])
        return 0

    return run(settings, work)


@click.command("restore", short_help="Bring a container's processes back from a checkpoint.")
@click.argument("id", shell_complete=complete.containers)
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def restore_command(settings: Settings, id: str, directory: Path) -> int:
    """Start an ended container again where the checkpoint in DIRECTORY left it; in the background, as 'rctl start'.

    Restore no checkpoint of unknown origin: what is in it is run as it is.

    \b
    rctl restore web /var/tmp/web
    """

    checkpoint = str(directory.absolute())

    async def work(client: Client) -> int:
        await start(client, id, checkpoint=checkpoint)
        print_lines([id])
        return 0

    return run(settings, work)
