"""``rctl run``: an image, a container, its first process, to the end."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runtimed import labels
from runtimed.api import images_pb2 as images
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete, options, terminal
from runtimed.cli.attach import Signals, attached, with_signals
from runtimed.cli.client import Client, Settings, run, service, together
from runtimed.cli.options import ContainerOptions
from runtimed.cli.output import formatted, note, print_json, print_lines
from runtimed.client.create import Plan, create, defaults, has_cgroup_v2, random_id
from runtimed.client.documents import Documents, documents, find_image
from runtimed.client.process import Process
from runtimed.client.stdio import Fifos
from runtimed.errors import InvalidArgument, NotFound, RuntimedError, Unavailable
from runtimed.identifiers import validate, validate_labels
from runtimed.oci import platform as platforms
from runtimed.oci.container_spec import DEFAULT_CAPABILITIES, Options
from runtimed.oci.descriptor import Platform
from runtimed.oci.runtime_spec import Device
from runtimed.rollback import Rollback

_LOG_SCHEMES = ("file", "cri", "binary")


class Given(ContainerOptions, frozen=True, kw_only=True):
    """The options of run."""

    remove: bool
    detach: bool
    interactive: bool
    pull: str
    log: str | None
    log_uri: str | None


@click.command("run", short_help="Run a container of an image.", context_settings={"allow_interspersed_args": False})
@formatted
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Print the ID and leave it running; see 'rctl logs'.")
@click.option("-t", "--tty", is_flag=True, help="Give it the terminal (with its input).")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@options.process
@options.container
@click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True)
@click.option(
    "--log", type=click.Path(resolve_path=True), metavar="PATH", help="With -d: the file that gets the output."
)
@click.option(
    "--log-uri",
    metavar="URI",
    help="With -d: where the output goes; file://PATH, cri://PATH (Kubernetes' format), binary://PROGRAM?KEY=VALUE.",
)
@click.argument("image", shell_complete=complete.images)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ID] [ARG...]")
@click.pass_obj
def run_command(settings: Settings, /, image: str, words: tuple[str, ...], **options_: Any) -> int:
    """Run a container of IMAGE and wait for it; the exit status is its own.

    The first word after IMAGE is the container's ID, the others are its command. For a random ID write -- instead.

    \b
    rctl run --rm busybox -- echo hello
    rctl run --rm -it alpine -- sh
    rctl run -d --memory 512m -v /srv:/data:ro nginx web
    """
    given = Given(**options_)
    if given.detach and (given.remove or given.interactive):
        raise click.UsageError("-d goes neither with --rm nor with -i: nobody would be there to do it")
    if (given.log or given.log_uri) and not given.detach:
        option = "--log" if given.log else "--log-uri"
        raise click.UsageError(f"{option} is for -d; otherwise redirect rctl's own output")
    if given.log and given.log_uri:
        raise click.UsageError("--log and --log-uri say the same; give one of them")
    if given.tty and not given.detach:
        terminal.require(sys.stdin.fileno())
    id, args = split_words(words)

    async def work(client: Client) -> int:
        try:
            return await with_signals(lambda signals: _run(client, settings, signals, image, id, args, given))
        except RuntimedError as exc:
            _explain_missing_program(exc, words)
            raise

    return run(settings, work)


def split_words(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return ID and command. ``--`` may stand before the command, and without an ID must; then it is a random one.

    Raises:
        InvalidArgument: the first word cannot be an ID.
    """
    id, rest = (words[0], words[1:]) if words and words[0] != "--" else (random_id(), words)
    return validate(id, "container ID"), options.without_dashes(rest)


def _explain_missing_program(exc: RuntimedError, words: tuple[str, ...]) -> None:
    """Users of docker write the command where the ID is."""
    text = str(exc)
    if "executable file not found" in text or "no such file or directory" in text:
        if words and words[0] != "--":
            exc.add_note(f"{words[0]!r} was taken as the container's ID; without one: rctl run IMAGE -- COMMAND")
        else:
            exc.add_note("the command must exist in the image")


async def _run(
    client: Client,
    settings: Settings,
    signals: Signals,
    name: str,
    id: str,
    args: tuple[str, ...],
    given: Given,
) -> int:
    platform = platforms.parse(given.platform) if given.platform else platforms.host()
    found, (default_snapshotter, default_runtime) = await together(
        _image(client, name, platform, given.pull), defaults(client)
    )
    snapshotter = given.snapshotter or default_snapshotter
    if found is None:
        from runtimed.cli.pull import pull_image

        image = await pull_image(client, settings, name, platform=platform, snapshotter=snapshotter)
        found = image, await documents(client, image, platform)
    image, content = found
    labelled = options.labels(given.label)
    log_uri = await _log_uri(client, id, given) if given.detach else ""
    plan = Plan(
        id=id,
        image_name=image.name,
        image=content,
        snapshotter=snapshotter,
        runtime=given.runtime or default_runtime,
        user=given.user,
        labels=labelled | ({labels.LOG_URI: log_uri} if log_uri else {}),
    )
    validate_labels(plan.labels)
    process = Process(client, id)
    async with Rollback() as steps:
        mounts = await create(client, plan, _options(client, id, args, given), steps)
        request = tasks.CreateTaskRequest(container_id=id, rootfs=mounts, terminal=given.tty)
        if given.detach:
            await _start_detached(client, process, request, log_uri, given, steps)
            print_json({"id": id}) if settings.json else print_lines([id])
            steps.commit()
            return 0
        status = await _run_attached(client, process, request, signals, steps, given)
        if not given.remove:
            steps.commit()
    return status


async def _image(client: Client, name: str, platform: Platform, pull: str) -> tuple[images.Image, Documents] | None:
    """Return the image and what it is made of; None if it is to be pulled, as it is missing, or for the platform."""
    if pull == "always":
        return None
    try:
        image = await find_image(client, name)
        return image, await documents(client, image, platform)
    except NotFound:
        if pull == "never":
            raise
    return None


async def _run_attached(
    client: Client,
    process: Process,
    request: tasks.CreateTaskRequest,
    signals: Signals,
    steps: Rollback,
    given: Given,
) -> int:
    tty = given.tty
    with Fifos(stdin=tty or given.interactive, stderr=not tty) as fifos:
        request.stdin, request.stdout, request.stderr = (fifos.path(name) for name in ("stdin", "stdout", "stderr"))
        await _create_task(client, process, request, steps)
        try:
            status = await attached(process, fifos, signals, has_terminal=tty)
        except (Unavailable, asyncio.CancelledError):
            if signals.is_forwarding:
                # It runs, and will be there when the daemon is back; what rctl does not see it must not end.
                steps.commit()
                id = process.container_id
                note(f"container {id!r} goes on; when the daemon is back: rctl ps, rctl rm -f {id}")
            raise
        await process.delete()
    return status


async def _start_detached(
    client: Client, process: Process, request: tasks.CreateTaskRequest, log_uri: str, given: Given, steps: Rollback
) -> None:
    if not (given.log or given.log_uri):
        from runtimed.cli import logs
        from runtimed.threads import blocking

        path = await logs.default_path(client, process.container_id)
        await blocking(logs.make, path)
        steps.undo("remove the log", blocking, path.unlink)
    request.stdout = log_uri
    request.stderr = "" if given.tty else log_uri
    await _create_task(client, process, request, steps)
    await process.start()


async def _create_task(client: Client, process: Process, request: tasks.CreateTaskRequest, steps: Rollback) -> None:
    try:
        await client.call(service(tasks, "Tasks").Create, request)
    except Unavailable:
        steps.undo("end the task", end, process)  # it may have been created all the same
        raise
    steps.undo("end the task", end, process)


async def _log_uri(client: Client, id: str, given: Given) -> str:
    if given.log_uri:
        scheme, separator, rest = given.log_uri.partition("://")
        if scheme not in _LOG_SCHEMES or not separator or not rest.startswith("/"):
            raise InvalidArgument(f"--log-uri {given.log_uri!r} must be one of {', '.join(_LOG_SCHEMES)}:///PATH")
        return given.log_uri
    if not given.log:
        from runtimed.cli import logs

        return (await logs.default_path(client, id)).as_uri()
    from runtimed.threads import blocking

    path = Path(given.log)
    if not await blocking(path.parent.is_dir):
        raise NotFound(f"directory {str(path.parent)!r} of the log")
    return path.as_uri()


async def end(process: Process) -> None:
    """Kill the container's task and delete it; it being gone, or never started, is fine."""
    if process.is_deleted:
        return
    try:
        await process.kill(signal.SIGKILL, everything=True, patient=True)
        await process.wait()
    except NotFound:
        pass
    except RuntimedError as exc:
        if isinstance(exc, Unavailable):
            raise
    await process.delete()


def _options(client: Client, id: str, args: tuple[str, ...], given: Given) -> Options:
    host_network = given.net == "host"
    tty = given.tty
    parent = given.cgroup_parent or f"/runtimed/{client.namespace}"
    entrypoint = given.entrypoint
    devices: Sequence[Device] = ()
    if given.privileged:
        from runtimed.linux.devices import host_devices

        devices = host_devices()
    return Options(
        args=args,
        entrypoint=shlex.split(entrypoint) if entrypoint is not None else None,
        env=options.environment(given.env, given.env_file),
        cwd=given.workdir,
        hostname=given.hostname or id[:63],
        console_size=terminal.size(sys.stdin.fileno()) if tty and os.isatty(sys.stdin.fileno()) else None,
        terminal=tty,
        mounts=[*options.volumes(given.volume), *(options.host_network_files() if host_network else [])],
        read_only=given.read_only,
        cgroups_path=f"{parent.rstrip('/')}/{id}",
        cgroup_namespace=has_cgroup_v2(),
        host_network=host_network,
        privileged=given.privileged,
        capabilities=options.own_capabilities() if given.privileged else DEFAULT_CAPABILITIES,
        devices=devices,
        new_privileges=given.allow_new_privs,
        memory=options.memory(given.memory),
        cpus=given.cpus,
        pids=given.pids_limit,
    )
