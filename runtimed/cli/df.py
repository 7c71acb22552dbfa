"""``rctl df``: what takes how much of the disk."""

import click

from runtimed.api import doctor_pb2 as doctor
from runtimed.cli import output
from runtimed.cli.client import Client, Settings, run, service

_GROUPS = ("blobs", "ingests", "layers", "active")


@click.command("df", short_help="Show what is on disk.")
@output.formatted
@click.option("--images", "is_detailed", is_flag=True, help="A line for each image.")
@click.pass_obj
def df_command(settings: Settings, is_detailed: bool) -> int:
    """Show what is on disk, of all namespaces: it adds up to what du says of the daemon's root directory.

    blobs are images as they were downloaded, layers as they were unpacked; active is what containers and builds have
    written. What is unused no image holds; `rctl gc plan` tells what of it would be collected. Of an image, unique is
    what goes with it, and shared what other images have as well.

    \b
    rctl df
    rctl df --images
    """

    async def work(client: Client) -> int:
        usage = await client.call(service(doctor, "Doctor").DiskUsage, doctor.DiskUsageRequest(), patient=True)
        if settings.json:
            output.print_json(_as_json(usage))
        elif is_detailed:
            headers = ("IMAGE", "BLOBS", "LAYERS", "UNIQUE", "SHARED")
            output.print_table(headers, [_image(image) for image in usage.images])
        else:
            rows = []
            for name in _GROUPS:
                group = getattr(usage, name)
                rows.append((name, str(group.count), output.size(group.size), output.size(group.unused)))
            rows += [("other", "", output.size(usage.other), ""), ("total", "", output.size(usage.total), "")]
            output.print_table(("KIND", "COUNT", "SIZE", "UNUSED"), rows)
        return 0

    return run(settings, work)


def _image(image: doctor.ImageUsage) -> tuple[str, ...]:
    names = ", ".join(f"{name.namespace}/{name.name}" for name in image.names)
    return names, *map(output.size, (image.blobs, image.layers, image.unique, image.shared))


def _as_json(usage: doctor.DiskUsageResponse) -> dict[str, object]:
    groups = {name: getattr(usage, name) for name in _GROUPS}
    return {
        **{name: {"count": one.count, "size": one.size, "unused": one.unused} for name, one in groups.items()},
        "other": usage.other,
        "total": usage.total,
        "images": [
            {
                "digest": image.digest,
                "names": [{"namespace": name.namespace, "name": name.name} for name in image.names],
                **{key: getattr(image, key) for key in ("blobs", "layers", "unique", "shared")},
            }
            for image in usage.images
        ],
    }
