"""``containerd-shim-runtimed-v1``: the shim as a program that a daemon starts by exec.

Its contract is that of containerd's shims (runtime v2)::

    SHIM -namespace NS -address GRPC -publish-binary PROGRAM -id ID [-bundle B] [-debug] start|delete
    SHIM -info | -v

``start`` runs in the bundle (the working directory, with ``config.json`` and ``rootfs/`` in it), leaves a shim behind
and prints where that one listens. The containers of a pod share a shim: the annotation ``io.containerd.runc.v2.group``
or ``io.kubernetes.cri.sandbox-id`` names it. What comes on standard input decides what is printed:

* ``BootstrapParams`` (containerd from 2.3 on): a binary ``BootstrapResult``;
* the task's options as an ``Any``, or nothing: the bare address, or JSON where ``MAX_SHIM_VERSION`` is set.

``delete`` cleans up after a shim that died, and prints a binary ``DeleteResponse``.

Environment: ``TTRPC_ADDRESS``, where events go; ``RUNTIMED_SHIM_SOCKETS``, the directory of the sockets;
``RUNTIMED_RUNC_ROOT``, where runc keeps its state unless the task's options say otherwise.
"""

import hashlib
import json
import os
import posixpath
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from runtimed.identifiers import validate
from runtimed.linux import process
from shim import log, loop, rootfs, server, ttrpc
from shim import messages as pb
from shim.exits import Children
from shim.keeper import Keeper
from shim.options import DEFAULT_ROOT, Options
from shim.proto import DecodeError
from shim.runc import Runc

PROGRAM = "containerd-shim-runtimed-v1"

_DEFAULT_SOCKETS = "/run/runtimed/s"
_GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_MAX_VERSION = 3
_TASK = "containerd.task.v3.Task"
_DISMISS_LIMIT_S = 3.0  # for each call; a daemon gives `delete` 5 s, or more
_KILLED = 128 + signal.SIGKILL
_FLAGS_WITH_VALUE = {"namespace", "address", "publish-binary", "id", "bundle", "socket"}
_SWITCHES = {"debug", "info", "v"}


@dataclass(slots=True)
class _Arguments:
    flags: dict[str, str] = field(default_factory=dict)
    action: str = ""

    @classmethod
    def parse(cls, argv: list[str]) -> "_Arguments":
        """Parse flags as Go programs take them: ``-id X``, ``--id=X``. Raises InvalidArgument."""
        arguments = cls()
        rest = iter(argv)
        for word in rest:
            if not word.startswith("-"):
                arguments.action = word
                continue
            name, equals, value = word.lstrip("-").partition("=")
            if name in _SWITCHES:
                value = value or "true"
            elif name not in _FLAGS_WITH_VALUE:
                raise InvalidArgument(f"unknown flag {word!r}")
            elif not equals:
                value = next(rest, "")
            arguments.flags[name] = value
        return arguments

    def has(self, switch: str) -> bool:
        return self.flags.get(switch, "false") == "true"

    def names(self) -> tuple[str, str]:
        """Return namespace and ID. Raises InvalidArgument if they are missing or not valid."""
        return validate(self.flags.get("namespace", ""), "namespace"), validate(self.flags.get("id", ""), "id")


def main() -> None:
    """Do what the command line says. Exit status 1, and the reason on stderr, if it cannot be done."""
    try:
        arguments = _Arguments.parse(sys.argv[1:])
        if arguments.has("v"):
            _print_version()
        elif arguments.has("info"):
            _print_info()
        elif arguments.action == "start":
            _start(arguments)
        elif arguments.action == "delete":
            _delete(arguments)
        else:
            raise InvalidArgument(f"action {arguments.action!r}; it is started by a daemon, with start or delete")
    except (RuntimedError, OSError) as exc:
        print(f"{PROGRAM}: {exc}", file=sys.stderr)
        sys.exit(1)


def _start(arguments: _Arguments) -> None:
    namespace, id = arguments.names()
    params = _bootstrap_params(_read_stdin(), namespace, id)
    grpc_address = arguments.flags.get("address", "")
    ttrpc_address = os.environ.get("TTRPC_ADDRESS", "")
    sockets = os.environ.get("RUNTIMED_SHIM_SOCKETS", _DEFAULT_SOCKETS)
    if params is not None:
        grpc_address = params.containerd_grpc_address or grpc_address
        ttrpc_address = params.containerd_ttrpc_address or ttrpc_address
        sockets = params.socket_dir or sockets
    group = _group(Path("config.json")) or id
    path = _socket_path(sockets, grpc_address, namespace, group)
    if not server.is_served(path):  # else the container joins the shim of its group
        settings = server.Settings(
            id=group,
            namespace=namespace,
            bundle=os.getcwd(),  # noqa: PTH109 - a string all the way
            socket_path=path,
            ttrpc_address=ttrpc_address,
            runc_root=_runc_root(),
            debug=arguments.has("debug"),
        )
        os.makedirs(sockets, mode=0o700, exist_ok=True)  # noqa: PTH103 - a string all the way
        _fork(settings)
    address = f"unix://{path}"
    Path("address").write_text(address)  # where containerd up to 1.6 looks for the shim after a restart
    _write_stdout(_address(address, is_bootstrap=params is not None))


def _fork(settings: server.Settings) -> None:
    sock = server.listen(settings.socket_path)
    if os.fork():
        sock.close()
        return
    status = 1
    try:
        server.detach({sock.fileno()})  # closes stdout and stderr, which the daemon reads to their end
        with suppress(OSError):  # /proc may be read-only, where the daemon is itself in a container
            process.raise_oom_score_adj(1)  # the daemon's plus one
        server.become()
        log.open_in_bundle(debug=settings.debug)
        given = [fd for fd in (sock.fileno(), log.fileno()) if fd >= 0]
        keeper = Keeper(lambda start: server.work(lambda: (settings, sock), start), given)
        keeper.start()
        status = keeper.run()
    finally:
        os._exit(status)


def _delete(arguments: _Arguments) -> None:
    namespace, id = arguments.names()
    bundle = Path(arguments.flags.get("bundle", "") or ".").absolute()
    group = _group(bundle / "config.json") or id
    sockets = os.environ.get("RUNTIMED_SHIM_SOCKETS", _DEFAULT_SOCKETS)
    path = _socket_path(sockets, arguments.flags.get("address", ""), namespace, group)

    async def delete() -> None:
        await Runc(Children(), Options.read(str(bundle), _runc_root()), namespace, str(bundle)).delete(id, force=True)
        await _dismiss(path, id)

    loop.run(delete())
    if not server.is_served(path):
        Path(path).unlink(missing_ok=True)
    rootfs.unmount(str(bundle))
    at = pb.Timestamp.of(time.time_ns())
    response = pb.DeleteResponse(pid=_init_pid(bundle), exit_status=_KILLED, exited_at=at)
    _write_stdout(response.SerializeToString())


def _runc_root() -> str:
    return os.environ.get("RUNTIMED_RUNC_ROOT", DEFAULT_ROOT)


async def _dismiss(path: str, id: str) -> None:
    """Have a shim that is alive, though its daemon has lost it, forget the container and end if it has no other."""
    with suppress(RuntimedError):
        client = ttrpc.Client(ttrpc.connected(path))
        try:
            with suppress(NotFound):
                await client.call(_TASK, "Wait", pb.WaitRequest(id=id), pb.WaitResponse, _DISMISS_LIMIT_S)
                await client.call(_TASK, "Delete", pb.DeleteRequest(id=id), pb.DeleteResponse, _DISMISS_LIMIT_S)
            await client.call(_TASK, "Shutdown", pb.ShutdownRequest(id=id), pb.Empty, _DISMISS_LIMIT_S)
        finally:
            client.close()


def _print_version() -> None:
    _write_stdout(f"{PROGRAM}:\n  Version:  {_version()}\n".encode())


def _print_info() -> None:
    """Print what this shim and its OCI runtime can do, a containerd.types.RuntimeInfo."""
    import subprocess  # here: a shim that serves has no use for it

    request = pb.RuntimeRequest()
    stdin = _read_stdin()
    options: pb.Any | None
    try:
        options = pb.Any.FromString(stdin)  # what containerd sends; the two messages have the same shape
        if not options.type_url.endswith(".Options"):
            request = pb.RuntimeRequest.FromString(stdin)
            options = request.options
    except DecodeError:
        raise InvalidArgument("standard input is neither options nor a RuntimeRequest") from None
    binary = request.runtime_path or Options.from_any(options, DEFAULT_ROOT).binary_name
    info = pb.RuntimeInfo(
        name="io.containerd.runtimed.v1", version=pb.RuntimeVersion(version=_version()), options=options
    )
    features = subprocess.run([binary, "features"], capture_output=True, check=False, timeout=10)
    if features.returncode == 0:
        kind = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
        info.features = pb.Any(type_url=kind, value=features.stdout)
    _write_stdout(info.SerializeToString())


def _bootstrap_params(stdin: bytes, namespace: str, id: str) -> pb.BootstrapParams | None:
    """Return what *stdin* holds if it is of a daemon that sends BootstrapParams; None if it is the older Any, or empty.

    Raises:
        InvalidArgument: its namespace is not that of the command line.
    """
    try:
        params = pb.BootstrapParams.FromString(stdin)
    except DecodeError:
        return None
    if params.instance_id != id:  # an Any has its type there
        return None
    if params.namespace != namespace:
        raise InvalidArgument(f"namespace {params.namespace!r} of the parameters is not {namespace!r} of the flags")
    return params


def _address(address: str, *, is_bootstrap: bool) -> bytes:
    """Return the answer to ``start`` in the form that the daemon understands."""
    if is_bootstrap:
        result = pb.BootstrapResult(version=_MAX_VERSION, address=address, protocol="ttrpc")
        return result.SerializeToString()
    limit = os.environ.get("MAX_SHIM_VERSION", "")
    if limit.isascii() and limit.isdigit() and int(limit) >= 2:
        version = min(int(limit), _MAX_VERSION)
        return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


def _group(config: Path) -> str:
    """Return the group that the container's annotations name, or ""."""
    try:
        document = json.loads(config.read_bytes())
        annotations = document.get("annotations") or {}
        found = next((annotations[key] for key in _GROUP_ANNOTATIONS if annotations.get(key)), "")
    except (OSError, ValueError, AttributeError, TypeError):
        return ""
    return str(found)


def _socket_path(directory: str, grpc_address: str, namespace: str, group: str) -> str:
    """Return the socket of a group. A digest, so that it is short and any group is a file name."""
    name = posixpath.normpath("/".join((grpc_address, namespace, group)))
    return f"{directory}/{hashlib.sha256(name.encode()).hexdigest()}"


def _init_pid(bundle: Path) -> int:
    try:
        return int((bundle / "init.pid").read_text())
    except (OSError, ValueError):
        return 0


def _version() -> str:
    from importlib.metadata import version  # here: a shim that serves has no use for it

    return version("runtimed")


def _read_stdin() -> bytes:
    return sys.stdin.buffer.read() if sys.stdin and not sys.stdin.isatty() else b""


def _write_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
