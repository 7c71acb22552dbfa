"""``rctl events``."""

import json

import click

from runtimed.api import events_pb2  # noqa: F401 - the types that the daemon's events are decoded with
from runtimed.api import events_service_pb2 as pb
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import formatted, safe, timestamp
from runtimed.client.decode import any_to_json


@click.command("events", short_help="Print events as they happen.")
@formatted
@click.argument("filters", nargs=-1, metavar="[FILTER...]")
@click.pass_obj
def events_command(settings: Settings, filters: tuple[str, ...]) -> int:
    """Print events as they happen, of all namespaces, until interrupted.

    FILTER is containerd's: 'topic~=/tasks/', 'namespace==default', 'event.container_id==web'. Of several, one has to
    match.

    \b
    rctl events
    rctl events topic==/tasks/exit
    """

    async def work(client: Client) -> int:
        async for envelope in client.messages(service(pb, "Events").Subscribe, pb.SubscribeRequest(filters=filters)):
            event = any_to_json(envelope.event)
            at = timestamp(envelope.timestamp) or ""
            if settings.json:
                record = {"timestamp": at, "namespace": envelope.namespace, "topic": envelope.topic, "event": event}
                print(json.dumps(record), flush=True)
            else:
                print(at, safe(envelope.namespace), safe(envelope.topic), json.dumps(event), flush=True)
        return 0

    return run(settings, work)
