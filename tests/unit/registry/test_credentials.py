import asyncio
import base64
import json

import pytest

from runtimed import config
from runtimed.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from runtimed.registry import credentials
from runtimed.registry.auth import Credentials
from runtimed.registry.credentials import Stored, ask_helper


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Put a credential helper on PATH that runs a shell script; return its name."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "bin").mkdir()

    def make(script, name="test"):
        path = tmp_path / "bin" / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path.name

    return make


@pytest.fixture
def docker(tmp_path):
    """Write a docker config.json and return the credentials for a host by it."""

    def ask(stored, host="r.example:5000"):
        (tmp_path / "config.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))
        return Stored(config.Registry(docker_config=str(tmp_path / "config.json"))).ask(host, ())

    return ask


def basic(name, secret):
    return {"auth": base64.b64encode(f"{name}:{secret}".encode()).decode()}


ME = Credentials(username="me", secret="pass:word")


async def test_what_docker_login_has_stored_is_for_its_host_only(docker):
    stored = {"auths": {"r.example:5000": basic("me", "pass:word"), "other.example": basic("you", "x")}}
    assert await docker(stored) == ME
    assert await docker(stored, "r.example") is None
    assert await docker(stored, "sub.r.example:5000") is None
    assert await docker({"auths": {"https://r.example:5000/v1/": basic("me", "pass:word")}}) == ME
    assert await docker({}) is None


@pytest.mark.parametrize("host", ["docker.io", "registry-1.docker.io"])
async def test_docker_hub_has_a_name_of_its_own_there(docker, host):
    assert await docker({"auths": {"https://index.docker.io/v1/": basic("me", "pass:word")}}, host) == ME


async def test_the_kinds_of_what_is_stored(docker):
    host = "r.example:5000"
    assert await docker({"auths": {host: {"identitytoken": "t", **basic("me", "")}}}) == Credentials(secret="t")
    assert await docker({"auths": {host: {"registrytoken": "t"}}}) == Credentials(header="Bearer t")
    assert await docker({"auths": {host: {"username": "me", "password": "pass:word"}}}) == ME
    assert await docker({"auths": {host: {}}}) is None  # kept in the credsStore, if in any


@pytest.mark.parametrize(
    "stored", ["{", '{"auths": []}', '{"auths": {"r.example:5000": {"auth": "hush"}}}', b"\xff".decode("latin1")]
)
async def test_a_file_that_docker_did_not_write_is_named_but_not_quoted(docker, stored):
    with pytest.raises(InvalidArgument, match=r"config\.json") as caught:
        await docker(stored)
    assert "hush" not in str(caught.value)


async def test_helpers_are_asked_for_their_hosts_and_the_store_for_all(docker, helper):
    helper('read host; echo "{\\"Username\\":\\"me\\",\\"Secret\\":\\"of $host\\"}"', "one")
    helper('read host; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"of $host\\"}"', "all")
    stored = {
        "credHelpers": {"r.example:5000": "one"},
        "credsStore": "all",
        "auths": {"r.example:5000": basic("x", "y")},
    }
    assert await docker(stored) == Credentials(username="me", secret="of r.example:5000")
    assert await docker(stored, "docker.io") == Credentials(secret="of https://index.docker.io/v1/")


async def test_a_helper_that_has_none_is_no_error(helper):
    name = helper("echo 'credentials not found in native keychain'; exit 1")
    assert await ask_helper(name, "r.example") is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo hush; exit 3", "exit status 3; try it: echo r.example"),
        ("echo hush", "its answer is not one"),
        ("exec cat /dev/zero", "says more than"),
    ],
)
async def test_a_helper_that_fails_is_named_and_what_it_says_is_not_told(helper, script, why):
    with pytest.raises(Unavailable, match=why) as caught:
        await ask_helper(helper(script), "r.example")
    assert "hush" not in str(caught.value)


async def test_a_helper_that_hangs_is_ended_with_what_it_has_started(helper, tmp_path):
    name = helper(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(Unavailable, match="no answer"):
        await ask_helper(name, "r.example", limit_s=0.3)
    child = int((tmp_path / "child").read_text())
    async with asyncio.timeout(10):
        while _is_running(child):  # noqa: ASYNC110 - killed with its group; somebody else reaps it
            await asyncio.sleep(0.01)


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_helper_that_is_not_there_is_named():
    with pytest.raises(PermissionDenied, match="docker-credential-nosuch: No such file.*is it on the daemon's PATH"):
        await ask_helper("docker-credential-nosuch", "r.example")


async def test_what_is_configured_comes_first_and_is_read_anew(tmp_path):
    secret = tmp_path / "secret"
    given = config.RegistryCredentials(username="me", password_file=str(secret))
    stored = Stored(config.Registry(docker_config="", credentials={"r.example:5000": given}))
    with pytest.raises(NotFound, match="secret"):
        await stored.ask("r.example:5000", ())
    secret.write_text("pass:word\n")
    assert await stored.ask("r.example:5000", ()) == ME
    secret.write_text("\n")
    with pytest.raises(InvalidArgument, match="secret: the file is empty"):
        await stored.ask("r.example:5000", ())
    found = await stored.find("r.example:5000")
    assert found is not None
    assert found.source == f'configuration, registry.credentials."r.example:5000": password_file {secret}'
    assert await stored.find("r.example") is None


async def test_who_asks_first_wins_and_the_daemons_own_are_the_last_resort():
    asked = []

    def having(name, answer):
        async def ask(host, challenges):
            asked.append(name)
            return answer

        return ask

    ask = credentials.first_of(having("caller", None), having("own", ME), having("never", None))
    assert await ask("r.example", ()) == ME
    assert asked == ["caller", "own"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('username = "me"', "username and password_file go together"),
        ('helper = "x"\ntoken_file = "/x"', "give username and password_file, or token_file, or helper"),
        ("", "give username and password_file"),
        ('helper = "../x"', "must be what follows docker-credential-"),
        ('token_file = "x"', "must be an absolute path"),
    ],
)
def test_credentials_that_cannot_be_meant_are_refused_at_the_start(tmp_path, text, why):
    path = tmp_path / "config.toml"
    path.write_text(f'version = 1\n[registry.credentials."r.example"]\n{text}\n')
    with pytest.raises(InvalidArgument, match=why):
        config.load(path)
