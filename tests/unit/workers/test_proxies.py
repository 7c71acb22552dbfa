import pytest

from runtimed.errors import InvalidArgument
from runtimed.workers.proxies import proxy_for


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "is_direct"),
    [
        ("", "r.example", 443, False),
        ("*", "r.example", 443, True),
        ("r.example", "r.example", 443, True),
        ("example", "r.example", 443, True),
        ("example", "rexample", 443, False),
        (".example", "r.example", 443, True),
        (".r.example", "r.example", 443, False),
        ("*.example", "a.r.example", 443, True),
        ("r.example:5000", "r.example", 5000, True),
        ("r.example:5000", "r.example", 443, False),
        ("a, R.EXAMPLE ,b", "r.example.", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("10.1.2.3:5000", "10.1.2.3", 5000, True),
        ("10.1.2.3:5000", "10.1.2.3", 443, False),
        ("2001:db8::1", "2001:db8:0::1", 443, True),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000, True),
        ("[2001:db8::1]:5000", "2001:db8::1", 443, False),
        ("", "localhost", 443, True),
        ("", "127.0.0.9", 443, True),
        ("", "::1", 443, True),
        ("nonsense/8,/", "10.1.2.3", 443, False),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(exceptions, host, port, is_direct):
    environ = {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": exceptions}
    assert (proxy_for("https", host, port, environ) is None) is is_direct


def test_each_scheme_has_its_proxy_and_upper_case_wins():
    environ = {
        "http_proxy": "one.example:8080",
        "HTTP_PROXY": "",
        "https_proxy": "http://two.example",
        "HTTPS_PROXY": "http://three",
    }
    assert str(proxy_for("http", "r.example", 80, environ)) == "http://one.example:8080"
    assert str(proxy_for("https", "r.example", 443, environ)) == "http://three:80"
    assert proxy_for("https", "r.example", 443, {"HTTP_PROXY": "x"}) is None


def test_what_the_proxy_is_told_is_not_shown():
    proxy = proxy_for("http", "r.example", 80, {"HTTP_PROXY": "http://me:p%40ss@proxy.example:3128"})
    assert proxy is not None
    assert proxy.authorization == "Basic bWU6cEBzcw=="
    assert str(proxy) == "http://proxy.example:3128"
    assert "bWU6" not in repr(proxy)


@pytest.mark.parametrize(
    "value",
    ["socks5://p.example:1080", "https://u:hush@p.example", "http://", "http://u:hush@p:99999999/", "http://[x"],
)
def test_a_proxy_that_cannot_be_spoken_to_is_an_error_that_names_the_variable(value):
    with pytest.raises(InvalidArgument, match="HTTPS_PROXY") as caught:
        proxy_for("https", "r.example", 443, {"HTTPS_PROXY": value})
    assert "hush" not in str(caught.value)
