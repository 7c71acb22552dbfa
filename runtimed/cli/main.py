"""rctl: the command line client. It knows the daemon by its public API only, like any other client."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from runtimed.cli import complete
from runtimed.cli.lazy import LazyGroup
from runtimed.cli.output import formatted, hint, note
from runtimed.errors import RuntimedError

# Command -> module below runtimed.cli; the function has the command's name.
_COMMANDS = {
    "pull": "pull",
    "push": "push",
    "tag": "push",
    "registry": "registry",
    "run": "run",
    "start": "start",
    "ps": "containers",
    "exec": "exec",
    "kill": "tasks",
    "stats": "stats",
    "metrics": "stats",
    "update": "resources",
    "pause": "resources",
    "resume": "resources",
    "checkpoint": "checkpoint",
    "restore": "checkpoint",
    "logs": "logs",
    "rm": "containers",
    "images": "images",
    "rmi": "images",
    "inspect": "inspect",
    "events": "events",
    "df": "df",
    "content": "content",
    "snapshots": "snapshots",
    "leases": "leases",
    "namespaces": "namespaces",
    "mounts": "mounts",
    "sandboxes": "sandboxes",
    "pods": "cri.pods",
    "cri": "cri.group",
    "plugins": "plugins",
    "gc": "gc",
    "info": "server",
    "deprecations": "server",
    "doctor": "doctor",
    "version": "server",
    "completion": "completion",
}
DEFAULT_ADDRESS = "/run/runtimed/runtimed.sock"


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-a",
    "--address",
    envvar="RUNTIMED_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="The daemon's socket.",
)
@click.option(
    "-n",
    "--namespace",
    envvar=["RUNTIMED_NAMESPACE", "CONTAINERD_NAMESPACE"],
    default="default",
    show_default=True,
    help="The namespace of containers and images.",
    shell_complete=complete.namespaces,
)
@formatted
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_obj
def rctl(settings: Any, address: str, namespace: str, debug: bool) -> None:
    """Pull images and run containers with runtimed.

    Exit status: that of the process for run and exec; else 0, 1 for an error, 2 for wrong usage.

    \b
    rctl pull busybox
    rctl run --rm busybox -- echo hello
    rctl -n k8s.io ps -a
    """
    settings.address, settings.namespace = address, namespace
    settings.debug = debug


def main() -> None:
    """Run the program with the process's arguments and end it with the exit status."""
    _open_closed_streams()
    status = call(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipeline went first. Python would complain once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.flush()
    os._exit(status)  # taking everything in Python down would take 10 ms


def _open_closed_streams() -> None:
    """Put /dev/null where rctl was started without a stream, lest a socket or a FIFO gets its number."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
            setattr(sys, name, open(fd, "w" if fd else "r"))  # noqa: PTH123, SIM115 - as long as the process


def call(arguments: Sequence[str]) -> int:
    """Return the exit status of ``rctl ARGUMENTS``; whatever goes wrong has been said on stderr."""
    from runtimed.cli.client import Settings

    logging.basicConfig(format="rctl: %(message)s", handlers=[_OneLine()], force=True)
    settings = Settings()
    try:
        return rctl.main(list(arguments), prog_name="rctl", standalone_mode=False, obj=settings) or 0
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return 2
    except click.UsageError as exc:
        note(exc.format_message())
        hint(f"see '{exc.ctx.command_path if exc.ctx else 'rctl'} --help'")
        return 2
    except click.ClickException as exc:
        note(exc.format_message())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        return 1
    except Exception as exc:
        _explain(exc, debug=settings.debug)
        return 1


def _explain(exc: Exception, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if isinstance(exc, RuntimedError | OSError):
        note(str(exc))
    else:
        note(f"unexpected {type(exc).__name__}: {exc}")
        if not debug:
            hint("rctl --debug ... shows where; please report it")
    for text in getattr(exc, "__notes__", ()):
        hint(text)


class _OneLine(logging.Handler):
    """Log records (a failed undo step, say) as single lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            return
        step = getattr(record, "step", "")
        cause = record.exc_info[1] if record.exc_info else ""
        note(": ".join(str(part) for part in (record.getMessage(), step, cause) if part))


if __name__ == "__main__":
    main()
