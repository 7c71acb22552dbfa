"""The program ``runtimed``: flags, configuration, the process's own state; then :mod:`runtimed.server` serves.

Exit status: 0 after SIGTERM or SIGINT, 1 with one line on stderr when it cannot start, 2 for wrong usage.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimed import config, directories
from runtimed.config import Config
from runtimed.errors import FailedPrecondition, PermissionDenied, RuntimedError
from runtimed.linux import chroot, rlimit

if TYPE_CHECKING:
    from runtimed.server.parts import Listeners

log = logging.getLogger(__name__)

_STOPS_WITHIN_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "config":
            return _config(args)
        return _serve(args)
    except RuntimedError as exc:
        print(f"runtimed: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    # The same flags at every level, before or after the subcommand; SUPPRESS, so that a level at which one is not given
    # does not undo another.
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    flags.add_argument(
        "-c", "--config", type=_absolute, metavar="FILE", help=f"default: {config.DEFAULT_PATH}, if there"
    )
    flags.add_argument("--root", type=_absolute, metavar="DIR", help="what survives a reboot")
    flags.add_argument("--state", type=_absolute, metavar="DIR", help="what does not")
    flags.add_argument("-a", "--address", type=_absolute, metavar="SOCKET", help="default: in the state directory")
    flags.add_argument("-l", "--log-level", metavar="LEVEL", help="debug, info, warning or error")

    parser = argparse.ArgumentParser(prog="runtimed", description="A container runtime daemon.", parents=[flags])
    parser.add_argument("--version", action="version", version=f"runtimed {version('runtimed')}")
    parser.set_defaults(command="serve")
    commands = parser.add_subparsers(metavar="COMMAND")
    about = commands.add_parser("config", parents=[flags], help="print or check the configuration")
    about.set_defaults(command="config")
    kinds = about.add_subparsers(metavar="WHAT", required=True, dest="what")
    for name, help in (
        ("default", "print the built-in configuration"),
        ("dump", "print the configuration in effect"),
        ("check", "say whether it can be used"),
    ):
        kinds.add_parser(name, parents=[flags], help=help)
    migrate = kinds.add_parser(
        "migrate",
        parents=[flags],
        help="print the configuration that a containerd's becomes; what it cannot take over is said on stderr",
    )
    migrate.add_argument(
        "file", type=_absolute, nargs="?", metavar="CONTAINERD_FILE", help="default: /etc/containerd/config.toml"
    )
    return parser


def _absolute(path: str) -> Path:
    """Return *path* as it is meant here: the daemon works in / later. Links in it are left as they are."""
    return Path.cwd() / path


def _config(args: argparse.Namespace) -> int:
    match args.what:
        case "default":
            print(config.dump(replace(Config(), address=str(Config().state / "runtimed.sock"))), end="")
        case "dump":
            print(config.dump(_load(args)), end="")
        case "check":
            _load(args)
            path = getattr(args, "config", config.DEFAULT_PATH)
            print(f"{path}: fine" if path.exists() else f"{path}: not there; the defaults are fine")
        case "migrate":
            from runtimed import containerd_config

            migrated = containerd_config.migrate(args.file or containerd_config.DEFAULT_PATH)
            print(migrated.text, end="")
            for line in migrated.left:
                print(f"runtimed: not taken over: {line}", file=sys.stderr)
    return 0


def _load(args: argparse.Namespace) -> Config:
    overrides: dict[str, Any] = {
        name: str(getattr(args, name)) for name in ("root", "state", "address") if hasattr(args, name)
    }
    if hasattr(args, "log_level"):
        overrides["log"] = {"level": args.log_level}
    return config.load(getattr(args, "config", None), overrides)


def _serve(args: argparse.Namespace) -> int:
    loaded = _load(args)
    if os.geteuid() != 0:
        raise PermissionDenied("containers need root: run it as root, e.g. with sudo")
    if chroot.is_chroot():
        raise FailedPrecondition(
            "this is a chroot, where commands in containers would see the files of the host:"
            " give the daemon a mount namespace with this root (pivot_root, systemd-nspawn, RootDirectory= in a unit)"
        )
    # SIGHUP must not end the daemon, not even now. No SIG_IGN: children would inherit that.
    signal.signal(signal.SIGHUP, lambda *_: None)
    _set_up_process()
    from runtimed import log as logs  # here and below: `runtimed config` needs neither this nor grpc

    directories.check_address(loaded.address)
    directories.make_private(loaded.root, 0o700)
    directories.make_private(loaded.state, 0o711)
    logs.setup(loaded.log.level, loaded.log.format)
    with directories.locked(loaded.root), directories.locked(loaded.state):
        for suffix in ("", directories.TTRPC_SUFFIX):
            directories.clear_socket(Path(loaded.address + suffix))
        asyncio.run(_until_stopped(loaded, args))
    return 0


def _set_up_process() -> None:
    """Set what belongs to the whole process, before there are threads."""
    os.umask(0o022)
    os.chdir("/")
    rlimit.raise_nofile()
    # grpc's support for fork costs a lock around each call, and the daemon never forks. Read when grpc is imported.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


async def _until_stopped(loaded: Config, args: argparse.Namespace) -> None:
    from runtimed.server.parts import Listeners
    from runtimed.server.serve import serve

    reloads: Listeners = []
    reload = _Reload(loaded, args, reloads)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await serve(loaded, stopping, reloads)


def _stop(stopping: asyncio.Event) -> None:
    stopping.set()
    # Something may hang in the kernel, a dead file system for one. Whatever it is, it outlives us by design.
    limit = threading.Timer(_STOPS_WITHIN_S, _give_up)
    limit.daemon = True
    limit.start()


def _give_up() -> None:
    log.error("stopping took too long", extra={"limit_s": _STOPS_WITHIN_S})
    os._exit(0)


class _Reload:
    """Reads the configuration again and takes over what can change while we run; says what has to wait."""

    def __init__(self, current: Config, args: argparse.Namespace, listeners: "Listeners") -> None:
        self._current = current
        self._args = args
        self._listeners = listeners

    def __call__(self) -> None:
        from runtimed import log as logs

        try:
            new = _load(self._args)
        except RuntimedError as exc:
            log.error("the configuration cannot be read again and stays as it was", extra={"error": str(exc)})
            return
        self._current, taken, waiting = config.reloaded(self._current, new)
        logs.set_level(self._current.log.level)
        for listener in self._listeners:
            listener(self._current)
        log.info("configuration read again", extra={"taken_over": taken})
        if waiting:
            log.warning("settings have changed that are taken over at the next start", extra={"settings": waiting})


if __name__ == "__main__":
    sys.exit(main())
