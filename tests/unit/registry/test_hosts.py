import pytest
from yarl import URL

from runtimed.errors import InvalidArgument, PermissionDenied
from runtimed.registry import hosts


@pytest.mark.parametrize(
    ("host", "scheme", "base"),
    [
        ("docker.io", "", "https://registry-1.docker.io/v2/x"),
        ("quay.io", "", "https://quay.io/v2/x"),
        ("localhost:5000", "", "http://localhost:5000/v2/x"),
        ("127.1.2.3:5000", "", "http://127.1.2.3:5000/v2/x"),
        ("[::1]:5000", "", "http://[::1]:5000/v2/x"),
        ("localhost:443", "", "https://localhost/v2/x"),
        ("localhost", "", "http://localhost/v2/x"),
        ("localhost.example.com", "", "https://localhost.example.com/v2/x"),
        ("192.168.0.1:5000", "", "https://192.168.0.1:5000/v2/x"),
        ("192.168.0.1:5000", "http", "http://192.168.0.1:5000/v2/x"),
        ("localhost:5000", "https", "https://localhost:5000/v2/x"),
    ],
)
def test_plain_http_is_for_loopback_and_on_demand(host, scheme, base):
    assert str(hosts.endpoint(host, scheme).base / "x") == base


@pytest.mark.parametrize("host", ["quay.io", "quay.io:5000", "localhost:443", "[::1]:5000"])
def test_who_asks_for_credentials_is_called_as_in_references(host):
    assert hosts.endpoint(host).authority == host.removesuffix(":443")


def test_other_schemes_are_refused():
    with pytest.raises(InvalidArgument, match="must be http or https"):
        hosts.endpoint("localhost", "file")


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ("https://r.example/v2/x", "https://cdn.example/x?sig=a"),
        ("https://r.example/v2/x", "https://10.0.0.5/x"),
        ("http://r.example/v2/x", "https://cdn.example/x"),
        ("http://127.0.0.1:5000/v2/x", "http://127.0.0.1:6000/x"),
        ("http://localhost:5000/v2/x", "http://127.0.0.1:6000/x"),
    ],
)
def test_an_honest_redirect_is_followed(origin, target):
    hosts.check_redirect(URL(origin), URL(target))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://r.example/x", "from https to plain http"),
        ("http://cdn.example/x", "from https to plain http"),
        ("ftp://cdn.example/x", "not an http address"),
        ("file:///etc/shadow", "not an http address"),
        ("https://me:secret@cdn.example/x", "credentials of its own"),
        ("https://127.0.0.1/x", "this machine or link"),
        ("https://localhost:8080/x", "this machine or link"),
        ("https://169.254.169.254/latest/meta-data", "this machine or link"),
        ("https://[fe80::1]/x", "this machine or link"),
        ("https://[::ffff:127.0.0.1]/x", "this machine or link"),
        ("https://0.0.0.0/x", "this machine or link"),
    ],
)
def test_a_redirect_that_no_honest_registry_sends_is_refused(target, why):
    with pytest.raises(PermissionDenied, match=why) as caught:
        hosts.check_redirect(URL("https://r.example/v2/x"), URL(target))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry-1.docker.io/v2/", "https://auth.docker.io/token"),
        ("https://r.example/v2/", "https://r.example:8443/token"),
        ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/token"),
        ("http://r.example:5000/v2/", "http://r.example:5001/token"),
        ("http://127.0.0.1:5000/v2/", "https://auth.example/token"),
    ],
)
def test_a_token_server_by_https_or_on_the_own_host_is_asked(registry, realm):
    hosts.check_realm(URL(registry), URL(realm))


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://r.example/v2/", "http://r.example/token"),
        ("https://r.example/v2/", "http://auth.example/token"),
        ("https://r.example/v2/", ""),
        ("https://r.example/v2/", "/token"),
        ("https://r.example/v2/", "https://127.0.0.1/token"),
        ("https://r.example/v2/", "https://169.254.169.254/token"),
        ("https://r.example/v2/", "https://a:b@auth.example/token"),
        ("http://r.example/v2/", "http://evil.example/token"),
        ("http://127.0.0.1:5000/v2/", "http://localhost.evil.example/token"),
    ],
)
def test_a_token_server_that_must_not_see_credentials_is_not_asked(registry, realm):
    with pytest.raises(PermissionDenied):
        hosts.check_realm(URL(registry), URL(realm))
