import time

import pytest

from runtimed.registry.auth import Challenge, Credentials, parse_challenges


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (
            ['Bearer realm="https://a.example/t",service="s",scope="repository:x:pull,push"'],
            [Challenge("bearer", {"realm": "https://a.example/t", "service": "s", "scope": "repository:x:pull,push"})],
        ),
        (['Basic realm="a b"'], [Challenge("basic", {"realm": "a b"})]),
        (
            ['Basic realm="x", Bearer realm="y", service=z'],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y", "service": "z"})],
        ),
        (
            ['Bearer realm="y"', "Basic"],
            [Challenge("bearer", {"realm": "y"}), Challenge("basic", {})],
        ),
        (['BASIC Realm = "q\\"uote, d"'], [Challenge("basic", {"realm": 'q"uote, d'})]),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", {"realm": "first"})]),
        ([""], []),
        (['realm="nobody"'], []),
        ([], []),
    ],
)
def test_challenges_are_read_as_the_rfc_writes_them(headers, challenges):
    assert parse_challenges(headers) == challenges


@pytest.mark.parametrize("piece", ['a="', "a=", 'a="\\', " , ", "a ", '"', "=", 'a="x" '])
def test_a_long_challenge_is_read_in_no_time(piece):
    started = time.perf_counter()
    parse_challenges(["Bearer " + piece * 100_000])
    assert time.perf_counter() - started < 0.5


def test_secrets_do_not_show():
    assert "hush" not in repr(Credentials(username="me", secret="hush", header="hush"))
