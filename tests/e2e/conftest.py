"""A running daemon, an image in a real registry, and the clients that are driven against both."""

from collections.abc import Iterator

import pytest

from tests.cri import Cri, cri_daemon
from tests.daemon import PrivateDaemon, private_daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    """One daemon for the tests of a module; afterwards nothing of it may be left on the machine."""
    with private_daemon() as running:
        yield running


@pytest.fixture(scope="module")
def cri(busybox: str) -> Iterator[Cri]:
    """A daemon of a kubelet's, with a network for pods and busybox; afterwards nothing of it may be left."""
    with cri_daemon() as running:
        running.write_network()
        running.pull(busybox)
        yield running


@pytest.fixture(scope="module")
def pulled(daemon: PrivateDaemon, busybox: str) -> str:
    """The reference of the busybox image, pulled."""
    daemon.rctl("pull", busybox)
    return busybox


@pytest.fixture
def fresh() -> Iterator[PrivateDaemon]:
    """A daemon of the test's own, to be stopped, killed and started again."""
    with private_daemon() as running:
        yield running
