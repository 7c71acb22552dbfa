"""A snapshotter in another process, through a daemon that is configured for it."""

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.snapshots_server import serving

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_an_image_is_unpacked_and_run_on_it_and_it_may_come_after_the_daemon(busybox: str):
    with private_daemon(start=False) as daemon:
        socket = daemon.base / "remote"
        daemon.config.write_text(f'version = 1\n[proxy_plugins.remote]\naddress = "{socket}"\n')
        daemon.start()
        refused = daemon.rctl("pull", "--snapshotter", "remote", busybox, check=False)
        assert refused.returncode != 0
        assert f"snapshotter 'remote': nobody answers on {socket}" in refused.stderr
        with serving(socket, daemon.base / "store"):
            _pull(daemon, busybox)
            assert daemon.run("--rm", "--snapshotter", "remote", busybox, "--", "echo", "hello").stdout == "hello\n"
        with serving(socket, daemon.base / "store"):  # started anew
            daemon.stop()
            daemon.start()
            assert daemon.run("--rm", "--snapshotter", "remote", busybox, "--", "echo", "again").stdout == "again\n"
            assert any((daemon.base / "store/native/snapshots").iterdir())


def _pull(daemon: PrivateDaemon, name: str) -> None:
    """Pull, again if the daemon has not noticed yet that somebody answers."""
    for _ in range(20):
        pulled = daemon.rctl("pull", "--snapshotter", "remote", name, check=False)
        if "nobody answers" not in pulled.stderr:
            break
    assert pulled.returncode == 0, pulled.stderr
