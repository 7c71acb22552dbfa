"""``rctl stats`` and ``rctl metrics``."""

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Any

import click
from google.protobuf.message import DecodeError

from runtimed.api import cgroups_v1_pb2 as v1
from runtimed.api import cgroups_v2_pb2 as v2
from runtimed.api import tasks_pb2 as pb
from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import formatted, note, print_json, print_table, size, timestamp
from runtimed.client.decode import any_to_json

_INTERVAL_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"  # cursor home, erase the screen (ECMA-48)
_NO_LIMIT = 1 << 60  # bytes; the kernel's largest limit of memory is near the largest number


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a container used by the time *at* (ns since the epoch); sizes in bytes. A limit that there is not is 0."""

    id: str
    at: int
    cpu_ns: int = 0
    memory: int = 0  # without what the kernel can drop from its caches at once
    memory_limit: int = 0
    pids: int = 0
    pids_limit: int = 0
    read: int = 0
    written: int = 0


@click.command("stats", short_help="Show what containers use.")
@formatted
@click.option("--no-stream", "once", is_flag=True, help="Show it once, after a second, and end.")
@click.argument("ids", nargs=-1, metavar="[ID...]", shell_complete=complete.containers)
@click.pass_obj
def stats_command(settings: Settings, once: bool, ids: tuple[str, ...]) -> int:
    """Show what running containers use, every second until interrupted: those with an ID, else all.

    CPU is the share of one core during the last second. With -o json each second gives a line.

    \b
    rctl stats
    rctl stats --no-stream web
    """

    async def work(client: Client) -> int:
        before = {usage.id: usage for usage in await _usages(client, ids)}
        _complain(ids, before)
        while True:
            await asyncio.sleep(_INTERVAL_S)
            now = await _usages(client, ids)
            _show(settings, before, now)
            if once:
                return 1 if set(ids) - before.keys() else 0
            before = {usage.id: usage for usage in now}

    return run(settings, work)


@click.command("metrics", short_help="Print all that is measured of containers, as JSON.")
@formatted
@click.argument("ids", nargs=-1, metavar="[ID...]", shell_complete=complete.containers)
@click.pass_obj
def metrics_command(settings: Settings, ids: tuple[str, ...]) -> int:
    """Print all that the kernel measures of running containers, as JSON: those with an ID, else all.

    \b
    rctl metrics web | jq '.[].metrics.memory'
    """

    async def work(client: Client) -> int:
        found = await _metrics(client, ids)
        print_json(
            [
                {
                    "id": metric.id,
                    "timestamp": timestamp(metric.timestamp),
                    "type": metric.data.type_url,
                    "metrics": any_to_json(metric.data),
                }
                for metric in found
            ]
        )
        return 1 if _complain(ids, {metric.id for metric in found}) else 0

    return run(settings, work)


async def _metrics(client: Client, ids: tuple[str, ...]) -> list[Any]:
    request = pb.MetricsRequest(filters=[f"id=={_quoted(id)}" for id in ids])
    return list((await client.call(service(pb, "Tasks").Metrics, request)).metrics)


async def _usages(client: Client, ids: tuple[str, ...]) -> list[Usage]:
    usages = [usage(metric) for metric in await _metrics(client, ids)]
    return sorted(usages, key=lambda usage: usage.id)


def _quoted(id: str) -> str:
    return '"' + id.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _complain(ids: tuple[str, ...], found: Any) -> bool:
    """Say of which *ids* there is nothing; return whether there are any."""
    missing = [id for id in ids if id not in found]
    for id in missing:
        note(f"container {id!r} has no task, or nothing is known of what it uses; see 'rctl ps -a'")
    return bool(missing)


def usage(metric: Any) -> Usage:
    """Return what a containerd.types.Metric says; nothing but ID and time if its data are of a type not known."""
    id, at, data = metric.id, metric.timestamp.ToNanoseconds(), metric.data
    try:
        match data.type_url.rpartition("/")[2]:
            case "io.containerd.cgroups.v1.Metrics":
                return _usage_v1(id, at, v1.Metrics.FromString(data.value))
            case "io.containerd.cgroups.v2.Metrics":
                return _usage_v2(id, at, v2.Metrics.FromString(data.value))
    except DecodeError:
        pass
    return Usage(id=id, at=at)


def _usage_v1(id: str, at: int, metrics: v1.Metrics) -> Usage:
    memory, entries = metrics.memory, metrics.blkio.io_service_bytes_recursive
    return Usage(
        id=id,
        at=at,
        cpu_ns=metrics.cpu.usage.total,
        memory=max(0, memory.usage.usage - memory.total_inactive_file),
        memory_limit=memory.usage.limit if memory.usage.limit < _NO_LIMIT else 0,
        pids=metrics.pids.current,
        pids_limit=metrics.pids.limit,
        read=sum(entry.value for entry in entries if entry.op.lower() == "read"),
        written=sum(entry.value for entry in entries if entry.op.lower() == "write"),
    )


def _usage_v2(id: str, at: int, metrics: v2.Metrics) -> Usage:
    memory = metrics.memory
    return Usage(
        id=id,
        at=at,
        cpu_ns=metrics.cpu.usage_usec * 1000,
        memory=max(0, memory.usage - memory.inactive_file),
        memory_limit=memory.usage_limit if memory.usage_limit < _NO_LIMIT else 0,
        pids=metrics.pids.current,
        pids_limit=metrics.pids.limit if metrics.pids.limit < _NO_LIMIT else 0,
        read=sum(entry.rbytes for entry in metrics.io.usage),
        written=sum(entry.wbytes for entry in metrics.io.usage),
    )


def cpu_percent(before: Usage | None, now: Usage) -> float:
    """Return the share of one core, in percent, that was used between two moments; 0 without the first."""
    if before is None or now.at <= before.at:
        return 0.0
    return max(0, now.cpu_ns - before.cpu_ns) * 100 / (now.at - before.at)


def _show(settings: Settings, before: dict[str, Usage], now: list[Usage]) -> None:
    if settings.json:
        print_json([_as_json(usage, cpu_percent(before.get(usage.id), usage)) for usage in now])
    else:
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            sys.stdout.write(_CLEAR)
        headers = ("ID", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")
        print_table(headers, [_as_row(usage, cpu_percent(before.get(usage.id), usage)) for usage in now])
    sys.stdout.flush()


def _as_row(usage: Usage, cpu: float) -> tuple[str, ...]:
    pids = f"{usage.pids} of {usage.pids_limit}" if usage.pids_limit else str(usage.pids)
    limit = size(usage.memory_limit) if usage.memory_limit else ""
    return (usage.id, f"{cpu:.1f} %", size(usage.memory), limit, pids, size(usage.read), size(usage.written))


def _as_json(usage: Usage, cpu: float) -> dict[str, object]:
    return {
        "id": usage.id,
        "cpu_percent": round(cpu, 2),
        "cpu_ns": usage.cpu_ns,
        "memory_bytes": usage.memory,
        "memory_limit_bytes": usage.memory_limit or None,
        "pids": usage.pids,
        "pids_limit": usage.pids_limit or None,
        "read_bytes": usage.read,
        "written_bytes": usage.written,
    }
