"""The command line of runc, and of what is called like it (crun, youki)."""

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType

from runtimed.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    RuntimedError,
    from_os_error,
)
from shim import failpoints, loop, sealed, shortcuts
from shim.exits import Child, Children
from shim.options import Options

# Seconds. Hooks run within create and start, so those may take their time. When one is over, runc is killed.
_START_LIMIT_S = 120.0
_LIMIT_S = 30.0
_CRIU_LIMIT_S = 600.0  # all memory of the container is written or read

_MAX_LOG = 1 << 20  # bytes of a log that are looked through, from its end
_MAX_OUTPUT = 4 << 20  # bytes of what a command prints

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Runc:
    """Runs the OCI runtime for one container.

    Every method raises RuntimedError (UNKNOWN, as clients expect) with the runtime's own message when it fails,
    FailedPrecondition when its binary is not there, and DeadlineExceeded when it did not come to an end. One that has
    been cancelled kills the runtime and waits for its end first.
    """

    def __init__(self, children: Children, options: Options, namespace: str, bundle: str) -> None:
        self._children = children
        self.options = options
        self.namespace = namespace
        self._bundle = bundle

    def knows(self, id: str) -> bool:
        """Return whether the runtime has state of a container *id*, running or not."""
        return os.access(self._state(id), os.F_OK)

    async def create(self, id: str, stdio: Sequence[int], *, pid_file: str, console_socket: str = "") -> None:
        """Create a container whose first process has the descriptors *stdio*; its pid is then in *pid_file*."""
        args = ["--bundle", self._bundle, "--pid-file", pid_file]
        if console_socket:
            args += ["--console-socket", console_socket]
        if self.options.no_pivot_root:
            args.append("--no-pivot")
        if self.options.no_new_keyring:
            args.append("--no-new-keyring")
        await self._run("create", [*args, id], stdio, limit_s=_START_LIMIT_S)

    async def start(self, id: str) -> None:
        """Let the first process go on to the container's program."""
        await failpoints.hit("shim.runc.start")
        with shortcuts.Gate(self.options.binary_name, self._state(id), self._bundle) as gate:
            if not gate.passed():
                await self._run("start", [id], limit_s=_START_LIMIT_S)

    async def exec(
        self, id: str, stdio: Sequence[int], *, process: str, pid_file: str, console_socket: str = ""
    ) -> None:
        """Start a further process, described by the JSON file *process*; its pid is then in *pid_file*."""
        args = ["--process", process, "--detach", "--pid-file", pid_file]
        if console_socket:
            args += ["--console-socket", console_socket]
        await self._run("exec", [*args, id], stdio, limit_s=_START_LIMIT_S)

    async def kill(self, id: str, number: int, *, all: bool = False) -> None:
        """Signal the first process, or all of them. Raises NotFound when there is none any more."""
        args = ["--all", id, str(number)] if all else [id, str(number)]
        try:
            await self._run("kill", args)
        except (DeadlineExceeded, FailedPrecondition):
            raise
        except RuntimedError as exc:
            text = str(exc)
            if "does not exist" in text:
                raise NotFound(f"container {id!r} does not exist") from exc
            if any(sign in text for sign in ("already finished", "not running", "no such process")):
                raise NotFound("process already finished") from exc
            raise

    async def delete(self, id: str, *, force: bool = False) -> None:
        """Give back what the runtime holds of a container that has ended, or with *force* of any. None is fine."""
        await failpoints.hit("shim.runc.delete")
        if not force and shortcuts.delete(self.options.binary_name, self._state(id)):
            return
        try:
            await self._run("delete", ["--force", id] if force else [id])
        except RuntimedError as exc:
            if "does not exist" not in str(exc):
                raise

    async def pause(self, id: str) -> None:
        await self._run("pause", [id])

    async def resume(self, id: str) -> None:
        await self._run("resume", [id])

    async def update(self, id: str, resources: bytes) -> None:
        """Change the limits of a container, by the JSON of a LinuxResources."""
        fd = os.memfd_create("resources")
        try:
            os.pwrite(fd, resources, 0)
            # Not all take "-" for standard input; the file opened by this name is read from its beginning.
            await self._run("update", ["--resources", "/proc/self/fd/0", id], stdin=fd)
        finally:
            os.close(fd)

    async def checkpoint(self, id: str, arguments: Sequence[str], *, criu_config: str) -> None:
        """Save a container; *criu_config* has options for CRIU that the runtime has none for."""
        with _criu_config(criu_config) as environment:
            await self._run("checkpoint", [*arguments, id], environment=environment, limit_s=_CRIU_LIMIT_S)

    async def restore(
        self,
        id: str,
        stdio: Sequence[int],
        arguments: Sequence[str],
        *,
        pid_file: str,
        console_socket: str = "",
        criu_config: str,
    ) -> None:
        """Bring a container back, with the descriptors *stdio*; the pid of its first process is then in *pid_file*."""
        args = ["--bundle", self._bundle, "--detach", "--pid-file", pid_file, *arguments]
        if console_socket:
            args += ["--console-socket", console_socket]
        if self.options.no_pivot_root:
            args.append("--no-pivot")
        with _criu_config(criu_config) as environment:
            await self._run("restore", [*args, id], stdio, environment=environment, limit_s=_CRIU_LIMIT_S)

    async def ps(self, id: str) -> list[int]:
        """Return the pids in the container's cgroup."""
        pids = json.loads(await self._run("ps", ["--format", "json", id]) or b"null")
        return [int(pid) for pid in pids or []]

    async def features(self) -> bytes:
        """Return the runtime's features document (OCI runtime-spec features.md), JSON."""
        return await self._run("features", [])

    async def version(self) -> str:
        """Return what ``--version`` says."""
        return (await self._run("--version", [])).decode(errors="replace")

    def _state(self, id: str) -> str:
        return f"{self.options.root}/{self.namespace}/{id}"

    async def _run(
        self,
        command: str,
        args: Sequence[str],
        stdio: Sequence[int] | None = None,
        *,
        stdin: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        limit_s: float = _LIMIT_S,
    ) -> bytes:
        """Run a command and return what it printed; nothing if it was given a container's *stdio*."""
        if command not in {"start", "delete"}:  # those have been there, before their shortcuts
            await failpoints.hit(f"shim.runc.{command}")
        # Not pipes, which somebody would have to empty while the command runs. And not files: a container can be ended
        # on a disk that is full, and the last error in a log is that of this run, whatever goes on beside it.
        output, log = os.memfd_create("output"), os.memfd_create("log")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = self._argv(f"/proc/{os.getpid()}/fd/{log}", command, args)
            try:
                stdio = stdio or (stdin or null, output, output)
                child = self._spawn(command, argv, {**self._environment(), **environment}, stdio)
            except OSError as exc:
                error = from_os_error(exc, f"OCI runtime {self.options.binary_name!r}")
                if isinstance(error, ResourceExhausted):
                    raise error from exc
                raise FailedPrecondition(
                    f"OCI runtime {self.options.binary_name!r}: {exc.strerror}; install it on the PATH of the daemon,"
                    " or name another one by the option BinaryName"
                ) from exc
            status = await _end_of(child, limit_s)
            printed = os.pread(output, _MAX_OUTPUT, 0)
            if status is None:
                raise DeadlineExceeded(f"OCI runtime {command}: killed after {limit_s:g} s without an end")
            if status:
                text = _last_error(log) or _last_line(printed) or f"exit status {status}"
                if command in {"checkpoint", "restore"} and "unknown command" in text:
                    binary = self.options.binary_name
                    raise FailedPrecondition(f"OCI runtime {binary!r} was built without checkpoints; use runc")
                raise RuntimedError(f"OCI runtime {command} failed: {text}")
            return printed
        finally:
            for fd in (null, output, log):
                os.close(fd)

    def _spawn(self, command: str, argv: list[str], environment: dict[str, str], stdio: Sequence[int]) -> Child:
        if program := sealed.program(self.options.binary_name, command):
            try:
                return self._children.spawn(argv, environment, stdio, program=program)
            except OSError as exc:
                if not sealed.is_refused(exc):
                    raise
        return self._children.spawn(argv, environment, stdio)

    def _argv(self, log: str, command: str, args: Sequence[str]) -> list[str]:
        argv = [self.options.binary_name, "--root", f"{self.options.root}/{self.namespace}"]
        argv += ["--log", log, "--log-format", "json"]
        if self.options.systemd_cgroup:
            argv.append("--systemd-cgroup")
        return [*argv, command, *args]

    @staticmethod
    def _environment() -> dict[str, str]:
        """No more than the runtime needs: its hooks inherit it. Two cores and a garbage collector it does not need."""
        return {"PATH": os.environ.get("PATH", DEFAULT_PATH), "GOMAXPROCS": "1", "GOGC": "off"}


@contextmanager
def _criu_config(config: str) -> Iterator[Mapping[str, str]]:
    """Hold CRIU's configuration in a file for the time of the block; yields the environment by which CRIU finds it."""
    fd = os.memfd_create("criu.conf")
    try:
        os.pwrite(fd, config.encode(), 0)
        yield {"CRIU_CONFIG_FILE": f"/proc/{os.getpid()}/fd/{fd}"}
    finally:
        os.close(fd)


async def _end_of(child: Child, limit_s: float) -> int | None:
    """Return the exit status; None if it had to be killed after *limit_s* seconds."""
    try:
        with loop.timeout(limit_s):
            return (await child.exited).status
    except TimeoutError:
        await _killed(child)
        return None
    except loop.Cancelled:
        await _killed(child)
        raise


async def _killed(child: Child) -> None:
    with suppress(NotFound):
        child.send_signal(signal.SIGKILL)
    await child.exited


def _last_error(log: int) -> str:
    """Return the message of the last error in a log of JSON lines, or "" if it has none."""
    lines = os.pread(log, _MAX_LOG, max(0, os.fstat(log).st_size - _MAX_LOG)).splitlines()
    for line in reversed(lines):
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") == "error":
                return str(entry.get("msg", ""))
    return ""


def _last_line(printed: bytes) -> str:
    lines = printed.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
