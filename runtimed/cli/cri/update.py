"""``rctl cri update`` and ``rctl cri checkpoint``."""

from pathlib import Path

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, options
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME
from runtimed.cli.cri.find import container_id
from runtimed.cli.each import each

_PERIOD_US = 100_000


@click.command("update", short_help="Change the limits of containers.")
@click.option("--memory", metavar="SIZE", help="How much memory it may use, as 512m.")
@click.option("--cpus", type=float, metavar="N", help="How much CPU time it gets, as 1.5.")
@click.option("--cpu-shares", type=click.IntRange(min=2), metavar="N", help="How much against others, as 1024.")
@click.option("--cpuset-cpus", metavar="LIST", help="The processors it may use, as 0-1,3.")
@click.option("--cpuset-mems", metavar="LIST", help="The memory nodes it may use.")
@click.argument("ids", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=complete.pod_containers)
@click.pass_obj
def update_command(
    settings: Settings,
    memory: str | None,
    cpus: float | None,
    cpu_shares: int | None,
    cpuset_cpus: str | None,
    cpuset_mems: str | None,
    ids: tuple[str, ...],
) -> int:
    """Change the limits of containers; those that are not given stay.

    \b
    rctl cri update --memory 1g --cpus 1.5 web
    """
    limits = pb.LinuxContainerResources(
        memory_limit_in_bytes=options.memory(memory) or 0,
        cpu_quota=round((cpus or 0) * _PERIOD_US),
        cpu_period=_PERIOD_US if cpus else 0,
        cpu_shares=cpu_shares or 0,
        cpuset_cpus=cpuset_cpus or "",
        cpuset_mems=cpuset_mems or "",
    )
    if not limits.ByteSize():
        raise click.UsageError("give a limit: --memory, --cpus, --cpu-shares, --cpuset-cpus or --cpuset-mems")

    async def update(client: Client, word: str) -> str:
        id = await container_id(client, word)
        request = pb.UpdateContainerResourcesRequest(container_id=id, linux=limits)
        await client.call(RUNTIME.UpdateContainerResources, request)
        return id

    return each(settings, ids, update)


@click.command("checkpoint", short_help="Write a running container to a file.")
@click.option(
    "-e", "--export", "path", required=True, metavar="FILE", type=click.Path(), help="Where to: a tar archive."
)
@click.option("--timeout", type=click.IntRange(min=0), default=0, metavar="SECONDS", help="How long it may take.")
@click.argument("id", metavar="CONTAINER", shell_complete=complete.pod_containers)
@click.pass_obj
def checkpoint_command(settings: Settings, path: str, timeout: int, id: str) -> int:
    """Write a running container, which goes on, to an archive as the kubelet's checkpoint API does. Needs CRIU.

    \b
    rctl cri checkpoint --export /var/tmp/web.tar web
    """

    location = str(Path(path).absolute())

    async def work(client: Client) -> int:
        request = pb.CheckpointContainerRequest(
            container_id=await container_id(client, id), location=location, timeout=timeout
        )
        await client.call(RUNTIME.CheckpointContainer, request)
        return 0

    return run(settings, work)
