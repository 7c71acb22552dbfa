"""Pods come and go as a kubelet has it, and nothing of them stays. ``python -m tests.churn`` does it for longer."""

import pytest

from tests.churn import churn
from tests.cri import cri_daemon
from tests.images.busybox import NAME
from tests.images.busybox import busybox as busybox_layout
from tests.kubelet import Plan

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.slow]

PLAN = Plan(pods=4, seconds=4, pod_lives=0.3, relist=0.2, probe=0.3, kubelet_restart=1.5, daemon_restart=2.5)


@pytest.fixture
def image(registry, tmp_path):
    return registry.push(busybox_layout(tmp_path / "layout"), "churn/busybox:1", source=NAME)


def test_pods_come_and_go_and_nothing_of_them_stays(image):
    with cri_daemon() as cri:
        kubelet = churn(cri, image, PLAN)
    assert kubelet.failures == []
    assert kubelet.counts["pods"] >= PLAN.pods
    assert {"restarts of the kubelet", "restarts of the daemon"} <= kubelet.counts.keys()
    assert {"ListPodSandbox", "ExecSync", "StopContainer", "RemovePodSandbox"} <= kubelet.counts.keys()
