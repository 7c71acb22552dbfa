"""``rctl cri logs``: the log of a container, from the file that its status names."""

import re
import time
from datetime import UTC, datetime
from urllib.parse import quote

import click
from msgspec import structs

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import NAMESPACE, RUNTIME
from runtimed.cli.cri.find import container_id
from runtimed.cli.logfile import LogFile
from runtimed.cli.logs import follow
from runtimed.errors import FailedPrecondition, NotFound
from runtimed.threads import blocking

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?[smhd])+")


class _Since(click.ParamType):  # type: ignore[type-arg]  # which older versions of click do not take
    """How long ago, as 90s, 5m or 1h30m, or a time of RFC 3339; converted to a time."""

    name = "TIME"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if _DURATION.fullmatch(value):
            passed = sum(float(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"[0-9.]+[smhd]", value))
            return datetime.fromtimestamp(max(0.0, time.time() - passed), UTC)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither how long ago, as 10m, nor a time, as 2026-01-31T12:00:00Z", param, ctx)
        return at if at.tzinfo else at.astimezone()


@click.command("logs", short_help="Print what a container has written.")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on until the container ends.")
@click.option("--tail", "lines", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@click.option("--since", type=_Since(), help="Begin at a time, or so long ago: 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="Each line with its time.")
@click.argument("id", metavar="CONTAINER", shell_complete=complete.pod_containers)
@click.pass_obj
def logs_command(
    settings: Settings, is_followed: bool, lines: int | None, since: datetime | None, timestamps: bool, id: str
) -> int:
    """Print what a container has written, stdout to stdout and stderr to stderr.

    The log is a file on the node, which this reads; what a kubelet has rotated away is not shown.

    \b
    rctl cri logs -f --tail 100 coredns
    rctl cri logs --since 10m --timestamps kube-system/coredns/coredns
    """

    async def work(client: Client) -> int:
        request = pb.ContainerStatusRequest(container_id=await container_id(client, id))
        status = (await client.call(RUNTIME.ContainerStatus, request)).status
        if not status.log_path:
            raise FailedPrecondition(f"container {id!r} has no log: none was asked for when it was made")
        if status.state == pb.CONTAINER_CREATED:
            raise FailedPrecondition(f"container {id!r} has not been started")
        try:
            opened = LogFile(f"cri://{quote(status.log_path)}", since=since, timestamps=timestamps)
        except NotFound as exc:
            exc.add_note("it is on the node's own disk, and whoever has the log rotated or removed it")
            raise
        with opened as log:
            if lines is not None:
                await blocking(log.skip_to_last, lines)
            if is_followed:
                await follow(client, status.id, log)
            else:
                await blocking(log.copy)
        return 0

    # What tells the end of the container is containerd's API, where it is in this namespace.
    return run(structs.replace(settings, namespace=NAMESPACE), work)
