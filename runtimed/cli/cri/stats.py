"""``rctl cri stats`` and ``rctl cri statsp``."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output, records
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME, as_json
from runtimed.cli.cri.find import SHORT, container_id, pod_id

_INTERVAL_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"  # cursor home, erase the screen (ECMA-48)

_once = click.option("--no-stream", "once", is_flag=True, help="Show it once, after a second, and end.")
_labels = click.option(
    "-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label."
)


@click.command("stats", short_help="Show what containers use.")
@output.formatted
@_once
@_labels
@click.argument("id", metavar="[CONTAINER]", required=False, shell_complete=complete.pod_containers)
@click.pass_obj
def stats_command(settings: Settings, once: bool, labels: tuple[str, ...], id: str | None) -> int:
    """Show what containers use, every second until interrupted. DISK is what they have written to their own files.

    CPU is the share of one core during the last second. With -o json each second gives a line.

    \b
    rctl cri stats
    rctl cri stats --no-stream coredns
    """
    wanted = pb.ContainerStatsFilter(label_selector=records.labels(labels))

    async def listed(client: Client) -> Sequence[pb.ContainerStats]:
        if id is not None and not wanted.id:
            wanted.id = await container_id(client, id)
        found = await client.call(RUNTIME.ListContainerStats, pb.ListContainerStatsRequest(filter=wanted))
        return sorted(found.stats, key=lambda one: (one.attributes.metadata.name, one.attributes.id))

    def row(one: pb.ContainerStats, cpu: float) -> tuple[str, ...]:
        return (
            one.attributes.id[:SHORT],
            one.attributes.metadata.name,
            f"{cpu:.1f} %",
            output.size(one.memory.working_set_bytes.value),
            output.size(one.writable_layer.used_bytes.value),
            str(one.writable_layer.inodes_used.value),
        )

    headers = ("CONTAINER", "NAME", "CPU", "MEMORY", "DISK", "INODES")
    return run(
        settings, lambda client: _watch(settings, lambda: listed(client), lambda one: one.cpu, headers, row, once)
    )


@click.command("statsp", short_help="Show what pods use.")
@output.formatted
@_once
@_labels
@click.argument("id", metavar="[POD]", required=False, shell_complete=complete.pods)
@click.pass_obj
def statsp_command(settings: Settings, once: bool, labels: tuple[str, ...], id: str | None) -> int:
    """Show what pods use, every second until interrupted; of their network, what their first interface has carried.

    \b
    rctl cri statsp
    rctl cri statsp --no-stream -o json kube-system/coredns
    """
    wanted = pb.PodSandboxStatsFilter(label_selector=records.labels(labels))

    async def listed(client: Client) -> Sequence[pb.PodSandboxStats]:
        if id is not None and not wanted.id:
            wanted.id = await pod_id(client, id)
        found = await client.call(RUNTIME.ListPodSandboxStats, pb.ListPodSandboxStatsRequest(filter=wanted))
        return sorted(found.stats, key=lambda one: (one.attributes.metadata.name, one.attributes.id))

    def row(one: pb.PodSandboxStats, cpu: float) -> tuple[str, ...]:
        interface = one.linux.network.default_interface
        return (
            one.attributes.id[:SHORT],
            one.attributes.metadata.name,
            one.attributes.metadata.namespace,
            f"{cpu:.1f} %",
            output.size(one.linux.memory.working_set_bytes.value),
            str(one.linux.process.process_count.value),
            output.size(interface.rx_bytes.value),
            output.size(interface.tx_bytes.value),
        )

    headers = ("POD", "NAME", "NAMESPACE", "CPU", "MEMORY", "PROCESSES", "RECEIVED", "SENT")
    return run(
        settings, lambda client: _watch(settings, lambda: listed(client), lambda one: one.linux.cpu, headers, row, once)
    )


async def _watch(
    settings: Settings,
    listed: Callable[[], Awaitable[Sequence[Any]]],
    cpu_of: Callable[[Any], pb.CpuUsage],
    headers: Sequence[str],
    row: Callable[[Any, float], Sequence[str]],
    once: bool,
) -> int:
    before = {one.attributes.id: cpu_of(one) for one in await listed()}
    while True:
        await asyncio.sleep(_INTERVAL_S)
        found = await listed()
        shares = {one.attributes.id: cpu_percent(before.get(one.attributes.id), cpu_of(one)) for one in found}
        _show(settings, found, shares, headers, row)
        if once:
            return 0
        before = {one.attributes.id: cpu_of(one) for one in found}


def cpu_percent(before: pb.CpuUsage | None, now: pb.CpuUsage) -> float:
    """Return the share of one core, in percent, that was used between two moments; 0 without the first."""
    if before is None or now.timestamp <= before.timestamp:
        return 0.0
    used = now.usage_core_nano_seconds.value - before.usage_core_nano_seconds.value
    return max(0, used) * 100 / (now.timestamp - before.timestamp)


def _show(
    settings: Settings,
    found: Sequence[Any],
    shares: Mapping[str, float],
    headers: Sequence[str],
    row: Callable[[Any, float], Sequence[str]],
) -> None:
    if settings.json:
        output.print_json([{**as_json(one), "cpu_percent": round(shares[one.attributes.id], 2)} for one in found])
    else:
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            sys.stdout.write(_CLEAR)
        output.print_table(headers, [row(one, shares[one.attributes.id]) for one in found])
    sys.stdout.flush()
