"""Pulls by way of mirrors, certificates and proxies: the daemon's own requests and those of its workers."""

from pathlib import Path

import pytest

from runtimed import config
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from runtimed.images.push import Pusher
from runtimed.images.sources import RegistrySource
from runtimed.oci.reference import parse
from runtimed.registry.auth import Credentials
from runtimed.registry.registries import Registries
from tests.fakes.proxy import proxying
from tests.fakes.registry import make_certificate, serving
from tests.integration.images.conftest import IMPATIENT

pytestmark = pytest.mark.root


@pytest.fixture
def image(layout):
    layout.only_layer = layout.layer({"a": b"1"})
    layout.image("1", [layout.only_layer])
    return layout


class Hosts:
    """The configuration of team.example."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "team.example"
        self.directory.mkdir(parents=True)
        self._registries = Registries(config.Registry(config_path=str(root), docker_config=""))

    async def __call__(self, store, text, reference="team.example/app:1", **options):
        """Write *text* as its hosts.toml; return what pulls from there."""
        (self.directory / "hosts.toml").write_text(text)
        client = await self._registries.client(parse(reference), **options)
        client.patience = IMPATIENT
        return RegistrySource(client, store.pool)


@pytest.fixture
def hosts(tmp_path):
    return Hosts(tmp_path / "certs.d")


async def pull(store, source, **wanted):
    return await store.pull(str(source.reference), source=source, **wanted)


async def test_a_mirror_gives_what_it_has_and_the_registry_the_rest(store, image, hosts):
    layer = image.only_layer
    with serving(image.root, "app") as mirror, serving(image.root, "app") as registry:
        del mirror.blobs[layer.digest]
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}"]\n'
        await pull(store, await hosts(store, text))
        assert [seen.path.rpartition("/")[2] for seen in registry.requests()] == [f"{layer.digest}?ns=team.example"]
        assert mirror.requests("manifests/1?ns=team.example")


async def test_a_mirror_that_is_not_to_say_what_tags_are_is_not_asked(store, image, hosts):
    with serving(image.root, "app") as mirror, serving(image.root, "app") as registry:
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}"]\ncapabilities = ["pull"]\n'
        await pull(store, await hosts(store, text))
        assert [seen.path for seen in registry.requests()] == ["/v2/app/manifests/1?ns=team.example"]
        assert mirror.requests("blobs")


@pytest.mark.parametrize("spoil", [lambda data: data[:-1] + b"?", lambda data: data[:-1], lambda data: data + b" "])
async def test_a_mirror_that_lies_is_passed_over(store, image, hosts, spoil):
    with serving(image.root, "app") as mirror, serving(image.root, "app") as registry:
        mirror.fail("/v2/", change=spoil, times=99)
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}"]\ncapabilities = ["pull"]\n'
        await pull(store, await hosts(store, text))
    assert store.files(image.only_layer.diff_id) == {"a": b"1"}


async def test_the_error_names_every_host_that_was_tried_and_why(store, image, hosts):
    with serving(image.root, "other") as mirror, serving(image.root, "app") as registry:
        mirror.fail("manifests", status=403)
        registry.fail("manifests", status=503, times=99)
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}"]\n[host."http://127.0.0.1:1"]\n'
        with pytest.raises(Unavailable) as caught:
            await pull(store, await hosts(store, text))
        file = hosts.directory / "hosts.toml"
        said = str(caught.value)
        assert f"http://{mirror.host}/v2 ({file}:2): access denied" in said
        assert f"http://127.0.0.1:1/v2 ({file}:3): cannot connect" in said
        assert f"http://{registry.host}/v2 ({file}:1): the registry failed with 503" in said
        # Only who may get well is tried again.
        assert (len(mirror.seen), len(registry.seen)) == (1, 3)


async def test_the_last_ones_word_counts(store, image, hosts):
    with serving(image.root, "other") as registry:
        text = f'server = "http://{registry.host}"\n[host."http://127.0.0.1:1"]\n'
        with pytest.raises(NotFound, match="none of 2 hosts gives it"):
            await pull(store, await hosts(store, text))


async def test_without_a_host_for_it_nothing_is_asked(store, hosts):
    with pytest.raises(FailedPrecondition, match="no host may be used to resolve: https://m.example/v2 .*hosts.toml:1"):
        await pull(store, await hosts(store, 'server = "https://m.example"\ncapabilities = ["push"]\n'))


async def test_headers_and_credentials_are_for_whom_they_were_given(store, image, hosts):
    asked = []

    async def ask(host, challenges):
        asked.append(host)
        return Credentials(username="me", secret="x") if host == registry.host else None

    with (
        serving(image.root, "app", auth="basic", users={"me": "x"}) as mirror,
        serving(image.root, "app", auth="basic", users={"me": "x"}) as registry,
    ):
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}".header]\nx-mirror = "m"\n'
        await pull(store, await hosts(store, text, credentials_of_caller=ask, headers={"X-Client": "c"}))
        assert set(asked) == {mirror.host, registry.host}
        assert {seen.headers.get("x-mirror") for seen in mirror.seen} == {"m"}
        assert not [seen for seen in mirror.seen if "Authorization" in seen.headers or "X-Client" in seen.headers]
        assert not [seen for seen in registry.seen if "x-mirror" in seen.headers]


async def test_what_is_pushed_goes_to_who_takes_it(store, image, hosts, registry):
    with serving(image.root, "app") as mirror:
        text = f'server = "http://{registry.host}"\n[host."http://{mirror.host}"]\ncapabilities = ["pull", "resolve"]\n'
        name = str((await pull(store, await hosts(store, text))).image.name)
        before = len(mirror.seen)
        client = (await hosts(store, text, "team.example/hosts/pushed:1"))._client
        await Pusher(store.content, store.db).push("ns", name, client, [], lambda _: None)
        assert len(mirror.seen) == before
        await pull(store, await hosts(store, text, "team.example/hosts/pushed:1"))


# -- TLS


async def test_a_new_authority_counts_at_the_next_pull(store, image, hosts, tmp_path):
    certificate = make_certificate(tmp_path)
    (hosts.directory / "ca.pem").write_bytes(make_certificate(tmp_path, "other").read_bytes())
    with serving(image.root, "app", certificate=certificate) as registry:
        text = f'server = "https://{registry.host}"\nca = "ca.pem"\n'
        source = await hosts(store, text)
        with pytest.raises(PermissionDenied, match="certificate not trusted"):
            await pull(store, source)
        (hosts.directory / "ca.pem").write_bytes(certificate.read_bytes())
        await pull(store, await hosts(store, text))
        assert registry.requests("blobs")


async def test_who_is_not_to_be_verified_is_not(store, image, hosts, tmp_path):
    with serving(image.root, "app", certificate=make_certificate(tmp_path)) as registry:
        await pull(store, await hosts(store, f'server = "https://{registry.host}"\nskip_verify = true\n'))


async def test_a_host_is_shown_our_certificate(store, image, hosts, tmp_path):
    server, client = make_certificate(hosts.directory, "server"), make_certificate(hosts.directory, "client")
    with serving(image.root, "app", certificate=server, client_authority=client) as registry:
        text = f'server = "https://{registry.host}"\nca = "server.pem"\n'
        with pytest.raises(Unavailable):
            await pull(store, await hosts(store, text))
        await pull(store, await hosts(store, f'{text}client = ["client.pem"]\n'))
        await pull(store, await hosts(store, f'{text}client = [["client.pem", "client.key"]]\n'), unpack=False)


async def test_a_file_that_is_no_certificate_is_named(store, hosts, tmp_path):
    (hosts.directory / "ca.pem").write_text("x")
    with pytest.raises(InvalidArgument, match=r"ca\.pem: holds no certificate in PEM"):
        await pull(store, await hosts(store, 'server = "https://127.0.0.1:1"\nca = "ca.pem"\n'))


# -- proxies


@pytest.fixture
def proxied(store, monkeypatch):
    """Set the proxy of the daemon and of the workers that start from now on."""

    def set_to(scheme, proxy, user=""):
        at = f"{user}@" if user else ""
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{at}{proxy.host}")

    return set_to


@pytest.mark.parametrize("user", ["", "me:secret"])
async def test_plain_http_goes_by_the_proxy(store, image, hosts, proxied, user):
    with serving(image.root, "app") as registry, proxying(registry.host, user) as proxy:
        proxied("http", proxy, user)
        await pull(store, await hosts(store, 'server = "http://team.example"\n'))
        assert len(proxy.seen) == len(registry.seen) == 3
        assert all(target.startswith("http://team.example/v2/app/") for _, target in proxy.seen)


@pytest.mark.parametrize("user", ["", "me:secret"])
async def test_https_goes_through_the_proxy_unseen(store, image, hosts, proxied, tmp_path, user):
    certificate = make_certificate(hosts.directory, "ca")
    with serving(image.root, "app", certificate=certificate) as registry, proxying(registry.host, user) as proxy:
        proxied("https", proxy, user)
        # A name in 127.0.0.0/8 would be reached directly, and the certificate is for no other: so it is not looked at.
        await pull(store, await hosts(store, 'server = "https://team.example"\nskip_verify = true\n'))
        assert set(proxy.seen) == {("CONNECT", "team.example:443")}
        assert registry.requests("blobs")


async def test_a_proxy_that_refuses_is_told_of(store, image, hosts, proxied):
    with proxying("127.0.0.1:1", "me:secret") as proxy:
        proxied("https", proxy)
        with pytest.raises(Unavailable, match="the proxy answers 407"):
            await pull(store, await hosts(store, 'server = "https://team.example"\n'))


async def test_no_proxy_is_obeyed(store, image, hosts, proxied, monkeypatch):
    with serving(image.root, "app") as registry, proxying(registry.host) as proxy:
        proxied("http", proxy)
        monkeypatch.setenv("NO_PROXY", "team.example")
        with pytest.raises(Unavailable, match="team.example"):
            await pull(store, await hosts(store, 'server = "http://team.example:1"\n'))
        assert proxy.seen == []


# -- explaining


async def test_what_would_be_done_is_told_without_secrets(hosts, tmp_path, monkeypatch, store):
    (tmp_path / "secret").write_text("hush")
    given = {"m.example:5000": config.RegistryCredentials(username="me", password_file=str(tmp_path / "secret"))}
    (hosts.directory / "hosts.toml").write_text(
        '[host."https://m.example:5000"]\ncapabilities = ["pull"]\nheader = { x-key = "hush" }\n'
    )
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hush@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "team.example")
    settings = config.Registry(config_path=str(hosts.directory.parent), docker_config="", credentials=given)
    mirror, own = await Registries(settings).explain(parse("team.example/app:1"))
    assert (str(mirror.endpoint), mirror.endpoint.source) == (
        "https://m.example:5000/v2",
        f"{hosts.directory / 'hosts.toml'}:1",
    )
    assert (mirror.credentials, mirror.proxy) == (
        f'configuration, registry.credentials."m.example:5000": password_file {tmp_path}/secret',
        "http://proxy.example:3128",
    )
    assert (str(own.endpoint), own.credentials, own.proxy) == ("https://team.example/v2", "", "")
    assert "hush" not in f"{mirror}{own}"
