"""``rctl cri info``, ``version``, ``runtime-config`` and ``events``: what a kubelet learns of its node."""

import json

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import output
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME, as_json, at, verbose
from runtimed.cli.cri.find import SHORT


@click.command("info", short_help="Show whether the node is ready, and for what.")
@output.formatted
@click.pass_obj
def info_command(settings: Settings) -> int:
    """Show whether the node is ready for pods, and if not why; and the handlers that runtime classes can name.

    With -o json there is also what the runtime is configured to be.

    \b
    rctl cri info
    """

    async def work(client: Client) -> int:
        answer = await client.call(RUNTIME.Status, pb.StatusRequest(verbose=settings.json))
        if settings.json:
            output.print_json(verbose(answer))
            return 0
        output.print_table(
            ("CONDITION", "STATUS", "REASON", "MESSAGE"),
            [(one.type, str(one.status).lower(), one.reason, one.message) for one in answer.status.conditions],
        )
        print()
        output.print_table(
            ("HANDLER", "FEATURES"),
            [(one.name or '""', ", ".join(_features(one.features))) for one in answer.runtime_handlers],
        )
        return 0

    return run(settings, work)


def _features(features: "pb.RuntimeHandlerFeatures") -> list[str]:
    return [field.name for field in features.DESCRIPTOR.fields if getattr(features, field.name)]


@click.command("version", short_help="Show which runtime answers.")
@output.formatted
@click.pass_obj
def version_command(settings: Settings) -> int:
    """Show which runtime answers, and the version of CRI that it speaks.

    \b
    rctl cri version
    """

    async def work(client: Client) -> int:
        answer = await client.call(RUNTIME.Version, pb.VersionRequest())
        if settings.json:
            output.print_json(as_json(answer))
        else:
            print(f"runtime: {output.safe(answer.runtime_name)} {output.safe(answer.runtime_version)}")
            print(f"CRI:     {output.safe(answer.runtime_api_version)}")
        return 0

    return run(settings, work)


@click.command("runtime-config", short_help="Show the cgroup driver; tell the pods' addresses.")
@output.formatted
@click.option("--pod-cidr", metavar="CIDR", help="Tell the runtime which addresses the node's pods get.")
@click.pass_obj
def runtime_config_command(settings: Settings, pod_cidr: str | None) -> int:
    """Show the cgroup driver, which the kubelet goes by.

    \b
    rctl cri runtime-config
    rctl cri runtime-config --pod-cidr 10.244.1.0/24
    """

    async def work(client: Client) -> int:
        if pod_cidr is not None:
            request = pb.UpdateRuntimeConfigRequest()
            request.runtime_config.network_config.pod_cidr = pod_cidr
            await client.call(RUNTIME.UpdateRuntimeConfig, request)
        answer = await client.call(RUNTIME.RuntimeConfig, pb.RuntimeConfigRequest())
        if settings.json:
            output.print_json(as_json(answer))
        else:
            print(f"cgroup driver: {pb.CgroupDriver.Name(answer.linux.cgroup_driver).lower()}")
        return 0

    return run(settings, work)


@click.command("events", short_help="Print what happens to containers.")
@output.formatted
@click.pass_obj
def events_command(settings: Settings) -> int:
    """Print what happens to pods and containers, as it happens, until interrupted.

    \b
    rctl cri events
    rctl cri events -o json | jq .container_id
    """

    async def work(client: Client) -> int:
        async for event in client.messages(RUNTIME.GetContainerEvents, pb.GetEventsRequest()):
            print(json.dumps(as_json(event)) if settings.json else _line(event), flush=True)
        return 0

    return run(settings, work)


def _line(event: pb.ContainerEventResponse) -> str:
    pod, id = event.pod_sandbox_status, event.container_id
    kind = pb.ContainerEventType.Name(event.container_event_type)
    names = [one.metadata.name for one in event.containers_statuses if one.id == id]
    what = f"container {names[0]}" if names else "pod" if pod.id == id else "container"
    word = kind.removeprefix("CONTAINER_").removesuffix("_EVENT").lower()
    where = f"{pod.metadata.namespace}/{pod.metadata.name}"
    return f"{at(event.created_at)} {word:<7} {output.safe(where)} {output.safe(what)} {id[:SHORT]}"
