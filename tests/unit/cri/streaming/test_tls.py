"""The streaming server's TLS: by real certificates, from files that change while it serves."""

import asyncio
import shutil
import ssl
import subprocess
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from runtimed.cri.streaming.server import Settings, StreamingServer
from runtimed.errors import InvalidArgument
from tests.unit.cri.streaming.spdy_client import SpdyClient
from tests.unit.cri.streaming.test_streaming import FakeRuntime, opened, serving, ticket


class Pair:
    """A certificate for 127.0.0.1 and its key, and a client that trusts nothing else."""

    def __init__(self, directory):
        directory.mkdir()
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
            + ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
            + ["-keyout", str(self.key), "-out", str(self.certificate)],
            check=True,
            capture_output=True,
        )
        self.trust = ssl.create_default_context(cafile=str(self.certificate))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    base = tmp_path_factory.mktemp("pairs")
    return Pair(base / "old"), Pair(base / "new")


@pytest.fixture
def files(pairs, tmp_path):
    """The files of the server: at first the old pair."""
    files = {"certificate": tmp_path / "tls.crt", "key": tmp_path / "tls.key"}
    for name, path in files.items():
        replace(path, getattr(pairs[0], name))
    return files


def replace(path, source):
    """As who renews certificates does: another file by the same name."""
    shutil.copyfile(source, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def encrypt(key, to):
    command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(to)]
    subprocess.run(command, check=True, capture_output=True)


async def answers(server, pair):
    """Whether a client that trusts *pair* alone is served."""
    url = server.url(ticket("fail"))
    assert url.startswith("https://127.0.0.1:")
    try:
        client = await SpdyClient.connect(url, "v4.channel.k8s.io", ssl=pair.trust)
    except ssl.SSLCertVerificationError:
        return False
    assert client.status == 101
    await client.close()
    return True


async def test_a_command_runs_over_tls(pairs, files, monkeypatch):
    connect = SpdyClient.connect
    monkeypatch.setattr(SpdyClient, "connect", lambda url, protocol: connect(url, protocol, ssl=pairs[0].trust))
    async with serving(**files) as (server, _):
        client, ids = await opened(server, ticket())
        client.send(ids["stdin"], b"secret" * 50_000, fin=True)
        await client.until(lambda: client.ended >= {ids["stdout"], ids["error"]})
        assert client.data[ids["stdout"]] == b"secret" * 50_000
        await client.close()


async def test_a_renewed_certificate_serves_the_next_connection(pairs, files):
    old, new = pairs
    async with serving(**files) as (server, _):
        assert (await answers(server, old), await answers(server, new)) == (True, False)
        for name, path in files.items():
            replace(path, getattr(new, name))
        assert (await answers(server, old), await answers(server, new)) == (False, True)


async def test_also_for_a_url_that_was_given_before(pairs, files):
    async with serving(**files) as (server, _):
        url = server.url(ticket("fail"))
        for name, path in files.items():
            replace(path, getattr(pairs[1], name))
        client = await SpdyClient.connect(url, "v4.channel.k8s.io", ssl=pairs[1].trust)
        assert client.status == 101
        await client.close()


@pytest.mark.parametrize("break_it", ["a certificate without its key", "rubbish", "nothing"])
async def test_the_last_good_pair_serves_until_the_files_fit_again(pairs, files, break_it):
    old, new = pairs
    async with serving(**files) as (server, _):
        if break_it == "a certificate without its key":
            replace(files["certificate"], new.certificate)
        elif break_it == "rubbish":
            files["certificate"].write_text("rubbish")
        else:
            files["key"].unlink()
        assert await answers(server, old)
        for name, path in files.items():
            replace(path, getattr(new, name))
        assert await answers(server, new)


async def test_a_file_can_have_both(pairs, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(pairs[0].key.read_bytes() + pairs[0].certificate.read_bytes())
    async with serving(certificate=both) as (server, _):
        assert await answers(server, pairs[0])


async def test_who_speaks_no_tls_gets_nothing(files):
    async with serving(**files) as (server, _):
        url = urlsplit(server.url(ticket("fail")))
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        with suppress(ConnectionError):
            assert b"HTTP" not in await reader.read()
        writer.close()


@pytest.mark.parametrize("key", ["other", "encrypted", "missing"])
async def test_it_does_not_start_without_a_pair(pairs, files, key):
    if key == "other":
        replace(files["key"], pairs[1].key)
    elif key == "missing":
        files["key"].unlink()
    else:  # nobody is asked for the password
        encrypt(pairs[0].key, files["key"])
    with pytest.raises(InvalidArgument, match=f"streaming certificate {files['certificate']} and key {files['key']}"):
        await StreamingServer(FakeRuntime(), Settings(**files)).start()
