import asyncio
import socket

import pytest

from runtimed.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from runtimed.oci import manifest
from runtimed.oci.reference import parse
from runtimed.registry.auth import Credentials
from runtimed.registry.client import Patience, RegistryClient
from runtimed.registry.resolver import resolve
from runtimed.workers.answers import retry_after_s
from tests.fakes.registry import FakeRegistry, serving
from tests.images.layouts import Layout, digest_of

IMPATIENT = Patience(attempts=3, first_wait_s=0.001, longest_wait_s=0.1)


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image("1", [layout.layer({"a": b"1"})])
    return layout


async def resolved(registry, reference="app:1", **options):
    client = RegistryClient(parse(f"{registry.host}/{reference}"), **{"patience": IMPATIENT, **options})
    async with client:
        return await resolve(client)


def user(name, secret, asked=None):
    async def ask(host, challenges):
        if asked is not None:
            asked.append((host, challenges))
        return Credentials(username=name, secret=secret)

    return ask


async def test_a_tag_resolves_to_what_the_registry_has(layout):
    with serving(layout.root, "app") as registry:
        descriptor, data = await resolved(registry)
    assert descriptor.media_type == manifest.OCI_MANIFEST
    assert (descriptor.digest, descriptor.size) == (digest_of(data), len(data))


async def test_a_digest_decides_over_the_tag_beside_it(layout):
    with serving(layout.root, "app") as registry:
        digest = (await resolved(registry))[0].digest
        assert (await resolved(registry, f"app:other@{digest}"))[0].digest == digest


async def test_a_media_type_that_the_document_does_not_say_is_taken_from_the_header(layout):
    descriptor = layout.manifest([], mediaType="")
    layout.tag("bare", descriptor)
    with serving(layout.root, "app") as registry:
        assert (await resolved(registry, "app:bare"))[0].media_type == manifest.OCI_MANIFEST
        registry.fail("manifests", headers={"Content-Type": "text/plain"})
        assert (await resolved(registry, "app:bare"))[0].media_type == manifest.OCI_MANIFEST


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_a_user_is_let_in(layout, auth):
    asked: list[tuple[str, tuple[str, ...]]] = []
    with serving(layout.root, "app", auth=auth, users={"me": "pass:wörd"}) as registry:
        await resolved(registry, credentials=user("me", "pass:wörd", asked))
        assert asked[0][0] == registry.host
        assert asked[0][1][0].lower().startswith(auth)


async def test_an_anonymous_token_is_fetched_with_service_and_scope(layout):
    with serving(layout.root, "app", auth="bearer") as registry:
        await resolved(registry)
        [token] = registry.requests("/token")
    assert token.path == "/token?scope=repository:x:pull&service=fake"
    assert "Authorization" not in token.headers


async def test_an_identity_token_is_exchanged_by_post(layout):
    with serving(layout.root, "app", auth="bearer", users={"me": "x"}) as registry:
        registry.identity_tokens.add("id-token")
        await resolved(registry, credentials=user("", "id-token"))
        [token] = registry.requests("/token", "POST")
    assert b"grant_type=refresh_token" in token.body


async def test_a_header_given_by_the_client_is_sent_as_it_is(layout):
    async def ask(host, challenges):
        return Credentials(header="Bearer ready-made")

    with serving(layout.root, "app", auth="bearer") as registry:
        registry.tokens.add("ready-made")
        await resolved(registry, credentials=ask)
        assert registry.requests("/token") == []


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_wrong_credentials_are_refused_once(layout, auth):
    with serving(layout.root, "app", auth=auth, users={"me": "right"}) as registry:
        with pytest.raises(Unauthenticated, match="refused the credentials; check user name and password") as caught:
            await resolved(registry, credentials=user("me", "wrong-secret"))
        assert len(registry.requests("manifests")) <= 2
    assert "wrong-secret" not in str(caught.value)


async def test_without_credentials_the_error_asks_for_them(layout):
    with (
        serving(layout.root, "app", auth="basic", users={"me": "x"}) as registry,
        pytest.raises(Unauthenticated, match=f"{registry.host} wants a user name and password; give credentials"),
    ):
        await resolved(registry)


@pytest.mark.parametrize(
    ("challenge", "error", "why"),
    [
        ('Bearer realm="http://evil.example/token"', PermissionDenied, "must be reached by https"),
        ('Bearer service="x"', PermissionDenied, "must be reached by https"),
        ('Digest realm="x"', Unauthenticated, "only offers 'digest'; Bearer and Basic are supported"),
        ("", Unauthenticated, "does not say how"),
    ],
)
async def test_a_challenge_that_must_not_be_answered_is_not(layout, challenge, error, why):
    with serving(layout.root, "app", auth="bearer") as registry:
        registry.challenge = challenge or " "
        with pytest.raises(error, match=why):
            await resolved(registry, credentials=user("me", "hush"))


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        (401, Unauthenticated, "give credentials for this registry|does not say how"),
        (403, PermissionDenied, "access denied"),
        (404, NotFound, "check name and tag"),
        (500, Unavailable, "the registry failed with 500"),
        (429, Unavailable, "too many requests"),
        (418, Unavailable, "unexpected answer 418"),
    ],
)
async def test_each_refusal_names_host_and_reference_and_what_to_do(layout, status, error, why):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", status=status, times=99)
        with pytest.raises(error, match=why) as caught:
            await resolved(registry)
        assert registry.host in str(caught.value)


async def test_what_the_registry_says_is_in_the_error_without_control_characters(layout):
    with serving(layout.root, "app") as registry:
        body = b'{"errors":[{"code":"DENIED","message":"go away \\u001b[31m' + b"x" * 1000 + b'"}]}'
        registry.fail("manifests", status=403, body=body)
        with pytest.raises(PermissionDenied, match="go away") as caught:
            await resolved(registry)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


async def test_a_registry_that_fails_for_a_moment_is_asked_again(layout):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", status=503, times=2)
        await resolved(registry)
        assert len(registry.requests("manifests")) == 3


async def test_retry_after_is_obeyed_up_to_a_limit(layout):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", status=429, headers={"Retry-After": "0"})
        await resolved(registry)
        registry.fail("manifests", status=429, headers={"Retry-After": "3600"})
        with pytest.raises(Unavailable, match="too many requests"):
            await resolved(registry)
        assert len(registry.requests("manifests")) == 3


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5), ("", None), ("-1", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("9" * 60, 999999999)],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after_s(header) == seconds


async def test_a_cut_answer_is_asked_for_again(layout):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", cut_at=10)
        await resolved(registry)
        assert len(registry.requests("manifests")) == 2


async def test_a_registry_that_is_not_there_is_reported_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        client = RegistryClient(parse(f"{host}/app"), patience=Patience(first_wait_s=60))
        async with client:
            with pytest.raises(Unavailable, match=f"{host}.*cannot connect: .*refused.*is it running there"):
                await resolve(client)


async def test_https_to_a_registry_that_speaks_http_is_unavailable(layout):
    with serving(layout.root, "app") as registry, pytest.raises(Unavailable, match="cannot connect"):
        await resolved(registry, default_scheme="https")


async def test_bytes_with_another_digest_than_asked_for_are_refused(layout):
    with serving(layout.root, "app") as registry:
        digest = (await resolved(registry))[0].digest
        registry.fail("manifests", change=lambda data: data + b" ")
        with pytest.raises(DataLoss, match="the bytes that came have digest"):
            await resolved(registry, f"app@{digest}")


async def test_a_digest_header_that_lies_is_refused(layout):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", headers={"Docker-Content-Digest": digest_of(b"other")})
        with pytest.raises(DataLoss, match="the registry says sha256:"):
            await resolved(registry)
        registry.fail("manifests", headers={"Docker-Content-Digest": "sha256:../../../etc/passwd"})
        with pytest.raises(InvalidArgument, match="not of the form"):
            await resolved(registry)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "malformed"),
        (b" " * (5 << 20), "more than 4194304 bytes"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "schema 1"),
        (b'{"schemaVersion":2,"mediaType":"text/plain"}', "which is not an image"),
    ],
)
async def test_what_is_no_manifest_is_refused(layout, body, why):
    with serving(layout.root, "app") as registry:
        registry.fail(
            "manifests", body=body, headers={"Content-Type": "text/html", "Docker-Content-Digest": digest_of(body)}
        )
        with pytest.raises(InvalidArgument, match=why):
            await resolved(registry)


async def test_an_endless_body_is_cut_off(layout):
    with serving(layout.root, "app") as registry:
        registry.fail("manifests", body=b" " * (64 << 20))
        with pytest.raises(InvalidArgument, match="more than 4194304 bytes"):
            await resolved(registry)


async def test_a_redirect_to_another_host_carries_no_credentials(layout):
    with (
        serving(layout.root, "app", auth="basic", users={"me": "x"}) as registry,
        serving(layout.root, "app") as storage,
    ):
        registry.fail("manifests", status=401, headers={"WWW-Authenticate": "Basic"})
        location = f"http://{storage.host}/v2/app/manifests/1?sig=a%2Fb"
        registry.fail("manifests", status=307, headers={"Location": location})
        await resolved(registry, credentials=user("me", "x"), headers={"X-Key": "hush"})
        [seen] = storage.requests()
        assert registry.requests("manifests")[1].headers["X-Key"] == "hush"
    assert seen.path.endswith("?sig=a%2Fb")
    assert "Authorization" not in seen.headers
    assert "X-Key" not in seen.headers


async def test_a_redirect_loop_ends():
    with FakeRegistry() as registry:
        registry.fail("manifests", status=302, headers={"Location": "/v2/app/manifests/1"}, times=99)
        with pytest.raises(Unavailable, match="more than 5 redirects"):
            await resolved(registry)
        assert len(registry.requests()) == 15


async def test_requests_refused_at_once_share_one_new_token(layout):
    with serving(layout.root, "app", auth="bearer") as registry:
        client = RegistryClient(parse(f"{registry.host}/app:1"), patience=IMPATIENT)
        async with client:
            await asyncio.gather(*(resolve(client) for _ in range(5)))
            registry.tokens.clear()
            await asyncio.gather(*(resolve(client) for _ in range(5)))
        assert len(registry.requests("/token")) == 2
