"""``rctl snapshots``: what can be done about layers on disk."""

import click

from runtimed.api import doctor_pb2 as doctor
from runtimed.cli import output
from runtimed.cli.client import Client, Settings, run, service


@click.group("snapshots")
def snapshots_command() -> None:
    """Look after the layers of images on disk."""


@snapshots_command.command("fsck")
@click.pass_obj
def fsck_command(settings: Settings) -> int:
    """Read every layer that is kept as a file, in all namespaces, and compare it with its digest.

    Exit status: 1 if one is damaged. Its image must be removed and pulled again.
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
