"""``rctl cri runp``, ``create`` and ``run``: pods and containers from files that describe them."""

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri import documents
from runtimed.cli.cri.calls import IMAGES, RUNTIME
from runtimed.cli.cri.find import pod_id

_handler = click.option("--runtime", "handler", default="", metavar="NAME", help="The handler of a runtime class.")
_pull = click.option("--pull", "is_pulled", is_flag=True, help="Pull its image first.")


@click.command("runp", short_help="Run a pod without containers.")
@output.formatted
@_handler
@click.argument("pod_config", metavar="POD-FILE", type=click.Path())
@click.pass_obj
def runp_command(settings: Settings, handler: str, pod_config: str) -> int:
    """Run a pod, with no containers yet, that a file describes; print its ID.

    The file is a PodSandboxConfig of CRI in JSON or YAML: 'metadata: {name: web, namespace: default, uid: u1}' is
    enough. A field may be written log_directory or logDirectory.

    \b
    rctl cri runp pod.yaml
    rctl cri runp --runtime gvisor pod.json
    """
    config = documents.read(pod_config, pb.PodSandboxConfig())

    async def work(client: Client) -> int:
        return _said(settings, pod=await _run_pod(client, config, handler))

    return run(settings, work)


@click.command("create", short_help="Create a container in a pod.")
@output.formatted
@_pull
@click.argument("id", metavar="POD", shell_complete=complete.pods)
@click.argument("container_config", metavar="CONTAINER-FILE", type=click.Path())
@click.argument("pod_config", metavar="POD-FILE", type=click.Path())
@click.pass_obj
def create_command(settings: Settings, is_pulled: bool, id: str, container_config: str, pod_config: str) -> int:
    """Create a container in a pod, from files that describe both; print its ID. 'rctl cri start' starts it.

    CONTAINER-FILE is a ContainerConfig of CRI in JSON or YAML: 'metadata: {name: web}' and 'image: {image: nginx}' are
    enough. POD-FILE is what the pod was run from. The image may be the path of an archive on the daemon's host, made
    by 'rctl cri checkpoint': when it is started the container goes on from there.

    \b
    rctl cri create web container.yaml pod.yaml
    """
    container = documents.read(container_config, pb.ContainerConfig())
    pod = documents.read(pod_config, pb.PodSandboxConfig())

    async def work(client: Client) -> int:
        return _said(settings, container=await _create(client, await pod_id(client, id), container, pod, is_pulled))

    return run(settings, work)


@click.command("run", short_help="Run a pod with one container.")
@output.formatted
@_handler
@_pull
@click.argument("container_config", metavar="CONTAINER-FILE", type=click.Path())
@click.argument("pod_config", metavar="POD-FILE", type=click.Path())
@click.pass_obj
def run_command(settings: Settings, handler: str, is_pulled: bool, container_config: str, pod_config: str) -> int:
    """Run a pod with one container, from files as of create; print the container's ID.

    If the container fails, the pod is removed.

    \b
    rctl cri run --pull container.yaml pod.yaml
    """
    container = documents.read(container_config, pb.ContainerConfig())
    config = documents.read(pod_config, pb.PodSandboxConfig())

    async def work(client: Client) -> int:
        pod = await _run_pod(client, config, handler)
        try:
            id = await _create(client, pod, container, config, is_pulled)
            await client.call(RUNTIME.StartContainer, pb.StartContainerRequest(container_id=id))
        except BaseException:
            await client.call(RUNTIME.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
            raise
        return _said(settings, pod=pod, container=id)

    return run(settings, work)


async def _run_pod(client: Client, config: pb.PodSandboxConfig, handler: str) -> str:
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str((await client.call(RUNTIME.RunPodSandbox, request)).pod_sandbox_id)


async def _create(
    client: Client, pod: str, container: pb.ContainerConfig, config: pb.PodSandboxConfig, is_pulled: bool
) -> str:
    if is_pulled and not container.image.image.startswith("/"):
        await client.call(IMAGES.PullImage, pb.PullImageRequest(image=container.image, sandbox_config=config))
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    return str((await client.call(RUNTIME.CreateContainer, request)).container_id)


def _said(settings: Settings, **ids: str) -> int:
    """Print what was made: all as JSON, or the ID of the last one."""
    output.print_json(ids) if settings.json else output.print_lines([*ids.values()][-1:])
    return 0
