"""``rctl cri ps``, ``inspect``, ``start``, ``stop`` and ``rm``."""

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME, as_json, verbose
from runtimed.cli.cri.find import SHORT, container_id, list_containers, list_pods, pod_id
from runtimed.cli.each import each
from runtimed.errors import FailedPrecondition

_STATES = {
    "created": pb.CONTAINER_CREATED,
    "running": pb.CONTAINER_RUNNING,
    "exited": pb.CONTAINER_EXITED,
    "unknown": pb.CONTAINER_UNKNOWN,
}
_WORDS = {number: word for word, number in _STATES.items()}
_ids = click.argument("ids", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=complete.pod_containers)


@click.command("ps", short_help="List containers.")
@output.formatted
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("--state", type=click.Choice([*_STATES]), help="Only those.")
@click.option("--name", metavar="TEXT", help="Only those with TEXT in their name.")
@click.option("-p", "--pod", metavar="POD", help="Only those of a pod.", shell_complete=complete.pods)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("-q", "--quiet", is_flag=True, help="Only the IDs.")
@click.pass_obj
def ps_command(
    settings: Settings,
    everything: bool,
    state: str | None,
    name: str | None,
    pod: str | None,
    labels: tuple[str, ...],
    no_trunc: bool,
    quiet: bool,
) -> int:
    """List containers, the youngest first.

    \b
    rctl cri ps -a
    rctl cri ps --pod kube-system/coredns
    """
    wanted = pb.ContainerFilter(label_selector=records.labels(labels))
    if state is not None or not everything:
        wanted.state.state = _STATES[state or "running"]

    async def work(client: Client) -> int:
        if pod is not None:
            wanted.pod_sandbox_id = await pod_id(client, pod)
        found = [one for one in await list_containers(client, wanted) if (name or "") in one.metadata.name]
        if settings.json:
            output.print_json([as_json(one) for one in found])
        elif quiet:
            output.print_lines(one.id for one in found)
        else:
            pods = {one.id: one.metadata for one in await list_pods(client)}
            headers = ("CONTAINER", "NAME", "POD", "NAMESPACE", "STATE", "CREATED", "ATTEMPT", "IMAGE")
            length = None if no_trunc else SHORT
            output.print_table(headers, [_row(one, pods.get(one.pod_sandbox_id), length) for one in found])
        return 0

    return run(settings, work)


def _row(one: pb.Container, pod: pb.PodSandboxMetadata | None, length: int | None) -> tuple[str, ...]:
    return (
        one.id[:length],
        one.metadata.name,
        pod.name if pod else "",
        pod.namespace if pod else "",
        _WORDS.get(one.state, "unknown"),
        f"{output.age(one.created_at / 1e9)} ago",
        str(one.metadata.attempt),
        one.image.user_specified_image or one.image.image,
    )


@click.command("inspect", short_help="Show containers in full.")
@output.formatted
@_ids
@click.pass_obj
def inspect_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Show containers in full, as JSON: how they are, and what they were asked to be.

    \b
    rctl cri inspect coredns | jq .info.info.pid
    """

    async def inspect(client: Client, word: str) -> None:
        request = pb.ContainerStatusRequest(container_id=await container_id(client, word), verbose=True)
        output.print_json(verbose(await client.call(RUNTIME.ContainerStatus, request)))

    return each(settings, ids, inspect)


@click.command("start", short_help="Start containers that were created.")
@_ids
@click.pass_obj
def start_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Start containers that were created. One that has run is not started again: make another one.

    \b
    rctl cri start web
    """

    async def start(client: Client, word: str) -> str:
        id = await container_id(client, word)
        await client.call(RUNTIME.StartContainer, pb.StartContainerRequest(container_id=id))
        return id

    return each(settings, ids, start)


@click.command("stop", short_help="Stop containers.")
@click.option("-t", "--timeout", type=click.IntRange(min=0), default=10, show_default=True, metavar="SECONDS",
              help="How long they may take before they are killed.")  # fmt: skip
@_ids
@click.pass_obj
def stop_command(settings: Settings, timeout: int, ids: tuple[str, ...]) -> int:
    """Stop containers: each gets the signal it is to be stopped with, and is killed if it has not ended in time.

    \b
    rctl cri stop -t 0 web
    """

    async def stop(client: Client, word: str) -> str:
        id = await container_id(client, word)
        await client.call(RUNTIME.StopContainer, pb.StopContainerRequest(container_id=id, timeout=timeout))
        return id

    return each(settings, ids, stop)


@click.command("rm", short_help="Remove containers.")
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@_ids
@click.pass_obj
def rm_command(settings: Settings, force: bool, ids: tuple[str, ...]) -> int:
    """Remove containers with what they have written. The log stays: it is the kubelet's.

    \b
    rctl cri rm web
    rctl cri rm $(rctl cri ps --state exited -q)
    """

    async def remove(client: Client, word: str) -> str:
        id = await container_id(client, word)
        if not force:
            request = pb.ContainerStatusRequest(container_id=id)
            if (await client.call(RUNTIME.ContainerStatus, request)).status.state == pb.CONTAINER_RUNNING:
                raise FailedPrecondition(f"container {word!r} runs; stop it with 'rctl cri stop {word}', or use rm -f")
        await client.call(RUNTIME.RemoveContainer, pb.RemoveContainerRequest(container_id=id))
        return id

    return each(settings, ids, remove)
