"""The list of plugins, as clients read it."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from runtimed.api import introspection_pb2 as pb
from runtimed.deprecations import MESSAGES, Deprecations
from runtimed.errors import NotFound, Unavailable
from runtimed.services.introspection import IntrospectionService, plugins
from runtimed.snapshots.loader import Loaded

NO_CONTEXT: Any = None
OVERLAY: Any = SimpleNamespace(capabilities=("rebase",))


@pytest.fixture
def service() -> IntrospectionService:
    loaded = [Loaded("overlayfs", OVERLAY), Loaded("zfs", None, "zfs: no such file system")]
    names = ["containerd.services.tasks.v1.Tasks", "containerd.services.leases.v1.Leases", "grpc.health.v1.Health"]
    launcher: Any = None
    versions = {"runc": "runc version 1.3.5", "/opt/crun": "crun version 1.8", "youki": ""}
    deprecations = Deprecations()
    deprecations.container("io.containerd.runc.v1", {"containerd.io/restart.logpath": "/x"})
    deprecations.container("io.containerd.runc.v2", {})
    return IntrospectionService("some-uuid", plugins(loaded, Path("/root"), names, versions), launcher, deprecations)


async def listed(service: IntrospectionService, *filters: str) -> list[pb.Plugin]:
    return list((await service.Plugins(pb.PluginsRequest(filters=filters), NO_CONTEXT)).plugins)


async def test_a_snapshotter_is_found_with_its_platform_capabilities_and_root(service):
    (plugin,) = await listed(service, "type==io.containerd.snapshotter.v1, id==overlayfs")
    assert [platform.os for platform in plugin.platforms] == ["linux"]
    assert list(plugin.capabilities) == ["rebase"]
    assert dict(plugin.exports) == {"root": "/root/snapshotters/overlayfs"}
    assert not plugin.HasField("init_err")


async def test_the_runtime_says_which_oci_runtimes_it_has_and_what_is_known_against_them(service):
    (plugin,) = await listed(service, "type==io.containerd.runtime.v2")
    assert dict(plugin.exports) == {
        "root": "/root",
        "oci-runtime.runc": "runc version 1.3.5",
        "advisories.runc": (
            "may be open: CVE-2026-41579; your distribution may have fixed it without changing the version"
        ),
        "oci-runtime./opt/crun": "crun version 1.8",
        "oci-runtime.youki": "does not tell its version",
    }


async def test_a_snapshotter_that_cannot_be_used_says_why_in_words_that_clients_skip(service):
    (plugin,) = await listed(service, 'type=="io.containerd.snapshotter.v1",id==zfs')
    assert plugin.init_err.message == "zfs: no such file system: skip plugin"
    with pytest.raises(Unavailable, match="no such file system"):
        await service.PluginInfo(pb.PluginInfoRequest(type=plugin.type, id=plugin.id), NO_CONTEXT)


async def test_there_is_a_runtime_with_a_platform_because_buildkit_gives_up_without(service):
    (plugin,) = await listed(service, "type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2")
    assert (plugin.id, len(plugin.platforms)) == ("task", 1)


async def test_each_service_is_listed_as_what_serves_and_what_is_served(service):
    found = {(plugin.type, plugin.id) for plugin in await listed(service)}
    assert {
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.service.v1", "tasks-service"),
        ("io.containerd.grpc.v1", "healthcheck"),
        ("io.containerd.content.v1", "content"),
    } <= found


async def test_an_unknown_plugin_is_not_found(service):
    with pytest.raises(NotFound):
        await service.PluginInfo(pb.PluginInfoRequest(type="io.containerd.content.v1", id="none"), NO_CONTEXT)


async def test_the_server_says_who_it_is(service):
    answer = await service.Server(Empty(), NO_CONTEXT)
    assert (answer.uuid, answer.pid) == ("some-uuid", os.getpid())
    assert f"pid:[{answer.pidns}]" == os.readlink("/proc/self/ns/pid")  # noqa: PTH115  a name, not a path


async def test_the_server_says_what_was_used_that_will_not_be_there_for_long(service):
    seen = (await service.Server(Empty(), NO_CONTEXT)).deprecations
    assert [one.id for one in seen] == [
        "io.containerd.deprecation/restart-logpath",
        "io.containerd.deprecation/runtime-runc-v1",
    ]
    for one in seen:
        assert one.message == MESSAGES[one.id]
        assert one.last_occurrence.seconds > 0
