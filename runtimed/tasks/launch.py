"""From a runtime's name to a shim that serves, and the programs that clean up after one that is gone.

Our own shim is forked from the warm parent, or started by exec when that is not there. Any other containerd shim is
started by exec as containerd would: ``<shim> -namespace NS -address SOCKET -publish-binary SELF -id ID start``.
"""

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from runtimed import config
from runtimed.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RuntimedError,
    Unavailable,
    from_os_error,
)
from runtimed.linux.rlimit import restore_nofile
from runtimed.metadata.containers import Opaque
from runtimed.tasks import client, pids
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit, TaskClient
from runtimed.tasks.environment import for_children
from runtimed.tasks.nursery import Nursery
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_OWN = (sys.executable, "-P", "-m", "shim.main")
_START_WITHIN_S = 20.0
_INFO_WITHIN_S = 5.0
_DELETE_WITHIN_S = 6.0
_ANSWERS_WITHIN_S = 2.0
_LOG_CHUNK = 16 << 10  # bytes read at once; a line that is longer is cut

# Bytes: the longest name of a unix socket, and what our own shims and those of containerd add to its directory.
_LONGEST_PATH = 106
_OWN_NAME = 24
_FOREIGN_NAME = 64

# Shims from this version on read a BootstrapParams from stdin, older ones the runtime's options.
_BOOTSTRAP_SINCE = (2, 3)
# What we tell shims that our version is: of the daemon whose protocol this is.
_CONTAINERD_VERSION = "2.3.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What serves a runtime: a shim's path, or "" for our own."""

    runtime: str
    binary: str
    settings: config.Runtime


class Launcher:
    """Starts shims for bundles.

    Sockets of our own are in `sockets`, which exists already. `runc_root` is where runc keeps its state unless a client
    or the configuration says otherwise: not runc's own default, so that two daemons never share it.
    """

    def __init__(
        self,
        nursery: Nursery,
        runtimes: Mapping[str, config.Runtime],
        sockets: Path,
        grpc_address: str,
        ttrpc_address: str,
        *,
        runc_root: Path,
        debug: bool = False,
    ) -> None:
        """Raises InvalidArgument: the path of `sockets` is too long to have sockets in it."""
        if len(os.fsencode(sockets)) + 1 + _OWN_NAME > _LONGEST_PATH:
            raise InvalidArgument(f"{sockets} is too long a path for sockets to be in: give a shorter --state")
        self._nursery = nursery
        self._runtimes = runtimes
        self._sockets = sockets
        self._grpc_address = grpc_address
        self._ttrpc_address = ttrpc_address
        self._runc_root = runc_root
        self._debug = debug
        self._versions: dict[str, tuple[int, int]] = {}
        self._logs: dict[Path, int] = {}  # bundle -> descriptor of its FIFO

    def options(self, program: Program, given: Opaque) -> Opaque:
        """Return the options for a shim: *given*, and what they leave open from the configuration.

        Which options a shim of an unknown kind takes, nobody but the client knows; those go on as they are.
        """
        is_runc = not program.binary or Path(program.binary).name == "containerd-shim-runc-v2"
        if not is_runc and not given.type_url:
            return client.shim_options(program.settings)
        return client.runc_options(given, program.settings, self._runc_root)

    def resolve(self, runtime: str) -> Program:
        """Return what serves *runtime*: a configured name, ``io.containerd.<name>.<version>``, or an absolute path.

        Raises:
            InvalidArgument: not such a name.
            RuntimedError: there is no such program. It is no NotFound, which would mean the container.
        """
        settings = self._runtimes.get(runtime)
        if settings is not None and settings.shim == config.BUILTIN:
            return Program(runtime=runtime, binary="", settings=settings)
        wanted = settings.shim if settings else runtime if runtime.startswith("/") else _binary_name(runtime)
        beside = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
        if (binary := shutil.which(wanted, path=beside)) is None:
            raise RuntimedError(
                f'failed to start shim: failed to resolve runtime path: runtime "{runtime}" binary not installed'
                f' "{wanted}": file does not exist; install it, or set runtimes."{runtime}".shim'
            )
        return Program(runtime=runtime, binary=binary, settings=settings or config.Runtime(shim=binary))

    async def start(
        self, bundle: Bundle, program: Program, options: Opaque, *, group: str, joins: Endpoint | None
    ) -> Endpoint:
        """Start the shim of *bundle*; it is in the bundle from then on where it serves, also after a crash.

        *joins* is where the shim of *group* serves already, if there is one. Our own is joined there. Any other is
        asked to start all the same, as containerd does it, and answers where it serves.

        Raises:
            RuntimedError: it did not start; what may be left of it is for :meth:`delete`.
            DeadlineExceeded: the shim of the group does not answer.
        """
        if program.binary:
            await blocking(bundle.save_shim, program.binary)
            await self.open_log(bundle)
            endpoint = await self._exec(bundle, [program.binary], options, await self._version(program.binary))
        else:
            if joins is not None and (joined := await _joined(joins, bundle.id, group)) is not None:
                await blocking(bundle.save_endpoint, joined)
                return joined
            # Known before it is there: a crash right after the fork must leave a bundle that leads to the shim.
            expected = Endpoint(path=self.socket(bundle.namespace, group))
            await blocking(bundle.save_endpoint, expected)
            endpoint = await self._fork(bundle, expected, program, options)
        await blocking(bundle.save_endpoint, endpoint)
        return endpoint

    async def join(self, bundle: Bundle, program: Program, endpoint: Endpoint) -> Endpoint:
        """Have the shim of a sandbox, which is there and is not ours to end, serve *bundle*."""
        endpoint = replace(endpoint, pid=0, started=0, is_of_sandbox=True)
        if program.binary:
            await blocking(bundle.save_shim, program.binary)
        await blocking(bundle.save_endpoint, endpoint)
        return endpoint

    async def delete(self, bundle: Bundle) -> Exit:
        """Run the shim's program to remove what a shim that is gone has left of its container; return how that ended.

        Never fails: what cannot be removed is logged.
        """
        binary = await blocking(bundle.shim)
        if not binary and not (bundle.path / "options.json").exists():
            return client.killed(0)  # our shim writes that first, so there has never been a container
        command = [*([binary] if binary else _OWN), *self._arguments(bundle), "-bundle", str(bundle.path), "delete"]
        try:
            status, stdout, stderr = await self._run(command, bundle, b"", _DELETE_WITHIN_S)
        except RuntimedError as exc:
            log.warning("cleaning up after a shim failed", extra={"task": bundle.id, "error": str(exc)})
            return client.killed(0)
        if status != 0:
            log.warning("cleaning up after a shim failed", extra={"task": bundle.id, "error": _last_line(stderr)})
        return client.parse_deleted(stdout if status == 0 else b"")

    async def features(self, runtime: str, binary: str) -> bytes:
        """Return what the OCI runtime behind *runtime* can do, as JSON (OCI runtime-spec features.md).

        *binary* is the one that the client will name in its options; "" means the configured one.

        Raises:
            NotFound: it does not say.
        """
        program = self.resolve(runtime)
        if program.binary:
            raise NotFound(f"features of runtime {runtime}: {program.binary} is not known to tell them")
        binary = binary or program.settings.binary
        try:
            status, stdout, stderr = await self._run([binary, "features"], None, b"", _INFO_WITHIN_S)
        except RuntimedError as exc:
            raise NotFound(f"features of runtime {runtime}: {exc}") from None
        if status != 0 or not stdout.lstrip().startswith(b"{"):
            raise NotFound(f"features of runtime {runtime}: {binary} does not tell: {_last_line(stderr)}")
        return stdout

    async def oci_runtimes(self) -> Mapping[str, str]:
        """Return what each OCI runtime that our own shims may run says of its version; "" of one that does not say."""
        binaries = {settings.binary for settings in self._runtimes.values() if settings.shim == config.BUILTIN}
        found = {}
        for binary in sorted(binaries):
            try:
                status, stdout, _ = await self._run([binary, "--version"], None, b"", _INFO_WITHIN_S)
            except RuntimedError:
                status, stdout = 1, b""
            found[binary] = stdout.decode(errors="replace").partition("\n")[0].strip() if status == 0 else ""
        return found

    async def open_log(self, bundle: Bundle) -> None:
        """Log what a shim that is not our own logs, until :meth:`close_log`. It waits for a reader before it starts."""
        fd = await blocking(bundle.make_log)
        self._logs[bundle.path] = fd
        asyncio.get_running_loop().add_reader(fd, _log_from, fd, bundle)

    def close_log(self, bundle: Bundle) -> None:
        if (fd := self._logs.pop(bundle.path, None)) is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def close(self) -> None:
        """Stop reading logs; what shims write then is lost, and they go on."""
        for fd in self._logs.values():
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._logs.clear()

    def socket(self, namespace: str, group: str) -> Path:
        """Return where our own shim of *group* serves: short, whatever the names are."""
        name = hashlib.sha256(f"{namespace}/{group}".encode()).hexdigest()[:_OWN_NAME]
        return self._sockets / name

    async def _fork(self, bundle: Bundle, expected: Endpoint, program: Program, options: Opaque) -> Endpoint:
        request = {
            "id": bundle.id,
            "namespace": bundle.namespace,
            "bundle": str(bundle.path),
            "socket": str(expected.path),
            "ttrpc_address": self._ttrpc_address,
            "grpc_address": self._grpc_address,
            "runtime": program.runtime,
            "runc_root": str(self._runc_root),
            "debug": self._debug,
        }
        for _ in range(2):  # again when the warm parent died meanwhile: it is started anew
            try:
                return identified(expected, await self._nursery.fork(request))
            except Unavailable as exc:
                log.warning("forking a shim failed", extra={"task": bundle.id, "error": str(exc)})
            if (made := await _answering(expected, bundle.id)) is not None:
                return made  # it had forked before it died
        return await self._exec(bundle, _OWN, options, _BOOTSTRAP_SINCE)

    async def _exec(
        self, bundle: Bundle, program: Sequence[str], options: Opaque, version: tuple[int, int]
    ) -> Endpoint:
        # Its socket's name is made by the shim; where ours is too long a place for it, it chooses its own.
        fits = len(os.fsencode(self._sockets)) + 1 + _FOREIGN_NAME <= _LONGEST_PATH
        stdin = client.as_any(options)
        if version >= _BOOTSTRAP_SINCE:
            stdin = client.bootstrap_params(
                id=bundle.id,
                namespace=bundle.namespace,
                ttrpc_address=self._ttrpc_address,
                grpc_address=self._grpc_address,
                binary=sys.executable,
                version=_CONTAINERD_VERSION,
                socket_dir=self._sockets if fits else None,
                options=options,
                debug=self._debug,
            )
        debug = ["-debug"] if self._debug else []
        command = [*program, *self._arguments(bundle), *debug, "start"]
        status, stdout, stderr = await self._run(command, bundle, stdin, _START_WITHIN_S)
        if status != 0:
            raise RuntimedError(f"failed to start shim: {program[0]}: exit status {status}: {_last_line(stderr)}")
        endpoint = client.parse_started(stdout)
        return await _answering(endpoint, bundle.id) or endpoint

    async def _version(self, binary: str) -> tuple[int, int]:
        """Return the version that a shim says it has, asked once; those before 2.0 know no ``-info``."""
        if binary not in self._versions:
            try:
                status, stdout, _ = await self._run([binary, "-info"], None, b"", _INFO_WITHIN_S)
            except RuntimedError as exc:
                log.warning("asking a shim for its version failed", extra={"shim": binary, "error": str(exc)})
                return 0, 0
            self._versions[binary] = client.parse_info(stdout) if status == 0 else (0, 0)
        return self._versions[binary]

    def _arguments(self, bundle: Bundle) -> list[str]:
        address, id = self._grpc_address, bundle.id
        return ["-namespace", bundle.namespace, "-address", address, "-publish-binary", sys.executable, "-id", id]

    async def _run(
        self, command: Sequence[str], bundle: Bundle | None, stdin: bytes, limit_s: float
    ) -> tuple[int, bytes, bytes]:
        """Run a shim's program; return exit status, stdout and stderr.

        They are files, not pipes: a shim's `start` leaves a child behind, and if that has kept a pipe open, reading to
        the end of it would never end.

        Raises:
            DeadlineExceeded: not done within *limit_s*; it has been killed.
        """
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    cwd=bundle.path if bundle and bundle.path.exists() else "/",
                    env=for_children(
                        GOMAXPROCS="2",
                        MAX_SHIM_VERSION="2",
                        TTRPC_ADDRESS=self._ttrpc_address,
                        GRPC_ADDRESS=self._grpc_address,
                        NAMESPACE=bundle.namespace if bundle else "",
                        RUNTIMED_RUNC_ROOT=str(self._runc_root),  # for our own, where the bundle does not say
                    ),
                    process_group=0,
                )
            except OSError as exc:
                raise from_os_error(exc, f"shim {command[0]}") from exc
            restore_nofile(process.pid)
            try:
                async with asyncio.timeout(limit_s):
                    status = await process.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"shim {command[0]}: {command[-1]} not done within {limit_s:g} s") from None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            return status, _content(out.fileno()), _content(err.fileno())


def _log_from(fd: int, bundle: Bundle) -> None:
    with suppress(BlockingIOError):
        for line in os.read(fd, _LOG_CHUNK).decode(errors="replace").splitlines():
            log.debug("shim", extra={"namespace": bundle.namespace, "task": bundle.id, "line": line})


def identified(endpoint: Endpoint, pid: int) -> Endpoint:
    """Return *endpoint* with the shim's pid and the start time that tells it from a later process with that pid."""
    return replace(endpoint, pid=pid, started=pids.started(pid))


async def _joined(endpoint: Endpoint, id: str, group: str) -> Endpoint | None:
    """Return the shim at *endpoint* if it can take task *id*; None if it is gone. Raises DeadlineExceeded."""
    try:
        connected = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
    except RuntimedError:
        return None
    try:
        return identified(endpoint, await connected.shim_pid(_ANSWERS_WITHIN_S))
    except DeadlineExceeded:
        raise DeadlineExceeded(
            f"task {id}: the shim of its group {group} (pid {endpoint.pid}) does not answer; end that group's tasks"
        ) from None
    except RuntimedError:
        return None
    finally:
        await connected.close()


async def _answering(endpoint: Endpoint, id: str) -> Endpoint | None:
    """Return *endpoint* with the pid of the shim that answers there; None if none does."""
    try:
        connected = await TaskClient.connect(endpoint, id, _ANSWERS_WITHIN_S)
    except RuntimedError:
        return None
    try:
        return identified(endpoint, await connected.shim_pid(_ANSWERS_WITHIN_S))
    except NotFound:
        return endpoint  # shims of before 2.0 answer so while they have no task
    except RuntimedError:
        return None
    finally:
        await connected.close()


def _binary_name(runtime: str) -> str:
    """Return the program of ``<any>.<name>.<version>``, as containerd names it. Raises InvalidArgument."""
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or "/" in runtime:
        raise InvalidArgument(
            f"failed to start shim: failed to resolve runtime path: invalid runtime name {runtime}, correct runtime"
            " name should be either format like `io.containerd.runc.v2` or a full path to the binary"
        )
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def _content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:1000] if lines else "it printed nothing"
