"""Debian's docker-registry with TLS and a password file, and one with a token server of ours: pulls and pushes."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.registry import make_certificate
from tests.fakes.tokens import TokenServer, token_server
from tests.registry import Registry, docker_registry

pytestmark = [pytest.mark.root, pytest.mark.e2e]

HTPASSWD = "me:$2b$04$0hyGoiBd1VS3PuKu.I1QMevpvOwWXHdIqNlVd2kI0Fqd3NwSBIZh6\n"  # secret, by bcrypt


@dataclass
class Site:
    """Two registries that want to know who we are, and a daemon that can tell them."""

    daemon: PrivateDaemon
    basic: Registry
    token: Registry
    tokens: TokenServer
    directory: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    certificate = make_certificate(directory, "server", ("rsa:2048",))
    (directory / "htpasswd").write_text(HTPASSWD)
    (directory / "password").write_text("secret\n")
    with (
        token_server(certificate, "me:secret") as tokens,
        docker_registry(
            certificate=certificate, auth=f"{{htpasswd: {{realm: r, path: {directory}/htpasswd}}}}"
        ) as basic,
        docker_registry(certificate=certificate, auth=tokens.auth) as token,
        private_daemon(start=False) as daemon,
    ):
        for host in (basic.host, token.host, "team.example"):
            (directory / "certs.d" / host).mkdir(parents=True)
        for host in (basic.host, token.host):
            (directory / "certs.d" / host / "hosts.toml").write_text(
                f'server = "https://{host}"\nca = "{certificate}"\n'
            )
        pair = base64.b64encode(b"me:secret").decode()
        (directory / "docker.json").write_text(json.dumps({"auths": {token.host: {"auth": pair}}}))
        daemon.config.write_text(
            f'version = 1\n[registry]\nconfig_path = "{directory}/certs.d"\ndocker_config = "{directory}/docker.json"\n'
            f'[registry.credentials."{basic.host}"]\nusername = "me"\npassword_file = "{directory}/password"\n'
        )
        daemon.start()
        yield Site(daemon, basic, token, tokens, directory)


@pytest.fixture(scope="module")
def pulled(site: Site, busybox: str) -> str:
    """A busybox image from a registry that wants to know nothing."""
    site.daemon.rctl("pull", busybox)
    return busybox


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_an_image_goes_there_and_back(site, pulled, kind):
    registry = getattr(site, kind)
    name = f"{registry.host}/e2e/there:1"
    site.daemon.rctl("push", pulled, name)
    site.daemon.rctl("pull", name)
    listed = site.daemon.rctl("-o", "json", "images").stdout
    by_name = {one["name"]: one["digest"] for one in json.loads(listed)}
    assert by_name[name] == by_name[pulled]
    if kind == "token":
        assert ["repository:e2e/there:pull,push"] in site.tokens.scopes
        assert ["repository:e2e/there:pull"] in site.tokens.scopes


def test_to_a_second_repository_blobs_are_mounted_with_a_token_for_both(site, pulled):
    first, second = (f"{site.token.host}/e2e/{name}:1" for name in ("first", "second"))
    site.daemon.rctl("push", pulled, first)
    site.daemon.rctl("pull", first)
    site.tokens.scopes.clear()
    site.daemon.rctl("push", first, second)
    assert site.tokens.scopes[0][0] == "repository:e2e/second:pull,push"
    assert "repository:e2e/first:pull" in site.tokens.scopes[0]


def test_other_credentials_than_the_daemons_are_the_ones_that_count(site, pulled):
    name = f"{site.basic.host}/e2e/refused:1"
    done = site.daemon.rctl("push", "--user", "me:wrong", pulled, name, check=False)
    assert done.returncode == 1
    assert "refused the credentials" in done.stderr
    assert "wrong" not in done.stderr.replace("wrongly", "")
    assert "wrong" not in site.daemon.log.read_text()


def test_a_registry_that_is_not_trusted_is_not_spoken_to(site, pulled, tmp_path):
    name = f"{site.basic.host}/e2e/untrusted:1"
    hosts = site.directory / "certs.d" / site.basic.host / "hosts.toml"
    right = hosts.read_text()
    try:
        hosts.write_text(f'server = "https://{site.basic.host}"\n')
        done = site.daemon.rctl("push", pulled, name, check=False)
        assert "certificate not trusted" in done.stderr
    finally:
        hosts.write_text(right)
    site.daemon.rctl("push", pulled, name)  # read anew, without a restart


def test_a_mirror_stands_in_for_a_registry_that_is_away(site, pulled):
    site.daemon.rctl("push", pulled, f"{site.basic.host}/mirrored/busybox:1")
    hosts = site.directory / "certs.d/team.example/hosts.toml"
    both = f'server = "https://127.0.0.1:1"\n[host."https://{site.basic.host}"]\nca = "{site.directory}/server.pem"\n'
    hosts.write_text(both)
    done = site.daemon.rctl("-o", "json", "pull", "--stats", "team.example/mirrored/busybox:1")
    answer = json.loads(done.stdout)
    assert answer["name"] == "team.example/mirrored/busybox:1"
    assert len(answer["timings"]["layers"]) == 3
    done = site.daemon.rctl("pull", "--stats", "team.example/mirrored/busybox:1")
    assert "resolve" in done.stdout
    hosts.write_text('server = "https://127.0.0.1:1"\n')
    away = site.daemon.rctl("pull", "team.example/x:1", check=False).stderr
    assert "cannot connect: Connection refused" in away
    assert "rctl registry explain team.example/x:1" in away
    hosts.write_text(both)
    missing = site.daemon.rctl("pull", "team.example/mirrored/nosuch:1", check=False).stderr
    assert f"https://{site.basic.host}/v2 ({hosts}:2): not found" in missing
    assert f"https://127.0.0.1:1/v2 ({hosts}:1): cannot connect" in missing


def test_explain_shows_hosts_lines_and_credentials_but_no_secret(site):
    done = site.daemon.rctl("registry", "explain", f"{site.token.host}/x:1")
    hosts = site.directory / "certs.d" / site.token.host / "hosts.toml"
    assert done.stdout.splitlines()[:4] == [
        f"1. https://{site.token.host}/v2/x/manifests/1",
        f"   configured:   {hosts}:1",
        "   used to:      pull, push, resolve",
        f"   credentials:  {site.directory}/docker.json: auths '{site.token.host}'",
    ]
    document = json.loads(site.daemon.rctl("-o", "json", "registry", "explain", f"{site.basic.host}/x").stdout)
    assert document["hosts"][0]["credentials"].endswith(f"password_file {site.directory}/password")
    assert "secret" not in done.stdout + json.dumps(document).replace("secrets", "")
    hosts = site.directory / "certs.d/team.example/hosts.toml"
    hosts.write_text("\nskip_verify = 1\n")
    done = site.daemon.rctl("registry", "explain", "team.example/x", check=False)
    assert (done.returncode, f"{hosts}:2: skip_verify: must be true or false" in done.stderr) == (1, True)
