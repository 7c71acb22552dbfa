"""Names that a shell completes: the daemon is asked for them, and where there is none, there are none."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import click

from runtimed.errors import RuntimedError

if TYPE_CHECKING:
    from runtimed.cli.client import Client

Complete = Callable[[click.Context, click.Parameter, str], list[str]]
_LIMIT_S = 2  # somebody waits for the next character
# A shell puts a name into the command line as it is: what it would not take for one word does not belong there.
_WORD = r"[A-Za-z0-9_./:@+-]+"
_DOCKER_HUB = r"^docker\.io/(library/)?"


def _completion(listed: Callable[["Client", str], AsyncIterator[str]]) -> Complete:
    """Return what click calls for the value of a parameter, given what lists names for the beginning of one."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        given = (context.params.get(parameter.name or "") or ()) if parameter.nargs == -1 else ()
        try:
            names = asyncio.run(_ask(context.find_root(), listed, incomplete))
        except (RuntimedError, OSError, TimeoutError):
            return []
        found = dict.fromkeys(names)  # a name that several have is said once
        return [
            name for name in found if name.startswith(incomplete) and name not in given and re.fullmatch(_WORD, name)
        ]

    return complete


async def _ask(
    root: click.Context, listed: Callable[["Client", str], AsyncIterator[str]], incomplete: str
) -> list[str]:
    from runtimed.client import connect

    async with (
        asyncio.timeout(_LIMIT_S),
        connect(root.params["address"], namespace=root.params["namespace"]) as client,
    ):
        return [name async for name in listed(client, incomplete)]


async def _containers(client: "Client", incomplete: str) -> AsyncIterator[str]:
    async for container in client.containers.list():
        yield container.id


async def _images(client: "Client", incomplete: str) -> AsyncIterator[str]:
    """Yield names as Docker writes them, in full if they are begun so."""
    async for image in client.images.list():
        yield image.name if incomplete and image.name.startswith(incomplete) else re.sub(_DOCKER_HUB, "", image.name)


async def _containers_and_images(client: "Client", incomplete: str) -> AsyncIterator[str]:
    for listed in (_containers, _images):
        async for name in listed(client, incomplete):
            yield name


async def _namespaces(client: "Client", incomplete: str) -> AsyncIterator[str]:
    async for namespace in client.namespaces.list():
        yield namespace.name


async def _pods(client: "Client", incomplete: str) -> AsyncIterator[str]:
    from runtimed.cli.cri.find import list_pods, pod_names

    for pod in await list_pods(client):
        for name in (*pod_names(pod.metadata), *([pod.id] if incomplete else [])):
            yield name


async def _pod_containers(client: "Client", incomplete: str) -> AsyncIterator[str]:
    """Yield names, with those of their pods if a name was begun with one; IDs if something was begun."""
    from runtimed.cli.cri.find import container_names, list_containers, list_pods

    pods = {one.id: one.metadata for one in await list_pods(client)}
    for one in await list_containers(client):
        for name in container_names(one.metadata.name, pods.get(one.pod_sandbox_id)):
            yield name
        if incomplete:
            yield one.id


async def _node_images(client: "Client", incomplete: str) -> AsyncIterator[str]:
    from runtimed.api import cri_pb2 as pb
    from runtimed.cli.cri.calls import IMAGES

    for image in (await client.call(IMAGES.ListImages, pb.ListImagesRequest())).images:
        for name in image.repo_tags:
            yield name if incomplete and name.startswith(incomplete) else re.sub(_DOCKER_HUB, "", name)


containers = _completion(_containers)
pods = _completion(_pods)
pod_containers = _completion(_pod_containers)
node_images = _completion(_node_images)
images = _completion(_images)
containers_and_images = _completion(_containers_and_images)
namespaces = _completion(_namespaces)
