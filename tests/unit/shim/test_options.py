"""Options of a task: from the wire, to the bundle and back."""

import json

import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import runc_options_pb2 as pb
from runtimed.errors import InvalidArgument, NotFound
from shim.options import Options


def wrapped(prefix="", **fields):
    message = pb.Options(**fields)
    return Any(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.mark.parametrize("prefix", ["", "types.containerd.io/"])
def test_options_are_taken_from_the_wire(prefix):
    given = wrapped(prefix, binary_name="crun", root="/r", systemd_cgroup=True, no_pivot_root=True, io_uid=5)
    expected = Options(binary_name="crun", root="/r", systemd_cgroup=True, no_pivot_root=True, io_uid=5)
    assert Options.from_any(given, "/default") == expected


@pytest.mark.parametrize("value", [Any(), wrapped(), Any(type_url="runtimeoptions.v1.Options", value=b"\x0a\x01x")])
def test_none_are_the_defaults(value):
    assert Options.from_any(value, "/default") == Options(root="/default")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Any(type_url="runc.linux.Other"), "options of type 'runc.linux.Other'; this runtime takes"),
        (Any(type_url="containerd.runc.v1.Options", value=b"\xff"), "not a message of type"),
    ],
)
def test_others_are_refused(value, message):
    with pytest.raises(InvalidArgument, match=message):
        Options.from_any(value, "/default")


def test_they_come_back_from_the_bundle(tmp_path):
    options = Options(binary_name="crun", root="/r", io_gid=7, no_new_keyring=True)
    options.write(tmp_path)
    assert Options.read(tmp_path, "/elsewhere") == options
    assert (tmp_path / "runtime").read_text() == "crun"


@pytest.mark.parametrize("stored", [b"", b"\xff", b"[]", b"{", json.dumps({"root": 5, "other": "x"}).encode()])
def test_what_is_not_usable_in_a_bundle_is_passed_over(tmp_path, stored):
    (tmp_path / "options.json").write_bytes(stored)
    assert Options.read(tmp_path, "/elsewhere") == Options(root="/elsewhere")


def test_a_bundle_that_is_not_there_cannot_be_written_to(tmp_path):
    with pytest.raises(NotFound, match="bundle"):
        Options().write(tmp_path / "none")
