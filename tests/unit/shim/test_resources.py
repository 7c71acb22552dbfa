"""The resources of an update."""

import pytest

from runtimed.errors import InvalidArgument
from shim import messages as pb
from shim import resources

KIND = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def test_the_json_is_passed_on_as_it_is():
    given = b'{"memory": {"limit": 1},  "later": 2}'
    assert resources.from_any(pb.Any(type_url=KIND, value=given)) == given


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "type ''"),
        (pb.Any(), "type ''"),
        (pb.Any(type_url=KIND.replace("Linux", "Windows"), value=b"{}"), "WindowsResources.*a task takes .*/Linux"),
        (pb.Any(type_url=KIND), "no JSON"),
        (pb.Any(type_url=KIND, value=b"{"), "no JSON"),
        (pb.Any(type_url=KIND, value=b"\xff"), "no JSON"),
        (pb.Any(type_url=KIND, value=b"[]"), "not an object"),
        (pb.Any(type_url=KIND, value=b"null"), "not an object"),
    ],
)
def test_what_is_none_is_refused_and_named(value, message):
    with pytest.raises(InvalidArgument, match=message):
        resources.from_any(value)
