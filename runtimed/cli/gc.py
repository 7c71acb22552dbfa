"""``rctl gc``: garbage collection as the public API shows it, by the same graph as the daemon's, made of lists."""

import secrets
import time
from contextlib import suppress

import click

from runtimed import gcgraph
from runtimed.api import content_pb2 as content
from runtimed.api import sandbox_pb2 as sandboxes
from runtimed.cli import output
from runtimed.cli.client import Client, Settings, run, service
from runtimed.errors import InvalidArgument, NotFound, Unimplemented
from runtimed.gcgraph import Graph, Node

_INGEST_LIFETIME_NS = 24 * 3600 * 10**9  # as the daemon
_WORDS = {
    "images": "image",
    "containers": "container",
    "sandboxes": "sandbox",
    "leases": "lease",
    "ingests": "ingest",
}


@click.group("gc")
def gc_command() -> None:
    """Collect garbage, or see what is kept and why.

    \b
    rctl gc plan
    rctl gc why sha256:1234...
    """


@gc_command.command("run", short_help="Collect now, in all namespaces.")
@click.pass_obj
def run_command(settings: Settings) -> int:
    """Collect now, in all namespaces, and return when it is done.

    \b
    rctl gc run
    """

    async def work(client: Client) -> int:
        lease = await client.leases.create(f"rctl-gc-{secrets.token_hex(8)}")
        await client.leases.delete(lease.id, sync=True)
        return 0

    return run(settings, work)


@gc_command.command("plan", short_help="List what a collection would remove.")
@output.formatted
@click.pass_obj
def plan_command(settings: Settings) -> int:
    """List what a collection would remove in this namespace, and the bytes that would be free.

    \b
    rctl gc plan
    """

    async def work(client: Client) -> int:
        graph, sizes = await _graph(client)
        dead = graph.dead()
        shared = await _elsewhere(client) if any(node.type == gcgraph.CONTENT for node in dead) else set()
        rows = [(node, await _size(client, node, sizes, shared)) for node in dead]
        if settings.json:
            output.print_json([{"type": node.type, "id": node.id, "size": size} for node, size in rows])
            return 0
        output.print_table(("TYPE", "ID", "SIZE"), [(node.type, node.id, output.size(size)) for node, size in rows])
        output.note(f"{len(rows)} to remove, {output.size(sum(size for _, size in rows))}")
        return 0

    return run(settings, work)


@gc_command.command("why", short_help="Show what keeps a blob or a snapshot.")
@output.formatted
@click.argument("name", metavar="DIGEST|SNAPSHOT")
@click.pass_obj
def why_command(settings: Settings, name: str) -> int:
    """Show what keeps a blob or a snapshot: the chain of references from a root to it.

    \b
    rctl gc why sha256:1234...
    rctl gc why web
    """

    async def work(client: Client) -> int:
        graph, _ = await _graph(client)
        found = _find(graph, name)
        chains = {node: graph.chain(node) for node in found}
        if settings.json:
            output.print_json(
                [
                    [{"type": step.type, "id": step.id, "by": reason or None} for step, reason in chain]
                    for chain in chains.values()
                ]
            )
        else:
            for node, chain in chains.items():
                steps = [f"{_said(step)}{f'  ({reason})' if reason else ''}" for step, reason in chain]
                output.print_lines("  " * depth + step for depth, step in enumerate(steps))
                if not chain:
                    output.note(f"nothing keeps {_said(node)}: the next collection removes it")
        return 0 if all(chains.values()) else 1

    return run(settings, work)


def _find(graph: Graph, name: str) -> list[Node]:
    """Return the records called *name*; a digest may be cut short. Raises NotFound, InvalidArgument."""
    nodes = list(graph.nodes())
    if exact := [node for node in nodes if node.id == name]:
        return exact
    cut = {node for node in nodes if node.type == gcgraph.CONTENT and name in (node.id, node.id.partition(":")[2])}
    cut |= {node for node in nodes if node.type == gcgraph.CONTENT and _starts(node.id, name)}
    if not cut:
        raise NotFound(f"neither a blob nor a snapshot is called {name!r}")
    if len(cut) > 1:
        raise InvalidArgument(f"{name!r} may be {len(cut)} blobs: give more of the digest")
    return list(cut)


def _starts(digest: str, name: str) -> bool:
    return len(name) >= 4 and (digest.startswith(name) or digest.partition(":")[2].startswith(name))


def _said(node: Node) -> str:
    kind, _, snapshotter = node.type.partition("/")
    return f"{snapshotter} snapshot {node.id}" if snapshotter else f"{_WORDS.get(kind, kind)} {node.id}"


async def _graph(client: Client) -> tuple[Graph, dict[str, int]]:
    """Return the marked graph of the namespace, and the size of each blob in bytes."""
    namespace = client.namespace
    graph = Graph(time.time_ns())
    sizes: dict[str, int] = {}
    async for lease in client.leases.list():
        held = [(one.type, one.id) async for one in client.leases.resources(lease.id)]
        graph.lease(namespace, lease.id, lease.labels, held)
    async for image in client.images.list():
        graph.image(namespace, image.name, image.digest, image.labels)
    async for record in client.containers.list():
        graph.container(namespace, record.id, record.snapshotter, record.snapshot_key, record.labels)
    with suppress(Unimplemented):  # containerd before 1.7 has none
        for sandbox in (await client.call(service(sandboxes, "Store").List, sandboxes.StoreListRequest())).list:
            graph.sandbox(namespace, sandbox.sandbox_id, sandbox.labels)
    for plugin in await client.plugins("type==io.containerd.snapshotter.v1"):
        if plugin.error is None:
            async for snapshot in client.snapshots(plugin.id).list():
                graph.snapshot(namespace, plugin.id, snapshot.name, snapshot.parent, snapshot.labels)
    async for blob in client.content.list():
        graph.blob(namespace, blob.digest, blob.labels)
        sizes[blob.digest] = blob.size
    statuses = await client.call(service(content, "Content").ListStatuses, content.ListStatusesRequest())
    for status in statuses.statuses:
        expires_at = status.started_at.ToNanoseconds() + _INGEST_LIFETIME_NS
        graph.ingest(namespace, status.ref, status.expected, expires_at)
    graph.mark()
    return graph, sizes


async def _elsewhere(client: Client) -> set[str]:
    """Return the blobs that other namespaces have, too: removing them here frees nothing."""
    found: set[str] = set()
    async for other in client.namespaces.list():
        if other.name != client.namespace:
            listing = service(content, "Content").List
            async for page in client.messages(listing, content.ListContentRequest(), namespace=other.name):
                found |= {info.digest for info in page.info}
    return found


async def _size(client: Client, node: Node, sizes: dict[str, int], shared: set[str]) -> int:
    if node.type == gcgraph.CONTENT:
        return 0 if node.id in shared else sizes[node.id]
    if node.type.startswith(gcgraph.SNAPSHOTS):
        snapshotter = node.type.removeprefix(gcgraph.SNAPSHOTS)
        try:
            return (await client.snapshots(snapshotter).usage(node.id)).size
        except NotFound:
            return 0  # collected meanwhile
    return 0
