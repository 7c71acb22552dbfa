"""What the command line and standard input of the shim's program mean."""

import json

import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import bootstrap_pb2
from runtimed.errors import InvalidArgument
from shim import main


def test_flags_are_taken_as_go_programs_take_them():
    arguments = main._Arguments.parse(["-namespace", "ns", "--id=c1", "-debug", "-address", "", "start"])
    assert arguments.flags == {"namespace": "ns", "id": "c1", "debug": "true", "address": ""}
    assert arguments.action == "start"
    assert arguments.has("debug")
    assert not main._Arguments.parse(["-debug=false"]).has("debug")


def params(**changes):
    fields = {"instance_id": "c1", "namespace": "ns"} | changes
    return bootstrap_pb2.BootstrapParams(**fields).SerializeToString()


def test_parameters_are_told_from_options():
    assert main._bootstrap_params(params(), "ns", "c1") is not None
    assert main._bootstrap_params(b"", "ns", "c1") is None
    options = Any(type_url="containerd.runc.v1.Options", value=b"\x32\x04crun").SerializeToString()
    assert main._bootstrap_params(options, "ns", "c1") is None
    assert main._bootstrap_params(b"\xff\xff", "ns", "c1") is None


def test_parameters_of_another_namespace_are_refused():
    with pytest.raises(InvalidArgument, match="namespace 'other' of the parameters is not 'ns'"):
        main._bootstrap_params(params(namespace="other"), "ns", "c1")


@pytest.mark.parametrize(("limit", "version"), [("2", 2), ("3", 3), ("9", 3)])
def test_the_version_is_the_daemons_at_most(monkeypatch, limit, version):
    monkeypatch.setenv("MAX_SHIM_VERSION", limit)
    assert json.loads(main._address("unix:///s", is_bootstrap=False))["version"] == version


@pytest.mark.parametrize("limit", ["", "1", "x", "²"])
def test_a_daemon_that_knows_no_versions_gets_the_address(monkeypatch, limit):
    monkeypatch.setenv("MAX_SHIM_VERSION", limit)
    assert main._address("unix:///s", is_bootstrap=False) == b"unix:///s"


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        ({}, ""),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "pod"}, "g"),
        (None, ""),
        ([], ""),
    ],
)
def test_the_group_is_an_annotation(tmp_path, annotations, group):
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert main._group(tmp_path / "config.json") == group


@pytest.mark.parametrize("config", [b"", b"[]", b"\xff", b'{"annotations": 5}'])
def test_a_config_that_is_none_has_no_group(tmp_path, config):
    (tmp_path / "config.json").write_bytes(config)
    assert main._group(tmp_path / "config.json") == ""


def test_a_socket_is_short_whatever_the_names():
    one = main._socket_path("/run/s", "/a.sock", "n" * 76, "g" * 76)
    assert len(one) <= 106
    assert one != main._socket_path("/run/s", "/a.sock", "n" * 76, "h" * 76)
