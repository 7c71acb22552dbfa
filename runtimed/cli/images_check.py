"""``rctl images check`` and ``rctl images usage``."""

import asyncio
import hashlib
from dataclasses import dataclass

import click

from runtimed.api import content_pb2 as content
from runtimed.api import doctor_pb2 as doctor
from runtimed.api import images_pb2 as images
from runtimed.api import snapshots_pb2 as snapshots
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run, service
from runtimed.client.create import defaults
from runtimed.client.documents import documents, find_image
from runtimed.client.unpack import is_unpacked
from runtimed.errors import DataLoss, NotFound, RuntimedError
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor, Platform

_AT_ONCE = 8  # blobs that are looked at side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What there is of an image for a platform."""

    name: str
    blobs: int = 0  # that it should have
    size: int = 0  # bytes of them
    wrong: tuple[str, ...] = ()  # what is missing or damaged
    is_unpacked: bool = False


@click.command("check", short_help="Say whether everything of images is here.")
@output.formatted
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Default: what this machine runs.")
@click.option("--snapshotter", help="Where it should be unpacked.")
@click.option("--read", "is_read", is_flag=True, help="Read every byte and compare digests.")
@click.option("--repair", "is_repaired", is_flag=True, help="Make damaged layers anew, and let a pull get bad blobs.")
@click.argument("names", metavar="[IMAGE]...", nargs=-1, shell_complete=complete.images)
@click.pass_obj
def check_command(
    settings: Settings,
    platform: str | None,
    snapshotter: str | None,
    is_read: bool,
    is_repaired: bool,
    names: tuple[str, ...],
) -> int:
    """Say of images, or of all, whether everything is here that a container needs.

    With --repair, every layer that is unpacked in this namespace is checked, and one that is damaged is made anew from
    its blob; a blob that is damaged itself (found with --read) is deleted, so that the next pull gets it. The exit
    status is 1 if something is missing or damaged still.

    \b
    rctl images check
    rctl images check --read --repair busybox
    """
    wanted = platforms.parse(platform) if platform else platforms.host()

    async def work(client: Client) -> int:
        place = snapshotter or (await defaults(client))[0]
        if names:
            chosen = [await find_image(client, name) for name in names]
        else:
            answer = await client.call(service(images, "Images").List, images.ListImagesRequest())
            chosen = sorted(answer.images, key=lambda image: image.name)
        found = [await _check(client, image, wanted, place, is_read=is_read, drops=is_repaired) for image in chosen]
        layers = await _repaired(client) if is_repaired else []
        if settings.json:
            output.print_json([_as_json(one) for one in found])
        else:
            headers = ("NAME", "STATUS", "BLOBS", "SIZE", "UNPACKED")
            output.print_table(headers, [_as_row(one) for one in found])
            for one in found:
                for what in one.wrong:
                    output.note(f"{one.name}: {what}")
        for layer in layers:
            if layer.found or layer.error:
                output.note(f"{layer.name}: {layer.error or f'was damaged, and has been made anew: {layer.found}'}")
        return 1 if any(one.wrong for one in found) or any(layer.error for layer in layers) else 0

    return run(settings, work)


async def _repaired(client: Client) -> list[doctor.RepairedLayer]:
    call = service(doctor, "Doctor").RepairLayers
    return list((await client.call(call, doctor.RepairLayersRequest(), patient=True)).layers)


async def _check(
    client: Client, image: images.Image, platform: Platform, snapshotter: str, *, is_read: bool, drops: bool
) -> _Found:
    try:
        parts = await documents(client, image, platform)
    except RuntimedError as exc:
        return _Found(name=image.name, wrong=(str(exc),))
    layers = [layer for layer in parts.manifest.layers or () if not manifest.is_foreign(layer)]
    blobs = [parts.descriptor, parts.manifest.config, *layers]
    limit = asyncio.Semaphore(_AT_ONCE)

    async def look(blob: Descriptor) -> str:
        async with limit:
            try:
                await _check_blob(client, blob, is_read=is_read)
            except NotFound:
                return f"{blob.digest} is missing; get it with: rctl pull {image.name}"
            except DataLoss as exc:
                if drops:
                    request = content.DeleteContentRequest(digest=blob.digest)
                    await client.call(service(content, "Content").Delete, request)
                return f"{exc}; get it anew with: rctl pull {image.name}"
            return ""

    wrong = await asyncio.gather(*(look(blob) for blob in blobs))
    return _Found(
        name=image.name,
        blobs=len(blobs),
        size=sum(blob.size for blob in blobs),
        wrong=tuple(filter(None, wrong)),
        is_unpacked=not parts.chain_id or await is_unpacked(client, snapshotter, parts.chain_id),
    )


async def _check_blob(client: Client, blob: Descriptor, *, is_read: bool) -> None:
    """Raises NotFound, and DataLoss if the blob is not what its descriptor says."""
    stub = service(content, "Content")
    info = (await client.call(stub.Info, content.InfoRequest(digest=blob.digest))).info
    if info.size != blob.size:
        raise DataLoss(f"{blob.digest} has {info.size} bytes, not {blob.size}")
    if is_read:
        state = hashlib.new(digests.split(blob.digest)[0])
        async for message in client.messages(stub.Read, content.ReadContentRequest(digest=blob.digest)):
            state.update(message.data)
        if state.hexdigest() != digests.split(blob.digest)[1]:
            raise DataLoss(f"{blob.digest} is damaged")


def _as_row(one: _Found) -> tuple[str, ...]:
    if not one.blobs:
        return one.name, "not usable", "", "", ""
    is_there = f"{one.blobs - len(one.wrong)}/{one.blobs}"
    status = "incomplete" if one.wrong else "complete"
    return one.name, status, is_there, output.size(one.size), "yes" if one.is_unpacked else "no"


def _as_json(one: _Found) -> dict[str, object]:
    return {
        "name": one.name,
        "is_complete": not one.wrong,
        "blobs": one.blobs,
        "size": one.size,
        "wrong": list(one.wrong),
        "is_unpacked": one.is_unpacked,
    }


@click.command("usage", short_help="Show what an unpacked image takes on disk.")
@output.formatted
@click.option("--snapshotter", help="Whose snapshots.")
@click.argument("name", metavar="IMAGE", shell_complete=complete.images)
@click.pass_obj
def usage_command(settings: Settings, snapshotter: str | None, name: str) -> int:
    """Show what an unpacked image takes on disk, a line a layer from the bottom up.

    \b
    rctl images usage busybox
    """

    async def work(client: Client) -> int:
        place = snapshotter or (await defaults(client))[0]
        parts = await documents(client, await find_image(client, name), platforms.host())
        stub = service(snapshots, "Snapshots")
        rows = []
        for layer, chain_id in zip(parts.manifest.layers or (), manifest.chain_ids(parts.diff_ids), strict=True):
            try:
                usage = await client.call(stub.Usage, snapshots.UsageRequest(snapshotter=place, key=chain_id))
            except NotFound as exc:
                exc.add_note(f"image {name!r} is not unpacked for snapshotter {place!r}")
                raise
            rows.append((chain_id, layer.size, usage.size, usage.inodes))
        if settings.json:
            keys = ("snapshot", "compressed", "size", "inodes")
            output.print_json([dict(zip(keys, row, strict=True)) for row in rows])
        else:
            shown = [(key[:19], output.size(blob), output.size(size), str(inodes)) for key, blob, size, inodes in rows]
            output.print_table(("SNAPSHOT", "COMPRESSED", "SIZE", "INODES"), shown)
        return 0

    return run(settings, work)
