"""What shims and daemons say to each other besides the Task API."""

from pathlib import Path

import pytest

from runtimed.api import bootstrap_pb2, runc_options_pb2, types_pb2
from runtimed.api import task_v3_pb2 as pb
from runtimed.config import Runtime
from runtimed.errors import Internal, InvalidArgument
from runtimed.metadata.containers import Opaque
from runtimed.tasks import client
from runtimed.tasks.client import Endpoint


@pytest.mark.parametrize(
    ("stdout", "endpoint"),
    [
        (b"unix:///run/s/1", Endpoint(path=Path("/run/s/1"), version=2)),
        (b"/run/s/1\n", Endpoint(path=Path("/run/s/1"), version=2)),
        (
            b'{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}',
            Endpoint(path=Path("/run/s/1"), version=3),
        ),
        (
            bootstrap_pb2.BootstrapResult(version=2, address="unix:///s", protocol="ttrpc").SerializeToString(),
            Endpoint(path=Path("/s"), version=2),
        ),
    ],
)
def test_a_shim_says_in_three_ways_where_it_serves(stdout, endpoint):
    assert client.parse_started(stdout) == endpoint


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        b"panic: what now",
        b"{",
        b"[]",
        b'{"version":3}',
        b'{"version":"3","address":"unix:///s","protocol":"ttrpc"}',
        b'{"version":3,"address":7}',
        b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}',
        b'{"version":3,"address":"unix:///s","protocol":"grpc"}',
        b'{"version":3,"address":"vsock://1","protocol":"ttrpc"}',
        b"\xff\xff",
    ],
)
def test_anything_else_is_the_shims_mistake(stdout):
    with pytest.raises(Internal, match="shim"):
        client.parse_started(stdout)


def test_the_configuration_fills_in_what_the_client_leaves_open():
    runtime = Runtime(binary="crun", systemd_cgroup=True)
    filled = client.runc_options(Opaque("", b""), runtime, Path("/state/runc"))
    options = runc_options_pb2.Options.FromString(filled.value)
    assert filled.type_url == "containerd.runc.v1.Options"
    assert (options.binary_name, options.root, options.systemd_cgroup) == ("crun", "/state/runc", True)


def test_what_the_client_says_stands():
    given = runc_options_pb2.Options(binary_name="/x/runc", root="/x/root", io_uid=7)
    value = Opaque("type.googleapis.com/containerd.runc.v1.Options", given.SerializeToString())
    filled = client.runc_options(value, Runtime(binary="crun", root="/other"), Path("/state/runc"))
    assert runc_options_pb2.Options.FromString(filled.value) == given


def test_options_of_another_kind_go_on_as_they_are():
    value = Opaque("runtimeoptions.v1.Options", b"\x01")
    assert client.runc_options(value, Runtime(), Path("/r")) is value


def test_options_that_are_none_are_refused():
    with pytest.raises(InvalidArgument):
        client.runc_options(Opaque("containerd.runc.v1.Options", b"\xff"), Runtime(), Path("/r"))


@pytest.mark.parametrize("stdout", [b"", b"\xff"])
def test_a_container_whose_end_nobody_saw_was_killed_just_now(stdout):
    exit = client.parse_deleted(stdout)
    assert (exit.pid, exit.status) == (0, 137)
    assert exit.exited_at > 0


def test_a_container_whose_end_the_shim_knows_ended_so():
    response = pb.DeleteResponse(pid=7, exit_status=3)
    response.exited_at.FromSeconds(5)
    assert client.parse_deleted(response.SerializeToString()) == client.Exit(pid=7, status=3, exited_at=5 * 10**9)


@pytest.mark.parametrize(
    ("version", "numbers"), [("v2.4.0-beta.0", (2, 4)), ("2.3.1", (2, 3)), ("", (0, 0)), ("unknown", (0, 0))]
)
def test_a_shims_version_is_read_from_what_it_says(version, numbers):
    info = types_pb2.RuntimeInfo()
    info.version.version = version
    assert client.parse_info(info.SerializeToString()) == numbers
