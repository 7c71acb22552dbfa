"""``rctl update``, ``rctl pause`` and ``rctl resume``."""

import click
import msgspec

from runtimed.api import tasks_pb2 as pb
from runtimed.cli import complete, options
from runtimed.cli.client import Client, Settings, service
from runtimed.cli.each import each
from runtimed.oci import container_spec

_KIND = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@click.command("update", short_help="Change the limits of running containers.")
@click.option("--memory", metavar="SIZE", help="How much memory it may use, as 512m.")
@click.option("--cpus", type=float, metavar="N", help="How much CPU time it gets, as 1.5.")
@click.option("--pids-limit", type=int, metavar="N", help="How many processes and threads it may have.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def update_command(
    settings: Settings, memory: str | None, cpus: float | None, pids_limit: int | None, ids: tuple[str, ...]
) -> int:
    """Change the limits of running containers, until they end; limits that are not given stay.

    \b
    rctl update --memory 1g --cpus 1.5 web
    """
    if memory is None and cpus is None and pids_limit is None:
        raise click.UsageError("give a limit: --memory, --cpus or --pids-limit")
    limits = container_spec.limits(memory=options.memory(memory), cpus=cpus, pids=pids_limit)
    document = msgspec.json.encode(limits)

    async def update(client: Client, id: str) -> str:
        request = pb.UpdateTaskRequest(container_id=id)
        request.resources.type_url, request.resources.value = _KIND, document
        await client.call(service(pb, "Tasks").Update, request)
        return id

    return each(settings, ids, update)


@click.command("pause", short_help="Stop containers where they are, until they are resumed.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def pause_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Stop all processes of containers where they are, until 'rctl resume'.

    \b
    rctl pause web
    """

    async def pause(client: Client, id: str) -> str:
        await client.call(service(pb, "Tasks").Pause, pb.PauseTaskRequest(container_id=id))
        return id

    return each(settings, ids, pause)


@click.command("resume", short_help="Let paused containers go on.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.containers)
@click.pass_obj
def resume_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Let paused containers go on.

    \b
    rctl resume web
    """

    async def resume(client: Client, id: str) -> str:
        await client.call(service(pb, "Tasks").Resume, pb.ResumeTaskRequest(container_id=id))
        return id

    return each(settings, ids, resume)
