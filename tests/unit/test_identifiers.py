import pytest

from runtimed import identifiers
from runtimed.errors import InvalidArgument


@pytest.mark.parametrize("value", ["a", "A-b_c.d", "0" * 64, "x" * 76, "moby_history", "plugins.moby"])
def test_identifiers_that_clients_use(value):
    assert identifiers.validate(value) == value


@pytest.mark.parametrize(
    "value", ["", ".", "..", "../x", "a/b", "a..b", "-a", "a-", "a b", "a\n", "a\x00", "ä", "x" * 77, "a:b"]
)
def test_what_could_be_a_path_or_worse_is_no_identifier(value):
    with pytest.raises(InvalidArgument):
        identifiers.validate(value)


@pytest.mark.parametrize(
    "value",
    ["docker.io/library/busybox:latest", "moby/prune.images", "extract-1-x sha256:ab", "moby-dangling@sha256:x"],
)
def test_names_that_clients_use(value):
    assert identifiers.validate_name(value, "image name") == value


@pytest.mark.parametrize("value", ["", "a\nb", "\x1b[31m", "a\x00", "\x9b", "x" * 4097])
def test_a_name_that_would_reach_a_terminal_as_an_order_is_refused(value):
    with pytest.raises(InvalidArgument, match="image name"):
        identifiers.validate_name(value, "image name")
