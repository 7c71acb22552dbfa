import ssl

import pytest

from runtimed.errors import InvalidArgument, NotFound
from runtimed.workers.tls import Tls, context
from tests.fakes.registry import make_certificate


def test_the_same_files_are_read_once_and_others_in_their_place_at_once(tmp_path):
    ca = make_certificate(tmp_path, "ca")
    tls = Tls(authorities=(str(ca),))
    first = context(tls)
    assert context(tls) is first
    make_certificate(tmp_path, "other").replace(ca)
    assert context(tls) is not first


def test_the_systems_authorities_are_those_of_now(tmp_path, monkeypatch):
    first = context(Tls())
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(tmp_path)))
    assert context(Tls()) is not first


def test_who_is_not_verified_is_not_mixed_up_with_who_is():
    assert context(Tls(skip_verify=True)).verify_mode == ssl.CERT_NONE
    assert context(Tls()).verify_mode == ssl.CERT_REQUIRED
    assert context(Tls()).check_hostname


@pytest.mark.parametrize("as_authority", [True, False])
def test_files_that_are_no_certificates_are_named_each_time(tmp_path, as_authority):
    path = tmp_path / "x.pem"
    tls = Tls(authorities=(str(path),)) if as_authority else Tls(identities=((str(path), ""),))
    with pytest.raises(NotFound, match=r"x\.pem"):
        context(tls)
    path.write_text("x")
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"x\.pem"):
            context(tls)
    make_certificate(tmp_path).replace(path)
    assert context(tls)
