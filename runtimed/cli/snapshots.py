"""``rctl snapshots``: what can be done about layers on disk."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtimed.api import diff_pb2 as diff
from runtimed.api import doctor_pb2 as doctor
from runtimed.api import types_pb2
from runtimed.cli import output, records
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.each import each
from runtimed.threads import blocking

if TYPE_CHECKING:
    from runtimed.client.records import Mount
    from runtimed.client.snapshots import Snapshots

_snapshotter = click.option("-s", "--snapshotter", default="overlayfs", show_default=True)


@click.group("snapshots", short_help="Look after snapshots.")
def snapshots_command() -> None:
    """Look after snapshots: the layers of images, the root file systems of containers.

    \b
    rctl snapshots tree
    rctl snapshots diff mycontainer | tar tz
    """


@snapshots_command.command("fsck", short_help="Check every layer that is kept as a file.")
@output.formatted
@click.pass_obj
def fsck_command(settings: Settings) -> int:
    """Read every layer that is kept as a file, in all namespaces, and compare it with its digest.

    Exit status: 1 if one is damaged. Its image must be removed and pulled again.

    \b
    rctl snapshots fsck
    """

    async def work(client: Client) -> int:
        answer = await client.call(service(doctor, "Doctor").CheckLayers, doctor.CheckLayersRequest(), patient=True)
        damaged = [layer for layer in answer.layers if layer.error]
        if settings.json:
            output.print_json({"layers": [*map(_layer, answer.layers)]})
        else:
            for layer in damaged:
                print(output.safe(f"{layer.namespace} {layer.name}: {layer.error}"))
            print(f"{len(answer.layers)} layers, {len(damaged)} damaged")
        return int(bool(damaged))

    return run(settings, work)


def _layer(layer: doctor.Layer) -> dict[str, object]:
    return {
        "snapshotter": layer.snapshotter,
        "namespace": layer.namespace,
        "name": layer.name,
        "path": layer.path,
        "size": layer.size,
        "error": layer.error or None,
    }


@snapshots_command.command("ls", short_help="List snapshots.")
@output.formatted
@_snapshotter
@records.filters
@click.pass_obj
def ls_command(settings: Settings, snapshotter: str, filters: tuple[str, ...]) -> int:
    """List the snapshots that match any FILTER: 'name==x', 'parent==x', 'kind==committed', 'labels.x==y'.

    \b
    rctl snapshots ls kind==active
    rctl snapshots ls -s native
    """

    async def work(client: Client) -> int:
        return await records.show(
            settings,
            client.snapshots(snapshotter).list(*filters),
            ("NAME", "PARENT", "KIND", "AGE"),
            lambda one: (one.name, one.parent, one.kind, records.age(one.created_at)),
        )

    return run(settings, work)


@snapshots_command.command("tree", short_help="Show which snapshot is on top of which.")
@output.formatted
@_snapshotter
@click.pass_obj
def tree_command(settings: Settings, snapshotter: str) -> int:
    """Show which snapshot is on top of which, with what each takes by itself.

    \b
    rctl snapshots tree
    """

    async def work(client: Client) -> int:
        snapshots = client.snapshots(snapshotter)
        found = [one async for one in snapshots.list()]
        sizes = {one.name: (await snapshots.usage(one.name)).size for one in found}
        children: dict[str, list[str]] = {}
        names = {one.name for one in found}
        for one in found:
            children.setdefault(one.parent if one.parent in names else "", []).append(one.name)
        if settings.json:
            output.print_json(_branches(children, sizes, ""))
            return 0
        below = [(0, name) for name in reversed(children.get("", []))]
        while below:
            depth, name = below.pop()
            print(f"{'  ' * depth}{output.safe(name)}  {output.size(sizes[name])}")
            below += [(depth + 1, child) for child in reversed(children.get(name, []))]
        return 0

    return run(settings, work)


def _branches(children: dict[str, list[str]], sizes: dict[str, int], name: str) -> list[dict[str, object]]:
    """Return the trees on top of *name*. Chains are a few hundred long at most, as overlayfs has it."""
    return [
        {"name": child, "size": sizes[child], "children": _branches(children, sizes, child)}
        for child in children.get(name, [])
    ]


@snapshots_command.command("mounts", short_help="Print the commands that mount a snapshot.")
@output.formatted
@_snapshotter
@click.argument("key")
@click.argument("target", default="TARGET")
@click.pass_obj
def mounts_command(settings: Settings, snapshotter: str, key: str, target: str) -> int:
    """Print the commands that mount an active snapshot or a view on TARGET.

    \b
    rctl snapshots mounts web /mnt | sudo sh
    """

    async def work(client: Client) -> int:
        mounts = await client.snapshots(snapshotter).mounts(key)
        if settings.json:
            output.print_json([*map(records.to_json, mounts)])
            return 0
        for mount in mounts:
            words = [
                "mount",
                "-t",
                mount.type,
                mount.source,
                str(Path(target) / mount.target.lstrip("/")),
            ]
            words += ["-o", ",".join(mount.options)] if mount.options else []
            print(output.safe(shlex.join(words)))
        return 0

    return run(settings, work)


@snapshots_command.command("diff", short_help="Write a snapshot's layer to standard output.")
@_snapshotter
@click.option("--media-type", default="application/vnd.oci.image.layer.v1.tar+gzip", show_default=True)
@click.argument("key")
@click.pass_obj
def diff_command(settings: Settings, snapshotter: str, media_type: str, key: str) -> int:
    """Write the layer of what a snapshot has that its parent has not to standard output.

    \b
    rctl snapshots diff mycontainer | tar tz
    """

    async def work(client: Client) -> int:
        snapshots = client.snapshots(snapshotter)
        info = await snapshots.stat(key)
        async with client.leases.held():
            views: list[str] = []
            try:
                lower = await _view(snapshots, info.parent, views)
                is_committed = info.kind == "committed"
                upper = await (_view(snapshots, key, views) if is_committed else _mounts(snapshots, key))
                ref = f"rctl-{os.urandom(8).hex()}"
                request = diff.DiffRequest(left=lower, right=upper, media_type=media_type, ref=ref)
                made = (await client.call(service(diff, "Diff").Diff, request)).diff
            finally:
                for view in views:
                    await snapshots.remove(view)
            async for piece in client.content.read(made.digest):
                await blocking(sys.stdout.buffer.write, piece)
        return 0

    return run(settings, work)


async def _view(snapshots: "Snapshots", parent: str, views: list[str]) -> list[types_pb2.Mount]:
    """Make a view of *parent*, add it to *views* and return its mounts; "" is the empty tree."""
    key = f"rctl-diff-{os.urandom(8).hex()}"
    made = await snapshots.view(key, parent)
    views.append(key)
    return [_message(mount) for mount in made]


async def _mounts(snapshots: "Snapshots", key: str) -> list[types_pb2.Mount]:
    return [_message(mount) for mount in await snapshots.mounts(key)]


def _message(mount: "Mount") -> types_pb2.Mount:
    return types_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


@snapshots_command.command("usage", short_help="Show what snapshots take by themselves.")
@output.formatted
@_snapshotter
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.pass_obj
def usage_command(settings: Settings, snapshotter: str, keys: tuple[str, ...]) -> int:
    """Show what snapshots take by themselves, without their parents.

    \b
    rctl snapshots usage web
    """

    async def work(client: Client) -> int:
        found = {key: await client.snapshots(snapshotter).usage(key) for key in keys}
        if settings.json:
            output.print_json({key: records.to_json(usage) for key, usage in found.items()})
        else:
            rows = [(key, output.size(usage.size), str(usage.inodes)) for key, usage in found.items()]
            output.print_table(("KEY", "SIZE", "INODES"), rows)
        return 0

    return run(settings, work)


@snapshots_command.command("rm")
@_snapshotter
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.pass_obj
def rm_command(settings: Settings, snapshotter: str, keys: tuple[str, ...]) -> int:
    """Remove snapshots that no other is on top of.

    \b
    rctl snapshots rm work
    """

    async def remove(client: Client, key: str) -> None:
        await client.snapshots(snapshotter).remove(key)

    return each(settings, keys, remove)
