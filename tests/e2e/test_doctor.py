"""``rctl doctor`` against a running daemon."""

import json
import os

import pytest

from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_it_finds_nothing_finds_a_stray_and_repairs_it(fresh: PrivateDaemon, busybox: str):
    fresh.rctl("pull", busybox)
    fresh.run("-d", busybox, "t", "sleep", "1000")
    healthy = fresh.rctl("doctor")
    assert "nothing is wrong" in healthy.stdout
    assert os.uname().release in healthy.stdout
    (fresh.state / "io.containerd.runtime.v2.task" / fresh.namespace / "left/rootfs").mkdir(parents=True)

    found = fresh.rctl("doctor", check=False)
    assert found.returncode == 1
    assert f"bundle {fresh.namespace}/left: has no task" in found.stdout
    repaired = fresh.rctl("-o", "json", "doctor", "--repair")
    (finding,) = json.loads(repaired.stdout)["findings"]
    assert (finding["kind"], finding["action"], finding["error"]) == ("bundle", "cleaned up", None)
    assert "nothing is wrong" in fresh.rctl("doctor").stdout
    assert fresh.rctl("ps", "-q").stdout == "t\n"
