import pytest

from runtimed.errors import InvalidArgument
from runtimed.oci import digest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("value", [f"sha256:{HEX}", f"sha512:{HEX * 2}"])
def test_what_a_digest_may_be(value):
    assert digest.validate(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        HEX,
        f":{HEX}",
        f"md5:{HEX[:32]}",  # weaker ones would be a way to other bytes under the same name
        f"sha1:{HEX[:40]}",
        f"sha256:{HEX[:40]}",
        f"sha512:{HEX}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX}\n",
        f"sha256:{'٠' * 64}",  # digits, to some regular expressions
        f"sha256:../../../../{HEX[:52]}",
        f"../sha256:{HEX}",
        f"sha256/..:{HEX}",
        f"sha256:{HEX[:-1]}/",
        f"sha256:{HEX[:-1]}\0",
        f"sha256:{HEX}@sha256:{HEX}",
        f"SHA256:{HEX}",
        f"sha256+b64:{HEX}",
    ],
)
def test_what_else_is_refused_and_what_is_said_of_it_is_short(value):
    with pytest.raises(InvalidArgument, match="not of the form sha256:<64 hex digits>") as caught:
        digest.validate(value)
    assert len(str(caught.value)) < 300


def test_bytes_are_hashed_by_no_other_algorithm():
    with pytest.raises(InvalidArgument, match="'md5' is not one of sha256"):
        digest.compute(b"", "md5")
