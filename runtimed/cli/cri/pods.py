"""``rctl cri pods`` (``rctl pods``), ``inspectp``, ``stopp`` and ``rmp``."""

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME, as_json, verbose
from runtimed.cli.cri.find import SHORT, list_pods, pod_id
from runtimed.cli.each import each
from runtimed.errors import FailedPrecondition

_STATES = {"ready": pb.SANDBOX_READY, "notready": pb.SANDBOX_NOTREADY}
_WORDS = {number: word for word, number in _STATES.items()}
_ids = click.argument("ids", nargs=-1, required=True, metavar="POD...", shell_complete=complete.pods)


@click.command("pods", short_help="List pods.")
@output.formatted
@click.option("--state", type=click.Choice([*_STATES]), help="Only those.")
@click.option("--name", metavar="TEXT", help="Only those with TEXT in their name.")
@click.option("--in", "namespace", metavar="NAMESPACE", help="Only those of a namespace of Kubernetes.")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("-q", "--quiet", is_flag=True, help="Only the IDs.")
@click.pass_obj
def pods_command(
    settings: Settings,
    state: str | None,
    name: str | None,
    namespace: str | None,
    labels: tuple[str, ...],
    no_trunc: bool,
    quiet: bool,
) -> int:
    """List pods, the youngest first.

    \b
    rctl pods
    rctl cri pods --in kube-system -l app=web
    rctl cri pods --state notready -q
    """
    wanted = pb.PodSandboxFilter(label_selector=records.labels(labels))
    if state is not None:
        wanted.state.state = _STATES[state]

    async def work(client: Client) -> int:
        found = [
            one
            for one in await list_pods(client, wanted)
            if (namespace is None or one.metadata.namespace == namespace) and (name or "") in one.metadata.name
        ]
        if settings.json:
            output.print_json([as_json(one) for one in found])
        elif quiet:
            output.print_lines(one.id for one in found)
        else:
            headers = ("POD", "NAME", "NAMESPACE", "STATE", "CREATED", "ATTEMPT", "HANDLER")
            output.print_table(headers, [_row(one, None if no_trunc else SHORT) for one in found])
        return 0

    return run(settings, work)


def _row(one: pb.PodSandbox, length: int | None) -> tuple[str, ...]:
    return (
        one.id[:length],
        one.metadata.name,
        one.metadata.namespace,
        _WORDS.get(one.state, "unknown"),
        f"{output.age(one.created_at / 1e9)} ago",
        str(one.metadata.attempt),
        one.runtime_handler,
    )


@click.command("inspectp", short_help="Show pods in full.")
@output.formatted
@_ids
@click.pass_obj
def inspectp_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Show pods in full, as JSON: what they were asked to be, their addresses, what the network's plugins said.

    \b
    rctl cri inspectp kube-system/coredns | jq .status.network.ip
    """

    async def inspect(client: Client, word: str) -> None:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=await pod_id(client, word), verbose=True)
        output.print_json(verbose(await client.call(RUNTIME.PodSandboxStatus, request)))

    return each(settings, ids, inspect)


@click.command("stopp", short_help="Stop pods.")
@_ids
@click.pass_obj
def stopp_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Stop pods: their containers are ended, their network is given back.

    \b
    rctl cri stopp web
    """

    async def stop(client: Client, word: str) -> str:
        id = await pod_id(client, word)
        await client.call(RUNTIME.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=id))
        return id

    return each(settings, ids, stop)


@click.command("rmp", short_help="Remove pods, with their containers.")
@click.option("-f", "--force", is_flag=True, help="Also those that run.")
@_ids
@click.pass_obj
def rmp_command(settings: Settings, force: bool, ids: tuple[str, ...]) -> int:
    """Remove pods, with their containers and what those have written.

    \b
    rctl cri rmp web
    rctl cri rmp -f $(rctl cri pods -q)
    """

    async def remove(client: Client, word: str) -> str:
        id = await pod_id(client, word)
        if not force:
            request = pb.PodSandboxStatusRequest(pod_sandbox_id=id)
            if (await client.call(RUNTIME.PodSandboxStatus, request)).status.state == pb.SANDBOX_READY:
                raise FailedPrecondition(f"pod {word!r} runs; stop it with 'rctl cri stopp {word}', or use rmp -f")
        else:
            await client.call(RUNTIME.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=id))
        await client.call(RUNTIME.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=id))
        return id

    return each(settings, ids, remove)
