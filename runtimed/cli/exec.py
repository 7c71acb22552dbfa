"""``rctl exec``: a further process in a running container."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage

from runtimed import passwd
from runtimed.api import containers_pb2 as containers
from runtimed.api import tasks_pb2 as tasks
from runtimed.cli import complete, options, terminal
from runtimed.cli.attach import Signals, attached, with_signals
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.options import ProcessOptions
from runtimed.cli.output import note
from runtimed.client.process import Process
from runtimed.client.stdio import Fifos
from runtimed.errors import InvalidArgument, RuntimedError
from runtimed.oci import container_spec, runtime_spec
from runtimed.threads import blocking


class Given(ProcessOptions, frozen=True, kw_only=True):
    """The options of exec."""

    interactive: bool
    detach: bool


@click.command(
    "exec", short_help="Run a command in a running container.", context_settings={"allow_interspersed_args": False}
)
@click.option("-t", "--tty", is_flag=True, help="Give it the terminal (with its input).")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it; its output is dropped.")
@options.process
@click.argument("id", shell_complete=complete.containers)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(settings: Settings, /, id: str, args: tuple[str, ...], **options_: Any) -> int:
    """Run a command in the running container ID; the exit status is the command's.

    \b
    rctl exec web ls /
    rctl exec -it web sh
    """
    given = Given(**options_)
    args = options.without_dashes(args)
    if not args:
        raise click.UsageError("there is no command after --")
    if given.detach and (given.tty or given.interactive):
        raise click.UsageError("-d goes neither with -t nor with -i")
    if given.tty:
        terminal.require(sys.stdin.fileno())

    async def work(client: Client) -> int:
        process = Process(client, id, f"exec-{os.urandom(6).hex()}")
        spec = await _process_spec(client, id, args, given)
        request = tasks.ExecProcessRequest(container_id=id, exec_id=process.exec_id, spec=spec, terminal=given.tty)
        if given.detach:
            await client.call(service(tasks, "Tasks").Exec, request)
            await _start_or_delete(process)
            return 0
        return await with_signals(lambda signals: _attached(client, process, request, given, signals))

    return run(settings, work)


async def _attached(
    client: Client, process: Process, request: tasks.ExecProcessRequest, given: Given, signals: Signals
) -> int:
    tty = given.tty
    with Fifos(stdin=tty or given.interactive, stderr=not tty) as fifos:
        request.stdin, request.stdout, request.stderr = (fifos.path(name) for name in ("stdin", "stdout", "stderr"))
        await client.call(service(tasks, "Tasks").Exec, request)
        try:
            status = await attached(process, fifos, signals, has_terminal=tty)
        except (RuntimedError, asyncio.CancelledError):
            if signals.is_forwarding:
                note(f"the command may go on in container {process.container_id!r}")
            else:
                await process.delete()
            raise
        await process.delete()
    return status


async def _start_or_delete(process: Process) -> None:
    try:
        await process.start()
    except RuntimedError:
        await process.delete()
        raise


async def _process_spec(client: Client, id: str, args: tuple[str, ...], given: Given) -> AnyMessage:
    """Return the container's own process with what was asked for instead.

    It is kept as the client wrote it that made the container: there may be fields that we do not know.
    """
    request = containers.GetContainerRequest(id=id)
    record = (await client.call(service(containers, "Containers").Get, request)).container
    try:
        process: dict[str, Any] = msgspec.json.decode(record.spec.value)["process"]
    except (msgspec.DecodeError, KeyError, TypeError):
        raise InvalidArgument(f"container {id!r} has no OCI runtime spec with a process") from None
    tty = given.tty
    env = options.environment(given.env, given.env_file)
    process["args"] = list(args)
    process["terminal"] = tty
    process["env"] = container_spec.merged_env(["TERM=xterm"] if tty else [], process.get("env") or [], env)
    process.pop("consoleSize", None)
    if given.workdir:
        process["cwd"] = container_spec.working_directory(given.workdir)
    if given.user:
        process["user"] = await _user(client, id, given.user)
    return AnyMessage(type_url=runtime_spec.PROCESS_TYPE_URL, value=msgspec.json.encode(process))


async def _user(client: Client, id: str, text: str) -> runtime_spec.User:
    found = passwd.numeric(text)
    if found is not None:
        return found
    answer = await client.call(service(tasks, "Tasks").Get, tasks.GetRequest(container_id=id))
    # The container as it is now, which may have made users since.
    return await blocking(passwd.resolve, text, Path(f"/proc/{answer.process.pid}/root"))
