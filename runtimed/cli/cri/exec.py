"""``rctl cri exec`` and ``rctl cri attach``."""

import sys

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, options, terminal
from runtimed.cli.attach import with_signals
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME
from runtimed.cli.cri.find import container_id
from runtimed.cli.cri.remote import remote

_authority = click.option("--tls-ca", "authority", metavar="FILE", help="Who signs the streaming server's certificate.")


@click.command(
    "exec", short_help="Run a command in a running container.", context_settings={"allow_interspersed_args": False}
)
@click.option("-t", "--tty", is_flag=True, help="Give it the terminal (with its input).")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-s", "--sync", is_flag=True, help="As a probe does: without streams, the output at the end.")
@click.option(
    "--timeout", type=click.IntRange(min=0), default=0, metavar="SECONDS", help="Of --sync; then it is killed."
)
@_authority
@click.argument("id", metavar="CONTAINER", shell_complete=complete.pod_containers)
@click.argument("args", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(
    settings: Settings,
    /,
    id: str,
    args: tuple[str, ...],
    tty: bool,
    interactive: bool,
    sync: bool,
    timeout: int,
    authority: str | None,
) -> int:
    """Run a command in the running container; the exit status is the command's.

    \b
    rctl cri exec coredns cat /etc/resolv.conf
    rctl cri exec -it kube-system/coredns/coredns sh
    rctl cri exec --sync --timeout 2 web wget -q -O - localhost:8080/healthz
    """
    args = options.without_dashes(args)
    if not args:
        raise click.UsageError("there is no command after --")
    if sync and (tty or interactive):
        raise click.UsageError("--sync goes neither with -t nor with -i")
    if timeout and not sync:
        raise click.UsageError("--timeout goes with --sync")
    if tty:
        terminal.require(sys.stdin.fileno())

    async def streamed(client: Client) -> int:
        request = pb.ExecRequest(
            container_id=await container_id(client, id),
            cmd=args,
            tty=tty,
            stdin=tty or interactive,
            stdout=True,
            stderr=not tty,
        )
        url = (await client.call(RUNTIME.Exec, request)).url
        return await with_signals(lambda _: remote(url, stdin=request.stdin, tty=tty, authority=authority))

    async def at_once(client: Client) -> int:
        request = pb.ExecSyncRequest(container_id=await container_id(client, id), cmd=args, timeout=timeout)
        answer = await client.call(RUNTIME.ExecSync, request)
        for stream, data in ((sys.stdout, answer.stdout), (sys.stderr, answer.stderr)):
            stream.buffer.write(data)
            stream.flush()
        return int(answer.exit_code)

    return run(settings, at_once if sync else streamed)


@click.command("attach", short_help="Be connected to a container's first process.")
@click.option("-t", "--tty", is_flag=True, help="The container has a terminal: give it yours.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@_authority
@click.argument("id", metavar="CONTAINER", shell_complete=complete.pod_containers)
@click.pass_obj
def attach_command(settings: Settings, id: str, tty: bool, interactive: bool, authority: str | None) -> int:
    """Show what a container's first process writes from now on, until it ends; with -i, type to it.

    With a terminal, Ctrl-P Ctrl-Q has no meaning: close the window, or end the process.

    \b
    rctl cri attach web
    rctl cri attach -it shell
    """
    if tty:
        terminal.require(sys.stdin.fileno())

    async def work(client: Client) -> int:
        request = pb.AttachRequest(
            container_id=await container_id(client, id),
            stdin=tty or interactive,
            stdout=True,
            stderr=not tty,
            tty=tty,
        )
        url = (await client.call(RUNTIME.Attach, request)).url
        return await with_signals(lambda _: remote(url, stdin=request.stdin, tty=tty, authority=authority))

    return run(settings, work)
