import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimed.errors import InvalidArgument
from runtimed.oci.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:tag", "localhost:5000/x:tag"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[2001:db8::1]/a/b:c", "[2001:db8::1]/a/b:c"),
        ("10.0.0.1:80/x", "10.0.0.1:80/x:latest"),
        ("gcr.io/a/b/c:v1", "gcr.io/a/b/c:v1"),
        ("Host/x", "Host/x:latest"),
        ("a__b/c.d-e--f_g", "docker.io/a__b/c.d-e--f_g:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"quay.io/a/b:t@{DIGEST}", f"quay.io/a/b:t@{DIGEST}"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        (f"{'a' * 32}", f"docker.io/library/{'a' * 32}:latest"),
    ],
)
def test_a_reference_is_completed_as_docker_does(text, full):
    assert str(parse(text)) == full
    assert parse(full) == parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("https://docker.io/x", "leave out the 'https://'"),
        ("Busybox", "must be in lower case"),
        ("a//b", "a part of the repository is empty"),
        ("/a", "a part of the repository is empty"),
        ("a/", "a part of the repository is empty"),
        ("gcr.io/", "a part of the repository is empty"),
        ("a..b/c", "is not a host name"),
        ("-a.b/c", "is not a host name"),
        ("a/b..c", "letters and digits"),
        ("a/b___c", "letters and digits"),
        ("a/../../etc", "is not a host name|letters and digits"),
        ("../etc", "is not a host name"),
        ("x:", "tag ''"),
        ("x:.t", "tag '.t'"),
        ("x:" + "t" * 129, "1 to 128"),
        ("x:a:b", "tag 'a:b'"),
        ("host:0/x", "not a port"),
        ("host:99999/x", "not a port"),
        ("host:5x/x", "not a port"),
        ("host:/x", "not a port"),
        ("[::1/x", "IPv6"),
        ("[zz]:5/x", "IPv6"),
        ("[::1]5/x", "IPv6"),
        ("[fe80::1%eth0]/x", "zone"),
        ("x@sha256:abc", "not of the form sha256:"),
        ("x@md5:" + "a" * 32, "not of the form sha256:"),
        (f"x@{DIGEST}@{DIGEST}", "not of the form sha256:"),
        ("x@sha256:../../../../etc/passwd", "not of the form sha256:"),
        ("a" * 64, "image ID"),
        ("a" * 256, "longer than 255"),
        ("a b", "letters and digits"),
        ("x\n", "letters and digits"),
        ("x:t\n", "tag"),
        ("büsybox", "letters and digits"),
        ("x" * 2000, "longer than 1024"),
    ],
)
def test_a_bad_reference_is_quoted_with_what_is_wrong(text, why):
    with pytest.raises(InvalidArgument, match=why) as caught:
        parse(text)
    assert len(str(caught.value)) < 1500
    if text and len(text) < 1000:
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("piece", ["a-", "a_", "a.", "a--", "a/", "a:", "a@", "[", "1.", "A."])
def test_a_long_reference_is_refused_as_fast_as_a_short_one(piece):
    started = time.perf_counter()
    for length in (500, 200_000):
        with pytest.raises(InvalidArgument):
            parse(piece * length + "!")
    assert time.perf_counter() - started < 0.5


@given(st.text(alphabet="ab.:/@-_[]1A%\n", max_size=40))
def test_whatever_parses_prints_to_what_parses_to_the_same(text):
    try:
        reference = parse(text)
    except InvalidArgument:
        return
    assert parse(str(reference)) == reference
