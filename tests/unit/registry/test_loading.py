"""Each test has a process to itself: what has been imported stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.registry import make_certificate

REPO = Path(__file__).parents[3]

_BEGIN = """
import gc, ssl, sys, threading

def trusted():
    "How many authorities each context has."
    return [c.cert_store_stats()["x509_ca"] for c in gc.get_objects() if isinstance(c, ssl.SSLContext)]
"""


@pytest.fixture
def run(tmp_path):
    authorities = make_certificate(tmp_path)

    def run(code: str) -> str:
        environment = {**os.environ, "SSL_CERT_FILE": str(authorities), "SSL_CERT_DIR": str(tmp_path / "none")}
        command = [sys.executable, "-c", _BEGIN + code]
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_aiohttp_by_itself_reads_the_systems_authorities(run):
    """If not, :mod:`runtimed.registry.loading` need not keep it from that any more."""
    assert run("import aiohttp; print(sum(trusted()) > 0)") == "True\n"


def test_loading_reads_no_authorities(run):
    code = "from runtimed.registry import loading; loading.load(); print('aiohttp' in sys.modules, sum(trusted()))"
    assert run(code) == "True 0\n"


def test_contexts_made_after_it_have_the_systems_authorities(run):
    code = """
from runtimed.registry import loading
from runtimed.workers.tls import Tls, context
loading.load()
loading.load()
print(context(Tls()).cert_store_stats()["x509_ca"], ssl.create_default_context().cert_store_stats()["x509_ca"])
print("set_default_verify_paths" in vars(ssl.SSLContext))
"""
    assert run(code) == "1 1\nFalse\n"


def test_contexts_that_other_threads_make_meanwhile_have_the_systems_authorities(run):
    code = """
from runtimed.registry import loading
from runtimed.workers.tls import Tls, context
made = []

class Meanwhile:
    def find_spec(self, name, path, target=None):
        if name == "aiohttp.connector":
            thread = threading.Thread(target=lambda: made.append(context(Tls())))
            thread.start()
            thread.join()

sys.meta_path.insert(0, Meanwhile())
loading.load()
print([one.cert_store_stats()["x509_ca"] for one in made], sorted(trusted()))
"""
    made, everywhere = run(code).split("] ")
    assert made == "[1"
    assert everywhere == "[0, 0, 1]\n"


def test_what_fails_to_load_leaves_ssl_as_it_was(run):
    code = """
from runtimed.registry import loading

class Failing:
    def find_spec(self, name, path, target=None):
        if name == "aiohttp.connector":
            raise ImportError("not today")

sys.meta_path.insert(0, Failing())
try:
    loading.load()
except ImportError as exc:
    print(exc)
print(ssl.create_default_context().cert_store_stats()["x509_ca"])
"""
    assert run(code) == "not today\n1\n"


def test_several_threads_load_at_once(run):
    code = """
from runtimed.registry import loading
threads = [threading.Thread(target=loading.load) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("runtimed.registry.host" in sys.modules, sum(trusted()), "set_default_verify_paths" in vars(ssl.SSLContext))
"""
    assert run(code) == "True 0 False\n"
