"""What every snapshotter promises, kept by one in another process; and that process coming and going."""

# mypy: disable-error-code="no-redef"

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from runtimed.errors import Unavailable
from runtimed.mounts import mounted_temporarily
from runtimed.snapshots.conformance import *  # noqa: F403
from runtimed.snapshots.conformance import commit_layer
from runtimed.snapshots.proxy import ProxySnapshotter
from tests.fakes.snapshots_server import serving

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Path]:
    """A directory with one server in it for all tests: each of them has keys and files of its own."""
    base = tmp_path_factory.mktemp("proxy")
    with serving(base / "s", base):
        yield base


@pytest.fixture
def root(served) -> Iterator[Path]:
    yield served / "native"
    with closing(ProxySnapshotter("native", str(served / "s"))) as proxy:
        for info in reversed([*proxy.list()]):
            proxy.remove(info.name)


@pytest.fixture
def implementation(served):
    return lambda root: ProxySnapshotter("native", str(served / "s"))


def test_a_process_that_comes_late_and_comes_back_is_found(tmp_path):
    socket = tmp_path / "s"
    with closing(ProxySnapshotter("mine", str(socket))) as proxy:
        with pytest.raises(Unavailable, match=f"'mine': nobody answers on {socket} .*is its service running"):
            proxy.stat("x")
        for run in ("one", "two"):
            with serving(socket, tmp_path):
                _until_there(proxy)
                commit_layer(proxy, run, "", {"file": run})
            with pytest.raises(Unavailable):
                proxy.stat(run)
        with serving(socket, tmp_path):
            _until_there(proxy)
            assert {info.name for info in proxy.list()} == {"one", "two"}
            with mounted_temporarily(proxy.view("v", "one", {})) as root:
                assert [path.name for path in root.iterdir()] == ["file"]


def _until_there(proxy: ProxySnapshotter) -> None:
    grpc.channel_ready_future(proxy._channel).result(timeout=10)
