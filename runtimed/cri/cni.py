"""CNI: the first network configuration of a directory, and its plugins, which are programs (CNI spec 0.3.1 to 1.1).

A plugin is told what to do by environment variables and its part of the configuration on stdin, and answers in JSON on
stdout. ADD runs the plugins of a list in their order, each given what the one before answered; DEL in reverse.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from runtimed.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    RuntimedError,
    Unavailable,
    from_os_error,
    os_errors,
)

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
IF_NAME = "eth0"
_SUFFIXES = (".conf", ".conflist", ".json")
_LARGEST = 1 << 20  # bytes of a configuration file, or of what a plugin answers
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkList:
    """A network configuration list; a single plugin's configuration is a list of one."""

    name: str
    version: str
    plugins: tuple[Json, ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""  # the file

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "cniVersion": self.version,
            "plugins": list(self.plugins),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, fields: Json) -> "NetworkList":
        return cls(
            name=fields["name"],
            version=fields["cniVersion"],
            plugins=tuple(fields["plugins"]),
            disable_check=fields.get("disableCheck", False),
            disable_gc=fields.get("disableGC", False),
            source=fields.get("source", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container on a network: what every command for it says."""

    container_id: str
    netns: str  # path; "" once it is gone
    if_name: str = IF_NAME
    args: tuple[tuple[str, str], ...] = ()  # CNI_ARGS
    capabilities: Mapping[str, Any] = field(default_factory=dict)  # runtimeConfig, for plugins that ask for it


def find(directory: Path) -> NetworkList:
    """Return the network of the first configuration file in *directory*, by name.

    Raises:
        NotFound: no directory, or none in it.
        InvalidArgument: the first one is not a configuration; it names the file.
    """
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in _SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        raise NotFound(f"no network configuration in {directory}: put a CNI .conflist there")
    return parse(directory / names[0])


def parse(path: Path) -> NetworkList:
    """Return the network of one configuration file. Raises InvalidArgument, NotFound."""
    subject = f"CNI configuration {path}"
    with os_errors(subject), path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InvalidArgument(f"{subject}: larger than {_LARGEST} bytes")
    table = _decode(data, subject)
    plugins = table.get("plugins") if "plugins" in table else [table]
    if not isinstance(plugins, list) or not plugins:
        raise InvalidArgument(f"{subject}: no plugins")
    for plugin in plugins:
        if not isinstance(plugin, dict) or not isinstance(plugin.get("type"), str):
            raise InvalidArgument(f"{subject}: a plugin without a type")
        if not plugin["type"] or "/" in plugin["type"] or plugin["type"].startswith("."):
            raise InvalidArgument(f"{subject}: plugin type {plugin['type'][:64]!r} is not the name of a program")
    name = table.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise InvalidArgument(f"{subject}: a network must have a name")
    return NetworkList(
        name=name,
        version=_version(table, subject),
        plugins=tuple(plugins),
        disable_check=_is_true(table.get("disableCheck")),
        disable_gc=_is_true(table.get("disableGC")),
        source=str(path),
    )


def _version(table: Json, subject: str) -> str:
    """Return the version that is spoken: of those the configuration offers the newest that is known here."""
    offered = table.get("cniVersions") or [table.get("cniVersion", "")]
    known = [version for version in VERSIONS if isinstance(offered, list) and version in offered]
    if not known:
        raise InvalidArgument(f"{subject}: cniVersion {str(offered)[:64]} is none of {', '.join(VERSIONS)}")
    return known[-1]


def _is_true(value: object) -> bool:
    return value is True or value == "true"  # the spec says boolean, files in the wild have strings


class Plugins:
    """Runs plugins. Each is killed, with what it has started, when its time is over or its caller is cancelled."""

    def __init__(self, directories: Sequence[str], limit_s: float) -> None:
        self._directories = tuple(directories)
        self._limit_s = limit_s

    async def add(self, network: NetworkList, attachment: Attachment) -> Json:
        """Attach; return the result of the last plugin. What fails half-way is undone by :meth:`delete`, not here."""
        result: Json | None = None
        for plugin in network.plugins:
            result = await self._command("ADD", network, plugin, attachment, result)
        if not result:
            raise Internal(
                f"CNI network {network.name}: plugin {network.plugins[-1]['type']} answered ADD with nothing"
            )
        return result

    async def check(self, network: NetworkList, attachment: Attachment, result: Json) -> None:
        """Ask whether the attachment is as ADD left it; networks that cannot tell are fine."""
        if network.version == "0.3.1" or network.disable_check:
            return
        for plugin in network.plugins:
            await self._command("CHECK", network, plugin, attachment, result)

    async def delete(self, network: NetworkList, attachment: Attachment, result: Json | None) -> None:
        """Detach, also what was attached only in part. Every plugin is asked; the first failure is raised."""
        known = result if network.version != "0.3.1" else None
        await _all(self._command("DEL", network, plugin, attachment, known) for plugin in reversed(network.plugins))

    async def gc(self, network: NetworkList, valid: Sequence[tuple[str, str]]) -> None:
        """Tell the plugins which attachments (container ID, interface) there are; they free what others had.

        Every plugin is asked; the first failure is raised.
        """
        if network.version != "1.1.0" or network.disable_gc:
            return
        known = {"cni.dev/valid-attachments": [{"containerID": id, "ifname": name} for id, name in valid]}
        await _all(self._command("GC", network, {**plugin, **known}, None, None) for plugin in network.plugins)

    async def status(self, network: NetworkList) -> None:
        """Ask whether ADD would work now. Raises Unavailable with what the plugin says, Internal."""
        for plugin in network.plugins:
            self._program(plugin["type"])
            if network.version == "1.1.0":
                await self._command("STATUS", network, plugin, None, None)

    def _program(self, type: str) -> str:
        for directory in self._directories:
            path = f"{directory}/{type}"
            if os.access(path, os.X_OK):
                return path
        raise NotFound(f"CNI plugin {type!r} is not in {' or '.join(self._directories)}; install it there")

    async def _command(
        self, command: str, network: NetworkList, plugin: Json, attachment: Attachment | None, previous: Json | None
    ) -> Json | None:
        given: Json = {**plugin, "name": network.name, "cniVersion": network.version}
        environment = {
            "CNI_COMMAND": command,
            "CNI_PATH": ":".join(self._directories),
            "PATH": os.environ.get("PATH", _DEFAULT_PATH),
        }
        if attachment:
            wanted = plugin.get("capabilities") or {}
            runtime = {name: value for name, value in attachment.capabilities.items() if wanted.get(name) is True}
            if runtime:
                given["runtimeConfig"] = runtime
            environment |= {
                "CNI_CONTAINERID": attachment.container_id,
                "CNI_NETNS": attachment.netns,
                "CNI_IFNAME": attachment.if_name,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
            }
        if previous is not None:
            given["prevResult"] = previous
        subject = f"CNI plugin {plugin['type']} {command}"
        status, stdout, stderr = await self._run(
            self._program(plugin["type"]), environment, msgspec.json.encode(given), subject
        )
        if status == 0:
            return _decode(stdout, subject) if stdout.strip() else None
        raise _failure(stdout, stderr, status, subject)

    async def _run(
        self, program: str, environment: Mapping[str, str], stdin: bytes, subject: str
    ) -> tuple[int, bytes, bytes]:
        # Files, not pipes: a plugin may leave a process behind that keeps a pipe open.
        with ExitStack() as held:
            given, out, err = (held.enter_context(os.fdopen(os.memfd_create("cni"), "w+b")) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    program, stdin=given, stdout=out, stderr=err, cwd="/", env=environment, process_group=0
                )
            except OSError as exc:
                raise from_os_error(exc, subject) from exc
            try:
                async with asyncio.timeout(self._limit_s):
                    status = await process.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"{subject}: not done within {self._limit_s:g} s, killed") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            return status, os.pread(out.fileno(), _LARGEST, 0), os.pread(err.fileno(), _LARGEST, 0)


async def _all(commands: Iterable[Coroutine[Any, Any, Json | None]]) -> None:
    """Await each, whatever the others answer. Raises the first failure."""
    failures: list[RuntimedError] = []
    for command in commands:
        try:
            await command
        except RuntimedError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]


def addresses(result: Json) -> list[str]:
    """Return the IP addresses of the pod's own interface in a result of ADD, those of the first family first.

    Raises Internal: there is none.
    """
    interfaces = result.get("interfaces") or []
    found = []
    for ip in result.get("ips") or []:
        index = ip.get("interface") if isinstance(ip, dict) else None
        inside = True
        if isinstance(index, int) and 0 <= index < len(interfaces) and isinstance(interfaces[index], dict):
            inside = bool(interfaces[index].get("sandbox")) and interfaces[index].get("name", IF_NAME) == IF_NAME
        if inside and isinstance(ip, dict) and isinstance(ip.get("address"), str):
            found.append(ip["address"].partition("/")[0])
    if not found:
        raise Internal(f"CNI: the pod got no address on {IF_NAME}")
    return list(dict.fromkeys(found))


def _failure(stdout: bytes, stderr: bytes, status: int, subject: str) -> Exception:
    """Return what a plugin's error says (CNI spec, "Error")."""
    try:
        answer = msgspec.json.decode(stdout, type=dict[str, Any])
        code, message, details = answer.get("code"), str(answer.get("msg", "")), str(answer.get("details", ""))
    except (msgspec.DecodeError, UnicodeDecodeError):
        code, details = None, ""
        message = stderr.decode(errors="replace").strip()[-500:] or stdout.decode(errors="replace").strip()[-500:]
    text = f"{subject}: {message or f'exit status {status}'}" + (f": {details}" if details else "")
    # 11: try again later; 50, 51: the plugin cannot serve now (CNI spec, "Error codes").
    return (Unavailable if code in (11, 50, 51) else Internal)(text[:2000])


def _decode(data: bytes, subject: str) -> Json:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"{subject}: {exc}") from None
