"""From a runtime's name to a shim that serves, and the programs that clean up after one that is gone.

Our own shim is forked from the warm parent, or started by exec when that is not there. Any other containerd shim is
started by exec as containerd would: ``<shim> -namespace NS -address SOCKET -publish-binary SELF -id ID start``.
"""

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtimed import config
from runtimed.errors import InvalidArgument, NotFound, RuntimedError, Unavailable
from runtimed.metadata.containers import Opaque
from runtimed.tasks import client
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint, Exit
from runtimed.tasks.endpoints import answering, identified, joined
from runtimed.tasks.environment import for_children
from runtimed.tasks.nursery import Nursery
from runtimed.tasks.programs import last_line, run
from runtimed.tasks.shimlogs import ShimLogs
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_OWN = (sys.executable, "-P", "-m", "shim.main")
_START_WITHIN_S = 20.0
_INFO_WITHIN_S = 5.0
_DELETE_WITHIN_S = 6.0

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
        self.logs = ShimLogs()

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
            await self.logs.open(bundle)
            endpoint = await self._exec(bundle, [program.binary], options, await self._version(program.binary))
        else:
            if joins is not None and (found := await joined(joins, bundle.id, group)) is not None:
                await blocking(bundle.save_endpoint, found)
                return found
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
            log.warning("cleaning up after a shim failed", extra={"task": bundle.id, "error": last_line(stderr)})
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
            raise NotFound(f"features of runtime {runtime}: {binary} does not tell: {last_line(stderr)}")
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
            if (made := await answering(expected, bundle.id)) is not None:
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
            raise RuntimedError(f"failed to start shim: {program[0]}: exit status {status}: {last_line(stderr)}")
        endpoint = client.parse_started(stdout)
        return await answering(endpoint, bundle.id) or endpoint

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

    async def _run(
        self, command: Sequence[str], bundle: Bundle | None, stdin: bytes, limit_s: float
    ) -> tuple[int, bytes, bytes]:
        """Run a shim's program, or an OCI runtime, in the environment that containerd's shims have; see :func:`run`."""
        environment = for_children(
            GOMAXPROCS="2",
            MAX_SHIM_VERSION="2",
            TTRPC_ADDRESS=self._ttrpc_address,
            GRPC_ADDRESS=self._grpc_address,
            NAMESPACE=bundle.namespace if bundle else "",
            RUNTIMED_RUNC_ROOT=str(self._runc_root),  # for our own, where the bundle does not say
        )
        directory = bundle.path if bundle and bundle.path.exists() else Path("/")
        return await run(command, directory, environment, stdin, limit_s)

    def _arguments(self, bundle: Bundle) -> list[str]:
        address, id = self._grpc_address, bundle.id
        return ["-namespace", bundle.namespace, "-address", address, "-publish-binary", sys.executable, "-id", id]


def _binary_name(runtime: str) -> str:
    """Return the program of ``<any>.<name>.<version>``, as containerd names it. Raises InvalidArgument."""
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or "/" in runtime:
        raise InvalidArgument(
            f"failed to start shim: failed to resolve runtime path: invalid runtime name {runtime}, correct runtime"
            " name should be either format like `io.containerd.runc.v2` or a full path to the binary"
        )
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"
