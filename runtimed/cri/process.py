"""What a container runs: the image's config and the request's, put together."""

import os

from runtimed.api import cri_pb2 as pb
from runtimed.errors import InvalidArgument
from runtimed.oci.container_spec import DEFAULT_PATH, merged_env, working_directory
from runtimed.oci.manifest import Execution

_MAX_ENTRY = 128 << 10  # bytes of one argument or variable: MAX_ARG_STRLEN, execve(2)


def args(config: pb.ContainerConfig, image: Execution) -> tuple[str, ...]:
    """Return the command line: ``command`` replaces the image's entrypoint and command, ``args`` its command.

    Raises:
        InvalidArgument: nothing to run, or what no program can be given.
    """
    if config.command:
        found = (*config.command, *config.args)
    else:
        found = (*(image.entrypoint or ()), *(config.args or image.cmd or ()))
    if not found or not found[0]:
        raise InvalidArgument("no command: neither the image nor the request names one")
    for arg in found:
        _check(arg, "argument")
    return tuple(found)


def env(config: pb.ContainerConfig, image: Execution, hostname: str) -> tuple[str, ...]:
    """Return the environment: PATH, HOSTNAME, TERM with a terminal, the image's, the request's; later ones win.

    Raises:
        InvalidArgument: an entry that is not KEY=VALUE in UTF-8, or longer than a program can be given.
    """
    base = [DEFAULT_PATH, f"HOSTNAME={hostname or os.uname().nodename}"]
    if config.tty:
        base.append("TERM=xterm")
    given = []
    for pair in config.envs:
        value = pair.value if isinstance(pair.value, str) else _text(pair.key, pair.value)
        given.append(f"{pair.key}={value}")
    # An image may have entries without "=", which docker and containerd take as a variable that is empty.
    of_image = [entry if "=" in entry else f"{entry}=" for entry in image.env or ()]
    merged = merged_env(base, of_image, given)
    for entry in merged:
        _check(entry, "environment variable")
    return merged


def cwd(config: pb.ContainerConfig, image: Execution) -> str:
    """Return the working directory. Raises InvalidArgument: relative, with control characters, or in /proc."""
    return working_directory(config.working_dir or image.working_dir or "/", "set the container's working_dir")


def _text(key: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"environment variable {key[:64]!r} is not UTF-8") from None


def _check(entry: str, what: str) -> None:
    if "\0" in entry:
        raise InvalidArgument(f"{what} {entry[:64]!r} contains a NUL character")
    if len(entry) > _MAX_ENTRY // 4 and len(entry.encode()) >= _MAX_ENTRY:
        raise InvalidArgument(
            f"{what} {entry[:64]!r} is longer than {_MAX_ENTRY} bytes, which the kernel does not pass on"
        )
