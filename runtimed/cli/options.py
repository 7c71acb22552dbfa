"""Options of ``rctl run`` and ``rctl exec``: how they are declared, and what their values mean."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from runtimed.errors import InvalidArgument, NotFound, os_errors
from runtimed.oci.container_spec import ALL_CAPABILITIES
from runtimed.oci.runtime_spec import Mount

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = r"([0-9]{1,15})([bkmgt]?)(?:i?b)?"
_MAX_ENV_FILE = 1 << 20  # bytes


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`process` declares, and ``-t``."""

    tty: bool
    env: tuple[str, ...]
    env_file: tuple[str, ...]
    workdir: str
    user: str


class ContainerOptions(ProcessOptions, frozen=True, kw_only=True):
    """What :func:`container` declares, too."""

    volume: tuple[str, ...]
    hostname: str
    net: str
    privileged: bool
    allow_new_privs: bool
    memory: str | None
    cpus: float | None
    pids_limit: int | None
    read_only: bool
    entrypoint: str | None
    label: tuple[str, ...]
    cgroup_parent: str | None
    runtime: str | None
    snapshotter: str | None
    platform: str | None


def process(command: F) -> F:
    """Add the options about a process, which run and exec share."""
    for option in (
        click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who it runs as: names or numbers."),
        click.option("-w", "--workdir", default="", metavar="PATH", help="Its working directory."),
        click.option("--env-file", multiple=True, metavar="FILE", help="A file with a KEY=VALUE per line."),
        click.option("-e", "--env", multiple=True, metavar="KEY[=VALUE]", help="Without =VALUE: rctl's own value."),
    ):
        command = option(command)
    return command


def container(command: F) -> F:
    """Add the options about a container."""
    for option in (
        click.option("--platform", metavar="OS/ARCH", help="The image's platform, if not the host's."),
        click.option("--snapshotter", help="Where its files are kept."),
        click.option("--runtime", help="The shim that runs it, as io.containerd.runc.v2."),
        click.option("--cgroup-parent", metavar="PATH", help="Default: /runtimed/NAMESPACE."),
        click.option("--label", multiple=True, metavar="KEY=VALUE", help="A label of the container."),
        click.option("--entrypoint", metavar="COMMAND", help="Instead of the image's entrypoint and command."),
        click.option("--read-only", is_flag=True, help="Make its root file system read-only."),
        click.option("--pids-limit", type=int, metavar="N", help="How many processes and threads it may have."),
        click.option("--cpus", type=float, metavar="N", help="How much CPU time it gets, as 1.5."),
        click.option("--memory", metavar="SIZE", help="How much memory it may use, as 512m."),
        click.option("--allow-new-privs", is_flag=True, help="Let set-user-ID programs work."),
        click.option("--privileged", is_flag=True, help="All capabilities and devices. As good as root on the host."),
        click.option("--net", type=click.Choice(["private", "none", "host"]), default="private", show_default=True,
                     help="private and none: only a loopback interface; host: the host's network."),
        click.option("--hostname", default="", help="Default: the container's ID."),
        click.option("-v", "--volume", multiple=True, metavar="SRC:DST[:ro]", help="Mount a path of the host."),
    ):  # fmt: skip
        command = option(command)
    return command


def without_dashes(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command in *words*, which ``--`` may introduce as it does for kubectl."""
    return words[1:] if words[:1] == ("--",) else words


def environment(entries: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return KEY=VALUE entries: of the files, then the ones given. A key alone takes rctl's own value, if it has one.

    Raises:
        InvalidArgument, NotFound, PermissionDenied: about a file.
    """
    lines: list[str] = []
    for name in files:
        lines += [line for line in _text(name).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for entry in (*lines, *entries):
        key, equals, _ = entry.partition("=")
        if equals:
            found.append(entry)
        elif key in os.environ:
            found.append(f"{key}={os.environ[key]}")
    return found


def _text(name: str) -> str:
    with os_errors(f"environment file {name!r}"), Path(name).open("rb") as file:
        data = file.read(_MAX_ENV_FILE + 1)
    if len(data) > _MAX_ENV_FILE:
        raise InvalidArgument(f"environment file {name!r} is larger than {_MAX_ENV_FILE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"environment file {name!r} is not UTF-8") from None


def labels(entries: Iterable[str]) -> dict[str, str]:
    """Return labels given as KEY=VALUE. Raises InvalidArgument."""
    found = {}
    for entry in entries:
        key, _, value = entry.partition("=")
        if not key:
            raise InvalidArgument(f"label {entry!r} is not of the form KEY=VALUE")
        found[key] = value
    return found


def volumes(entries: Iterable[str]) -> list[Mount]:
    """Return the bind mounts that ``SRC:DST[:ro|rw]`` stand for.

    Raises:
        InvalidArgument: not of that form, or DST is not an absolute path without ``..``.
        NotFound: SRC does not exist; it is not made, as a name mistyped would be.
    """
    mounts = []
    for entry in entries:
        parts = entry.split(":")
        mode = parts[2] if len(parts) == 3 else "rw"
        if len(parts) not in {2, 3} or not parts[0] or mode not in {"ro", "rw"}:
            raise InvalidArgument(f"volume {entry!r} is not of the form SRC:DST[:ro]")
        source, destination = parts[:2]
        if not destination.startswith("/") or ".." in destination.split("/") or destination.strip("/") == "":
            raise InvalidArgument(f"volume {entry!r}: {destination!r} is not an absolute path in the container")
        path = Path(source).absolute()
        if not path.exists():
            raise NotFound(f"volume {entry!r}: {source!r} does not exist; make it first")
        mounts.append(Mount(destination=destination, type="bind", source=str(path), options=("rbind", mode)))
    return mounts


def host_network_files() -> list[Mount]:
    """Return what a container on the host's network needs to find names as the host does."""
    paths = [path for path in ("/etc/resolv.conf", "/etc/hosts") if Path(path).exists()]
    return [Mount(destination=path, type="bind", source=path, options=("rbind", "ro")) for path in paths]


def own_capabilities() -> tuple[str, ...]:
    """Return the capabilities that we have: more than the host gives to its root nobody can give to a container."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return tuple(name for bit, name in enumerate(ALL_CAPABILITIES) if effective >> bit & 1)


def memory(text: str | None) -> int | None:
    """Return a size like ``512m`` in bytes (units of 1024). Raises InvalidArgument."""
    if text is None:
        return None
    match = re.fullmatch(_SIZE, text.strip().lower())
    if not match:
        raise InvalidArgument(f"size {text!r} is not a number with b, k, m or g, as 512m")
    return int(match[1]) * _UNITS[match[2]]
