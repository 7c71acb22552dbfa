"""Checkpoints of a container: CRIU takes its processes down to a directory of images, and brings them back.

The OCI runtime calls CRIU and gives it the pipes among a container's streams. Streams that are other files of the host
(a client's FIFO, a log) CRIU would refuse to save: they are named to it as external at a checkpoint, and at a restore
it is told which of the new streams takes the place of which; it has to be of the same kind. For this, and so that a
restore has the options that the checkpoint had, there is a file beside the images. An archive that somebody sent may
have brought it: nothing but what this module would have written is taken from it.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimedError
from shim import files
from shim import messages as pb
from shim.proto import DecodeError
from shim.runc import DEFAULT_PATH, Runc

_NOTES = "runtimed.json"  # in the directory of the images
_CGROUPS_MODES = frozenset({"soft", "full", "strict", "ignore"})
_NAMESPACES = frozenset({"network"})  # what the runtime lets be empty
# Options that a restore has to have as well.
_LASTING = {
    "open_tcp": "--tcp-established",
    "external_unix_sockets": "--ext-unix-sk",
    "terminal": "--shell-job",
    "file_locks": "--file-locks",
}
_EXTERNAL = re.compile(r"file\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]")  # mount and inode, as CRIU names a file
_CGROUP = re.compile(r"/[^\s\"'#]+")  # what needs no quotes in CRIU's configuration
_STREAMS = (0, 1, 2)
_KINDS = {stat.S_IFIFO: "a FIFO or pipe", stat.S_IFREG: "a file", stat.S_IFCHR: "a device"}


class Restore(NamedTuple):
    """What the runtime and CRIU are told to bring a container back."""

    arguments: list[str]
    config: str  # of CRIU


def options_of(value: pb.Any | None) -> pb.CheckpointOptions:
    """Return the options of a request; none are the defaults.

    Raises:
        InvalidArgument: options of another kind, malformed ones, or a mode or namespace that there is not.
    """
    kind = value.type_url.rpartition("/")[2] if value is not None else ""
    if value is None or not kind:
        return pb.CheckpointOptions()
    if kind != pb.CheckpointOptions.FULL_NAME:
        raise InvalidArgument(f"options of type {kind!r}; a checkpoint takes {pb.CheckpointOptions.FULL_NAME}")
    try:
        options = pb.CheckpointOptions.FromString(value.value)
    except DecodeError:
        raise InvalidArgument(f"options: not a message of type {kind}") from None
    if options.cgroups_mode and options.cgroups_mode not in _CGROUPS_MODES:
        raise InvalidArgument(f"cgroups mode {options.cgroups_mode!r} is none of {', '.join(sorted(_CGROUPS_MODES))}")
    for namespace in options.empty_namespaces:
        if namespace not in _NAMESPACES:
            raise InvalidArgument(f"empty namespace {namespace!r} is none of {', '.join(sorted(_NAMESPACES))}")
    for name, path in (("work", options.work_path), ("parent", options.parent_path)):
        if path and not path.startswith("/"):
            raise InvalidArgument(f"{name} path {path!r} of a checkpoint must be absolute")
    return options


async def dump(runc: Runc, id: str, bundle: str, path: str, options: pb.CheckpointOptions) -> None:
    """Save container *id* to images in the directory *path*, which is made if need be.

    Raises:
        FailedPrecondition: CRIU is not installed.
        InvalidArgument: the path is not absolute.
        RuntimedError: CRIU's own error.
    """
    require_criu()
    if not path.startswith("/"):
        raise InvalidArgument(f"checkpoint path {path!r} must be absolute")
    arguments = ["--image-path", path]
    arguments += [] if options.exit else ["--leave-running"]
    lasting = [flag for name, flag in _LASTING.items() if getattr(options, name)]
    arguments += lasting
    if options.cgroups_mode:
        arguments += ["--manage-cgroups-mode", options.cgroups_mode]
    if options.parent_path:
        arguments += ["--parent-path", options.parent_path]
    for namespace in options.empty_namespaces:
        arguments += ["--empty-ns", namespace]
    streams = _external_streams(await runc.ps(id))
    work = options.work_path or _work(bundle)
    try:
        config = "".join(f"external {name}\n" for name in streams)
        modes = {name: mode for name, (_, mode) in streams.items()}
        descriptors = {name: fd for name, (fd, _) in streams.items()}
        await runc.checkpoint(id, [*arguments, "--work-path", work], criu_config=config)
    except RuntimedError as exc:
        with suppress(OSError):
            files.write(f"{bundle}/criu-dump.log", files.read_tail(f"{work}/dump.log"))
        raise type(exc)(f"{exc}{_reason(f'{work}/dump.log')}") from exc
    finally:
        if not options.work_path:
            _empty(work)
    files.write(f"{path}/{_NOTES}", json.dumps({"streams": descriptors, "modes": modes, "arguments": lasting}).encode())


def restore_from(path: str, bundle: str, work_path: str = "", stdio: Sequence[int] = ()) -> Restore:
    """Return how to bring back what :func:`dump`, or another tool's checkpoint, left in *path*, on the streams *stdio*.

    Raises:
        FailedPrecondition: CRIU is not installed, or would refuse one of *stdio* in the place of what was there.
        NotFound: there are no images.
    """
    require_criu()
    if not os.access(f"{path}/inventory.img", os.R_OK):
        raise NotFound(f"checkpoint {path}: there is no inventory.img, which CRIU begins with")
    arguments, config = ["--image-path", path, "--work-path", work_path or _work(bundle)], _cgroup_config(bundle)
    notes: Any = None
    with suppress(OSError, ValueError, RecursionError):
        notes = json.loads(files.read(f"{path}/{_NOTES}"))
    if isinstance(notes, dict):
        given, streams, modes = notes.get("arguments"), notes.get("streams"), notes.get("modes")
        arguments += [flag for flag in _LASTING.values() if isinstance(given, list) and flag in given]
        for name, fd in streams.items() if isinstance(streams, dict) else ():
            if _EXTERNAL.fullmatch(name) and fd in _STREAMS:
                config += f"inherit-fd fd[{int(fd)}]:{name}\n"
                mode = modes.get(name) if isinstance(modes, dict) else None
                if stdio and isinstance(mode, int):
                    config += _mode_config(int(fd), mode, os.fstat(stdio[fd]).st_mode)
    return Restore(arguments, config)


def _cgroup_config(bundle: str, root: str = "/sys/fs/cgroup") -> str:
    """Return what has CRIU put the processes below the cgroup that the spec names, whose limits they are to have.

    It would make the one anew that they were in. With version 1 the runtime tells it.
    """
    if not os.access(f"{root}/cgroup.controllers", os.F_OK):
        return ""
    try:
        path = str((json.loads(files.read(f"{bundle}/config.json")).get("linux") or {}).get("cgroupsPath") or "")
    except (OSError, ValueError, AttributeError):
        return ""  # the runtime complains
    if not path.startswith("/") and path.count(":") == 2:  # systemd's: slice, prefix and name
        slice, prefix, name = path.split(":")
        parts = slice.removesuffix(".slice").split("-") if slice not in ("", "-.slice") else []
        above = "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))
        path = f"{above}/{prefix}-{name}.scope"
    return f"cgroup-root {path}\n" if _CGROUP.fullmatch(path) else ""


def _mode_config(fd: int, saved: int, given: int) -> str:
    """Return what CRIU is told where the stream *fd* had another mode. Raises FailedPrecondition."""
    was, is_ = stat.S_IFMT(saved), stat.S_IFMT(given)
    if was in _KINDS and was != is_:
        raise FailedPrecondition(
            f"a checkpoint whose descriptor {fd} was {_KINDS[was]} cannot be restored on {_KINDS.get(is_, 'another')}:"
            " give it a stream of that kind"
        )
    return "" if saved == given else "skip-file-rwx-check\n"


def restore_error(exc: RuntimedError, bundle: str, work_path: str = "") -> RuntimedError:
    """Return *exc* with what CRIU says about it."""
    return type(exc)(f"{exc}{_reason(f'{work_path or _work(bundle)}/restore.log')}")


def require_criu() -> None:
    """Raise FailedPrecondition if the runtime will not find CRIU."""
    path = os.environ.get("PATH", DEFAULT_PATH)
    if not any(os.access(f"{directory}/criu", os.X_OK) for directory in path.split(":") if directory):
        raise FailedPrecondition("checkpoints need criu: install it (https://criu.org) on the PATH of the daemon")


def _external_streams(pids: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Return the standard streams that are files outside the processes' mount namespaces: descriptor and mode."""
    streams: dict[str, tuple[int, int]] = {}
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            own = {line.split(b" ", 1)[0] for line in files.read(f"/proc/{pid}/mountinfo").splitlines()}
            for fd in _STREAMS:
                with suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - a string all the way
                    info = files.read(f"/proc/{pid}/fdinfo/{fd}")
                    mount = info.partition(b"mnt_id:")[2].split()[0]
                    if link.startswith("/") and mount not in own:
                        found = os.stat(f"/proc/{pid}/fd/{fd}")  # noqa: PTH116
                        streams.setdefault(f"file[{int(mount):x}:{found.st_ino:x}]", (fd, found.st_mode))
    return streams


def _work(bundle: str) -> str:
    """Return where CRIU writes its log, below the daemon's work directory for the bundle if there is one."""
    return f"{bundle}/work/criu" if os.access(f"{bundle}/work", os.F_OK) else f"{bundle}/criu"


def _reason(log: str) -> str:
    """Return the last errors in a log of CRIU's, to be put behind an error of the runtime's."""
    try:
        lines = files.read_tail(log).decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line.partition(") ")[2] or line for line in lines if "Error (" in line]
    return f" ({'; '.join(errors[-3:])})" if errors else ""


def _empty(directory: str) -> None:
    """Remove a directory of files."""
    with suppress(OSError):
        for name in os.listdir(directory):  # noqa: PTH208
            os.unlink(f"{directory}/{name}")  # noqa: PTH108
        os.rmdir(directory)  # noqa: PTH106
