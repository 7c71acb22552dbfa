"""One look at what is there and should not be: below the daemon's directories, in /proc, in the cgroups of records.

What is ours is told by where it is, in directories that this daemon alone owns and locks; nothing is guessed from
names. When in doubt a thing is reported and left alone:

- A *shim* is a process that works in the directory of a bundle whose name no task has, and that neither is nor comes
  from the shim of a task. It is ended only if nothing runs below it but such processes. One that has a container below
  it keeps the container's streams and exit status: ended blindly, it would orphan a live process.
- A *bundle* without a task is given to the same code as at the start of the daemon, which connects to its shim if there
  is one, and only cleans up where there is none.
- *runc*'s state of a container is removed only if the container's first process is gone.
- A *cgroup* is removed only if a container's record leads to it, it bears the container's ID, and nothing is in it.
"""

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimed.doctor import detached
from runtimed.doctor.findings import Stray
from runtimed.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from runtimed.mounts import mounts_below
from runtimed.tasks import pids
from runtimed.tasks.bundle import DIRECTORY, found
from runtimed.tasks.manager import Holdings
from runtimed.threads import blocking

_CGROUPS = Path("/sys/fs/cgroup")

Name = tuple[str, str]  # namespace and ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to look. cgroups are those of containers without a task, by the path in the container's spec."""

    root: Path
    state: Path
    runc_root: Path
    cgroups: Mapping[str, Name]
    adopt: Callable[[str, str], Awaitable[str]]  # loads the task of a bundle again


def look(places: Places, held: Holdings) -> list[Stray]:
    """Return what is there although no task holds it. Blocks, for some milliseconds a hundred tasks."""
    return [
        *_bundles(places, held),
        *_mounts(places, held),
        *_mounts_of_nothing(places),
        *detached.look(places.state),
        *_sockets(places, held),
        *_fifos(places),
        *_shims(places, held),
        *_runc(places, held),
        *_cgroups(places),
    ]


def _bundles(places: Places, held: Holdings) -> Iterator[Stray]:
    for bundle in found(places.root, places.state):
        namespace, id = bundle.namespace, bundle.id
        if (namespace, id) in held.names:
            continue

        async def mend(namespace: str = namespace, id: str = id) -> str:
            return await places.adopt(namespace, id)

        yield Stray(
            kind="bundle", what=f"{namespace}/{id}", detail="has no task; its shim is looked for again", mend=mend
        )


def _mounts(places: Places, held: Holdings) -> Iterator[Stray]:
    """Of tasks only: those of pods (cri/, netns/) and of sandboxes have owners that look after them."""
    top = (places.state / DIRECTORY).resolve()
    for mountpoint in reversed(mounts_below(top)):
        if mountpoint.relative_to(top).parts[:2] in held.names:
            continue

        async def mend(mountpoint: Path = mountpoint) -> str:
            with suppress(OSError):  # it went with its bundle
                await blocking(umount2, os.fspath(mountpoint), MNT_DETACH | UMOUNT_NOFOLLOW)
            return "unmounted"

        yield Stray(kind="mount", what=str(mountpoint), detail="belongs to no task", mend=mend)


def _mounts_of_nothing(places: Places) -> Iterator[Stray]:
    """Below the root directory are only mounts of layers and activated ones, which their owners look after."""
    own = (places.state, places.root / "snapshotters", places.root / "mounts")
    for mountpoint in mounts_below(places.root):
        if mountpoint == places.root or any(mountpoint.is_relative_to(directory) for directory in own):
            continue
        yield Stray(kind="mount", what=str(mountpoint), detail="is nothing of the daemon's; unmount it")


def _sockets(places: Places, held: Holdings) -> Iterator[Stray]:
    served = _listening(places.state / "s")
    for path in _entries(places.state / "s", stat.S_ISSOCK):
        if path in held.sockets:
            continue
        if path in served:
            yield Stray(kind="socket", what=str(path), detail="is served, and by the shim of no task")
            continue

        async def mend(path: Path = path) -> str:
            await blocking(path.unlink, missing_ok=True)
            return "removed"

        yield Stray(kind="socket", what=str(path), detail="belongs to no task, and nobody serves it", mend=mend)


def _fifos(places: Places) -> Iterator[Stray]:
    """What lies directly in the state directory; in bundles they go with the bundle."""
    for path in _entries(places.state, stat.S_ISFIFO):

        async def mend(path: Path = path) -> str:
            await blocking(path.unlink, missing_ok=True)
            return "removed"

        yield Stray(kind="fifo", what=str(path), detail="belongs to nothing", mend=mend)


def _shims(places: Places, held: Holdings) -> Iterator[Stray]:
    top = places.state / DIRECTORY
    working, parents = _processes(top)
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    known = set(held.shims)
    for pid, name in working.items():
        lineage = list(_lineage(pid, parents))
        if name in held.names or known & {pid, *lineage} or working.keys() & set(lineage):
            continue  # also what comes from another such process: it is dealt with together with that
        below = list(_below(pid, children))
        where = f"works in the bundle of {'/'.join(name)}, which is no task"
        if any(process not in working for process in below):
            yield Stray(
                kind="shim", what=str(pid), detail=f"{where}, and has a container; end its processes, then it ends"
            )
            continue
        processes = [(process, pids.started(process)) for process in (pid, *below)]

        async def mend(processes: Iterable[tuple[int, int]] = processes) -> str:
            for process, started in processes:
                await blocking(pids.kill, process, started)
            return "ended"

        yield Stray(kind="shim", what=str(pid), detail=where, mend=mend)


class _State(msgspec.Struct):
    """What of runc's state.json is needed."""

    init_process_pid: int = 0
    init_process_start: int = 0


def _runc(places: Places, held: Holdings) -> Iterator[Stray]:
    for path in sorted(places.runc_root.glob("*/*/state.json")):
        name = (path.parent.parent.name, path.parent.name)
        if name in held.names:
            continue
        try:
            state = msgspec.json.decode(path.read_bytes(), type=_State)
        except (OSError, msgspec.MsgspecError):
            state = _State()
        if state.init_process_start and pids.started(state.init_process_pid) == state.init_process_start:
            detail = f"no task, and its process {state.init_process_pid} lives; end it with runc delete --force"
            yield Stray(kind="runc", what="/".join(name), detail=detail)
            continue

        async def mend(directory: Path = path.parent) -> str:
            with suppress(FileNotFoundError):  # it went with its bundle
                await blocking(shutil.rmtree, directory)
            return "state removed"

        yield Stray(kind="runc", what="/".join(name), detail="has no task, and its process is gone", mend=mend)


def _cgroups(places: Places) -> Iterator[Stray]:
    hierarchies = [_CGROUPS] if (_CGROUPS / "cgroup.controllers").exists() else sorted(_CGROUPS.glob("*/"))
    for path, (namespace, id) in places.cgroups.items():
        if not path.startswith("/") or Path(path).name != id or ".." in Path(path).parts:
            continue  # systemd's form, or a place that is not this container's alone
        there = [d for hierarchy in hierarchies if (d := hierarchy / path.lstrip("/")).is_dir() and not d.is_symlink()]
        if not there:
            continue
        if any(_populated(directory) for directory in there):
            detail = f"has processes, and container {namespace}/{id} no task; look at cgroup.procs in it"
            yield Stray(kind="cgroup", what=path, detail=detail)
            continue

        async def mend(there: Iterable[Path] = there) -> str:
            for directory in there:
                with suppress(FileNotFoundError):
                    await blocking(directory.rmdir)
            return "removed"

        yield Stray(kind="cgroup", what=path, detail=f"is empty, and container {namespace}/{id} has no task", mend=mend)


def _populated(directory: Path) -> bool:
    """Say whether there is a process in the cgroup, or a cgroup in it."""
    try:
        return bool((directory / "cgroup.procs").read_text().strip()) or any(p.is_dir() for p in directory.iterdir())
    except OSError:
        return False  # it goes at this moment


def _entries(directory: Path, kind: Callable[[int], bool]) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            with suppress(FileNotFoundError):
                if kind(entry.stat(follow_symlinks=False).st_mode):
                    yield Path(entry.path)


def _listening(directory: Path) -> set[Path]:
    """Return the unix sockets below *directory* that some process has bound (proc_net_unix(5))."""
    lines = Path("/proc/net/unix").read_bytes().splitlines()[1:]
    paths = (Path(os.fsdecode(line.split(None, 7)[7])) for line in lines if line.count(b" /"))
    return {path for path in paths if path.parent == directory}


def _processes(top: Path) -> tuple[dict[int, Name], dict[int, int]]:
    """Return which processes work in which bundle below *top*, and the parent of every process."""
    working: dict[int, Name] = {}
    parents: dict[int, int] = {}
    prefix = f"{top}/"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError, ValueError):
            pid = int(entry.name)
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] == b"Z":
                continue
            parents[pid] = int(fields[1])
            cwd = str(Path(entry.path, "cwd").readlink())  # with " (deleted)" behind it, where it is
            if cwd.startswith(prefix):
                namespace, id, *_ = cwd[len(prefix) :].removesuffix(" (deleted)").split("/")
                working[pid] = namespace, id
    return working, parents


def _lineage(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def _below(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)
