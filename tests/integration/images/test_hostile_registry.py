"""A registry that means harm (abuse.md S19-S23, faults 21 and 25): what comes is right, or is refused by name; no
credentials leave, nothing of it stays."""

import asyncio
import json

import pytest

from runtimed.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    RuntimedError,
    Unauthenticated,
    Unavailable,
)
from runtimed.oci.reference import parse
from runtimed.registry import referrers
from runtimed.registry.auth import Credentials
from runtimed.registry.client import Patience, RegistryClient
from tests.fakes.registry import FakeRegistry, serving
from tests.images.layouts import OCI_INDEX, Layer, digest_of
from tests.integration.images.conftest import IMPATIENT

pytestmark = pytest.mark.root

BIG = 1 << 20


@pytest.fixture
def layer(layout):
    made = layout.layer({"f": b"x" * BIG}, compression="")
    layout.image("1", [made])
    return made


async def ask(host, challenges):
    return Credentials(username="me", secret="hush")


def told(registry):
    """Return what a registry has heard of us that is worth anything."""
    return [seen for seen in registry.seen if "Authorization" in seen.headers or b"hush" in seen.body]


# -- content


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"endless": b"x" * 4096}, FailedPrecondition),
        ({"headers": {"Content-Length": str(1 << 50)}}, FailedPrecondition),
        ({"headers": {"Content-Length": "5"}}, FailedPrecondition),
        ({"status": 206, "body": b"x", "headers": {"Content-Range": "bytes 0-0/1"}}, FailedPrecondition),
        ({"status": 206, "body": b"x", "headers": {"Content-Range": f"bytes 5-5/{BIG}"}}, FailedPrecondition),
        ({"status": 200, "body": b"", "headers": {"Transfer-Encoding": "gzip"}}, FailedPrecondition),
        ({"status": 302, "headers": {"Location": "/v2/app/blobs/there"}}, RuntimedError),
        ({"status": 302, "headers": {"Location": "http://me:hush@127.0.0.1/"}}, InvalidArgument),
        ({"status": 302, "headers": {"Location": "gopher://127.0.0.1/"}}, InvalidArgument),
        ({"status": 302, "headers": {"Location": "http://[::1"}}, RuntimedError),
        ({"status": 429, "headers": {"Retry-After": "99999999999999999999"}}, Unavailable),
        ({"status": 503, "headers": {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}}, Unavailable),
        ({"status": 99, "headers": {}}, RuntimedError),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
async def test_a_layer_that_cannot_be_is_refused_and_nothing_of_it_stays(store, layout, layer, fault, error):
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, times=99, **fault)
        with pytest.raises(error, match=layer.digest) as caught:
            await store.pull(f"{registry.host}/app:1")
        assert "hush" not in str(caught.value)
        assert len(str(caught.value)) < 600
        assert f"layer-{layer.digest}" not in store.ingests()
        assert store.left_over() == []
        registry.heal()
        await store.pull(f"{registry.host}/app:1")
    assert store.files(layer.diff_id) == {"f": b"x" * BIG}


@pytest.mark.parametrize("length", ["-5", "x" * 1000, "1e9"])
async def test_a_length_that_is_none_does_not_count(store, layout, layer, length):
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, headers={"Content-Length": length, "Connection": "close"})
        await store.pull(f"{registry.host}/app:1")
    assert store.files(layer.diff_id) == {"f": b"x" * BIG}


async def test_a_layer_that_changes_between_its_parts_is_fetched_as_a_whole(store, layout, layer):
    with serving(layout.root, "app") as registry:
        registry.fail(layer.digest, cut_at=BIG // 2, change=lambda data: b"y" * len(data))
        await store.pull(f"{registry.host}/app:1")
        asked = [seen.headers.get("Range") for seen in registry.requests(layer.digest)]
    assert asked == [None, f"bytes={BIG // 2}-", None]
    assert store.files(layer.diff_id) == {"f": b"x" * BIG}


async def test_what_is_an_image_one_time_and_something_else_the_next_is_never_mixed(store, layout, layer):
    """S22: what a tag stands for is asked once; from then on only digests are."""
    with serving(layout.root, "app") as registry:
        await store.pull(f"{registry.host}/app:1")
        assert [seen.path for seen in registry.requests("manifests")] == ["/v2/app/manifests/1"]


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "x/y:z"])
async def test_a_digest_that_is_a_path_is_refused_before_it_is_asked_for(store, layout, digest):
    made = layout.layer({"a": b"1"})
    layout.image("1", [Layer({**made.descriptor, "digest": digest}, made.diff_id)])
    with serving(layout.root, "app") as registry:
        with pytest.raises(InvalidArgument):
            await store.pull(f"{registry.host}/app:1")
        assert registry.requests("blobs") == []


async def test_the_urls_of_a_layer_are_not_followed(store, layout):
    made = layout.layer({"a": b"1"})
    with FakeRegistry() as elsewhere:
        urls = [f"http://{elsewhere.host}/v2/app/blobs/{made.digest}"]
        layout.image("1", [Layer({**made.descriptor, "urls": urls}, made.diff_id)])
        with serving(layout.root, "app", auth="basic", users={"me": "hush"}) as registry:
            await store.pull(f"{registry.host}/app:1", source=store.source(f"{registry.host}/app:1", credentials=ask))
            del registry.blobs[made.digest]
            assert elsewhere.seen == []


# -- who asks for credentials


@pytest.mark.parametrize(
    "realm",
    [
        "http://{elsewhere}/token",
        "https://me:hush@{elsewhere}/token",
        "https://169.254.169.254:1/latest",
        "file:///etc/passwd",
        "//{elsewhere}/token",
        "",
    ],
)
async def test_a_token_server_that_must_not_see_credentials_does_not(store, layout, layer, realm):
    with serving(layout.root, "app", auth="bearer") as registry, FakeRegistry() as elsewhere:
        realm = realm.format(elsewhere=elsewhere.host.replace("127.0.0.1", "127.0.0.2"))
        registry.challenge = f'Bearer realm="{realm}",service="x"'
        name = f"{registry.host}/app:1"
        with pytest.raises((PermissionDenied, Unavailable)):
            await store.pull(name, source=store.source(name, credentials=ask))
        assert told(registry) == elsewhere.seen == []


async def test_where_a_registry_redirects_no_credentials_go(store, layout, layer):
    with (
        serving(layout.root, "app", auth="basic", users={"me": "hush"}) as registry,
        serving(layout.root, "app") as elsewhere,
    ):
        registry.fail("manifests", status=401, headers={"WWW-Authenticate": "Basic"})
        for where in ("manifests/1", f"blobs/{layer.digest}"):
            registry.fail(where, status=307, headers={"Location": f"http://{elsewhere.host}/v2/app/{where}"})
        name = f"{registry.host}/app:1"
        await store.pull(name, source=store.source(name, credentials=ask, headers={"X-Key": "hush"}))
        assert len(elsewhere.seen) == 2
        assert not [seen for seen in elsewhere.seen if "Authorization" in seen.headers or "X-Key" in seen.headers]
        assert told(registry)


async def test_who_is_redirected_to_and_asks_for_credentials_gets_none(store, layout, layer):
    with (
        serving(layout.root, "app") as registry,
        serving(layout.root, "app", auth="basic", users={"me": "hush"}) as elsewhere,
    ):
        to = {"Location": f"http://{elsewhere.host}/v2/app/manifests/1"}
        registry.fail("manifests", status=307, headers=to, times=9)
        name = f"{registry.host}/app:1"
        with pytest.raises(Unauthenticated):
            await store.pull(name, source=store.source(name, credentials=ask))
        assert told(elsewhere) == []


async def test_a_registry_that_never_accepts_a_token_is_not_asked_forever(store, layout, layer):
    with serving(layout.root, "app", auth="bearer") as registry:
        registry.fail(layer.digest, status=401, times=99)
        with pytest.raises(Unauthenticated, match=layer.digest):
            await store.pull(f"{registry.host}/app:1")
        assert len(registry.requests(layer.digest)) <= 3
        assert len(registry.requests("/token")) <= 3


# -- waiting


async def test_a_busy_registry_is_left_alone_for_as_long_as_it_asks(store, layout, layer, monkeypatch):
    """What it asks for counts, not our own wait, which would be 10 minutes here; and a worker hears it, too."""
    patience = Patience(attempts=3, first_wait_s=600, longest_wait_s=601)
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("runtimed.registry.patience.asyncio.sleep", sleep)
    with serving(layout.root, "app") as registry:
        for where in ("manifests", layer.digest):
            registry.fail(where, status=429, headers={"Retry-After": "601"})
        name = f"{registry.host}/app:1"
        await store.pull(name, source=store.source(name, patience=patience))
    assert waits == [601, 601]


async def test_of_many_pulls_of_one_layer_one_that_is_cancelled_leaves_the_others_theirs(store, layout, layer):
    """Fault 21, with the one that began it."""
    with serving(layout.root, "app") as registry:
        name = f"{registry.host}/app:1"
        gate = registry.hold(layer.digest)
        first = asyncio.create_task(store.pull(name))
        await asyncio.to_thread(gate.reached.wait)
        others = [asyncio.create_task(store.pull(name)) for _ in range(7)]
        await store.until_said("waiting", f"layer-{layer.digest}", 8)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.let_go()
        pulled = await asyncio.gather(*others)
        assert len(registry.requests(layer.digest)) == 1
    assert len({one.image.target.digest for one in pulled}) == 1
    assert len(store.snapshots.list("ns")) == 1
    assert store.left_over() == []


# -- lists


def entries(count):
    manifests = [{"mediaType": "x", "digest": digest_of(str(n).encode()), "size": 1} for n in range(count)]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


async def listed(registry):
    async with RegistryClient(parse(f"{registry.host}/app"), patience=IMPATIENT) as client:
        return await referrers.listed(client, digest_of(b"x"))


async def test_a_list_goes_on_over_pages():
    with FakeRegistry() as registry:
        registry.fail(
            "referrers", status=200, body=entries(2), headers={"Link": '</v2/app/referrers/2?n=1>; rel="next"'}
        )
        registry.fail("referrers/2", status=200, body=entries(3))
        assert len(await listed(registry)) == 5


@pytest.mark.parametrize(
    ("link", "error"),
    [
        ('</v2/app/referrers/x>; rel="next"', InvalidArgument),
        ('<http://127.0.0.1:1/x>; rel="next"', Unavailable),
        ('<https://169.254.169.254/x>; rel="next"', Unavailable),
    ],
)
async def test_a_list_without_an_end_or_elsewhere_ends(link, error):
    with FakeRegistry() as registry:
        registry.fail("referrers", status=200, body=entries(200), headers={"Link": link}, times=1000)
        with pytest.raises(error, match="list of referrers"):
            await listed(registry)
        assert len(registry.seen) <= 101


@pytest.mark.parametrize("body", [entries(1)[:-1], b'{"manifests": {}}', b'{"a":' * 100_000, entries(20_000)])
async def test_a_list_that_is_none_is_refused(body):
    with FakeRegistry() as registry:
        registry.fail("referrers", status=200, body=body, times=9)
        with pytest.raises((InvalidArgument, DataLoss)):
            await listed(registry)


async def test_a_page_of_a_registry_that_does_not_know_the_list_is_no_list():
    with FakeRegistry() as registry:
        registry.fail("referrers", status=200, body=b"<html>")
        assert await listed(registry) == []
        assert registry.requests("manifests/sha256-")
