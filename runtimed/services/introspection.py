"""The Introspection service: who serves, and with which plugins.

Types and IDs are containerd's, because clients ask for them by name: for a snapshotter's entry before each unpack, for
a runtime's platforms when they start.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from runtimed import filters
from runtimed.api import introspection_pb2 as pb
from runtimed.api import runc_options_pb2, types_pb2
from runtimed.deprecations import Deprecations
from runtimed.errors import InvalidArgument, NotFound, Unavailable
from runtimed.oci import platform
from runtimed.services.context import Context, timestamp
from runtimed.services.version import VERSION
from runtimed.snapshots.loader import Loaded
from runtimed.tasks import advisories
from runtimed.tasks.launch import Launcher

RUNTIME_TYPE = "io.containerd.runtime.v2"
_SNAPSHOTTER_TYPE = "io.containerd.snapshotter.v1"
_FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

# What there is besides snapshotters and services: type and ID.
_PARTS = (
    ("io.containerd.content.v1", "content"),
    ("io.containerd.metadata.v1", "sqlite"),
    ("io.containerd.event.v1", "exchange"),
    ("io.containerd.gc.v1", "scheduler"),
    ("io.containerd.lease.v1", "manager"),
    ("io.containerd.differ.v1", "walking"),
    ("io.containerd.internal.v1", "restart"),
    ("io.containerd.sandbox.store.v1", "local"),
    ("io.containerd.sandbox.controller.v1", "pause"),
    ("io.containerd.sandbox.controller.v1", "shim"),
    ("io.containerd.mount-manager.v1", "manager"),
    ("io.containerd.mount-handler.v1", "erofs"),
    ("io.containerd.mount-handler.v1", "loopback"),
    (RUNTIME_TYPE, "task"),
)
# These depend on what the machine runs, so they say for which platform they are.
_WITH_PLATFORM = {_SNAPSHOTTER_TYPE, "io.containerd.differ.v1", RUNTIME_TYPE}

# The last part of a service's package, where the plugin behind it is called something else.
_PLUGIN_IDS = {"grpc.health": "healthcheck"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An entry of the list. `error` is why it cannot be used; it is there and is asked about all the same."""

    type: str
    id: str
    capabilities: Sequence[str] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


class IntrospectionService:
    """Answers from what was found at the start; needs no namespace."""

    def __init__(self, uuid: str, plugins: Sequence[Plugin], launcher: Launcher, deprecations: Deprecations) -> None:
        self._uuid = uuid
        self._pidns = Path("/proc/self/ns/pid").stat().st_ino
        self._plugins = plugins
        self._launcher = launcher
        self._deprecations = deprecations

    async def Plugins(self, request: pb.PluginsRequest, context: Context) -> pb.PluginsResponse:
        wanted = filters.parse(request.filters).select(self._plugins, _field)
        return pb.PluginsResponse(plugins=map(_message, wanted))

    async def Server(self, request: Empty, context: Context) -> pb.ServerResponse:
        response = pb.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=self._pidns)
        for seen in self._deprecations.seen():
            response.deprecations.add(id=seen.id, message=seen.message, last_occurrence=timestamp(seen.last_at))
        return response

    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Context) -> pb.PluginInfoResponse:
        """Describe a plugin; of the runtime, also what the OCI runtime named in the options can do."""
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (request.type, request.id):
                break
        else:
            raise NotFound(f"plugin {request.type}.{request.id}")
        if plugin.error:
            raise Unavailable(f"plugin {request.type}.{request.id}: {plugin.error}")
        response = pb.PluginInfoResponse(plugin=_message(plugin))
        if request.type == RUNTIME_TYPE and request.options.type_url:
            info = await self._runtime_info(request.options)
            response.extra.type_url = info.DESCRIPTOR.full_name
            response.extra.value = info.SerializeToString()
        return response

    async def _runtime_info(self, options: AnyMessage) -> types_pb2.RuntimeInfo:
        try:
            request = types_pb2.RuntimeRequest.FromString(options.value)
            binary = runc_options_pb2.Options.FromString(request.options.value).binary_name
        except DecodeError:
            raise InvalidArgument("plugin info: options are not a RuntimeRequest with options of runc") from None
        info = types_pb2.RuntimeInfo(name=request.runtime_path)
        info.version.version = VERSION
        info.features.type_url = _FEATURES_URL
        info.features.value = await self._launcher.features(request.runtime_path, binary)
        return info


def plugins(
    snapshotters: Iterable[Loaded], root: Path, services: Iterable[str], oci_runtimes: Mapping[str, str]
) -> list[Plugin]:
    """List what there is: the snapshotters, the parts of the daemon, the gRPC *services* by their full names.

    Those that keep files export their directory below the daemon's *root* as ``root``; that of the runtime is the root
    itself, where clients on the same machine may keep logs; it also exports the versions of the *oci_runtimes*, by
    binary, and what is known against them.
    """
    found = [
        Plugin(
            type=_SNAPSHOTTER_TYPE,
            id=loaded.name,
            capabilities=loaded.snapshotter.capabilities if loaded.snapshotter else (),
            exports={"root": str(root / "snapshotters" / loaded.name)},
            error=loaded.error,
        )
        for loaded in snapshotters
    ]
    exports = {"content": {"root": str(root / "content")}, "task": {"root": str(root), **_versions(oci_runtimes)}}
    found += [Plugin(type=type, id=id, exports=exports.get(id, {})) for type, id in _PARTS]
    for id in _service_ids(services):
        found.append(Plugin(type="io.containerd.service.v1", id=f"{id}-service"))
        found.append(Plugin(type="io.containerd.grpc.v1", id=id))
    return sorted(found, key=lambda plugin: (plugin.type, plugin.id))


def _versions(oci_runtimes: Mapping[str, str]) -> dict[str, str]:
    exports = {}
    for binary, version in oci_runtimes.items():
        exports[f"oci-runtime.{binary}"] = version or "does not tell its version"
        if warning := advisories.warning(version):
            exports[f"advisories.{binary}"] = warning
    return exports


def _service_ids(services: Iterable[str]) -> Iterator[str]:
    """Return ``tasks`` for ``containerd.services.tasks.v1.Tasks``."""
    for name in services:
        package = name.split(".")[:-2]
        yield _PLUGIN_IDS.get(".".join(package[-2:]), package[-1])


def _message(plugin: Plugin) -> pb.Plugin:
    message = pb.Plugin(type=plugin.type, id=plugin.id, capabilities=plugin.capabilities, exports=plugin.exports)
    if plugin.type in _WITH_PLATFORM:
        host = platform.host()
        message.platforms.add(os=host.os, architecture=host.architecture, variant=host.variant)
    if plugin.error:
        message.init_err.code = Unavailable.code
        # Clients take any other error for a daemon that is broken.
        skip = "" if "skip plugin" in plugin.error else ": skip plugin"
        message.init_err.message = f"{plugin.error}{skip}"
    return message


def _field(plugin: Plugin, path: Sequence[str]) -> str | None:
    match path:
        case ["type"]:
            return plugin.type
        case ["id"]:
            return plugin.id
    return None
