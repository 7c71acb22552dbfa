"""``rctl inspect``: all there is to know about a container or an image, as JSON."""

from typing import Any

import click
import msgspec

from runtimed.api import containers_pb2 as containers
from runtimed.api import runc_options_pb2  # noqa: F401 - the type that runtime options are decoded with
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.containers import state
from runtimed.cli.output import formatted, print_json, timestamp
from runtimed.client.decode import any_to_json
from runtimed.client.documents import documents, find_image
from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from runtimed.oci import platform as platforms


@click.command("inspect")
@formatted
@click.argument("name", metavar="ID|IMAGE", shell_complete=complete.containers_and_images)
@click.pass_obj
def inspect_command(settings: Settings, name: str) -> int:
    """Show a container, or else an image, in full.

    \b
    rctl inspect web | jq .task.pid
    rctl inspect busybox | jq .config
    """

    async def work(client: Client) -> int:
        try:
            request = containers.GetContainerRequest(id=name)
            record = (await client.call(service(containers, "Containers").Get, request)).container
        except (NotFound, InvalidArgument):  # an image's name need not be a valid ID
            record = None
        try:
            print_json(await (_container(client, record) if record else _image(client, name)))
        except NotFound as exc:
            if record is not None:
                raise
            raise NotFound(f"neither a container nor an image is called {name!r} in {client.namespace!r}") from exc
        return 0

    return run(settings, work)


async def _container(client: Client, record: containers.Container) -> dict[str, Any]:
    request = tasks.GetRequest(container_id=record.id)
    try:
        task = (await client.call(service(tasks, "Tasks").Get, request)).process
    except NotFound:
        task = None
    described = {
        "status": state(task),
        "pid": task.pid,
        "stdin": task.stdin,
        "stdout": task.stdout,
        "stderr": task.stderr,
        "terminal": task.terminal,
        "exit_status": task.exit_status,
        "exited_at": timestamp(task.exited_at),
    } if task else None  # fmt: skip
    return {
        "id": record.id,
        "image": record.image,
        "labels": dict(record.labels),
        "runtime": {
            "name": record.runtime.name,
            "options": any_to_json(record.runtime.options) if record.runtime.HasField("options") else None,
        },
        "snapshotter": record.snapshotter,
        "snapshot_key": record.snapshot_key,
        "sandbox": record.sandbox or None,
        "created_at": timestamp(record.created_at),
        "updated_at": timestamp(record.updated_at),
        "extensions": {key: any_to_json(value) for key, value in record.extensions.items()},
        "task": described,
        "spec": any_to_json(record.spec),
    }


async def _image(client: Client, name: str) -> dict[str, Any]:
    image = await find_image(client, name)
    found: dict[str, Any] = {
        "name": image.name,
        "labels": dict(image.labels),
        "target": {"mediaType": image.target.media_type, "digest": image.target.digest, "size": image.target.size},
        "created_at": timestamp(image.created_at),
        "updated_at": timestamp(image.updated_at),
    }
    try:
        content = await documents(client, image, platforms.host())
    except RuntimedError as exc:
        return found | {"error": str(exc)}
    return found | {
        "size": content.size,
        "manifest": msgspec.to_builtins(content.manifest),
        "config": msgspec.to_builtins(content.config),
    }
