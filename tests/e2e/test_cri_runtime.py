"""What a kubelet asks about the runtime itself."""

import json

import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def cri():
    with cri_daemon('[cri.runtimes.other]\nsnapshotter = "native"\n') as running:
        yield running


def conditions(cri, **options):
    answer = cri.runtime.Status(pb.StatusRequest(**options), timeout=TIMEOUT_S)
    return {one.type: one for one in answer.status.conditions}, answer


def test_the_version_is_the_kubelets_and_the_runtimes(cri):
    answer = cri.runtime.Version(pb.VersionRequest(), timeout=TIMEOUT_S)
    assert (answer.version, answer.runtime_name, answer.runtime_api_version) == ("0.1.0", "runtimed", "v1")


def test_the_network_is_ready_as_soon_as_it_is_configured(cri):
    found, _ = conditions(cri)
    assert found["RuntimeReady"].status
    assert not found["NetworkReady"].status
    assert found["NetworkReady"].reason == "NetworkPluginNotReady"
    assert str(cri.network) in found["NetworkReady"].message
    cri.write_network()
    try:
        assert conditions(cri)[0]["NetworkReady"].status
        cri.write_network({"type": "not-installed"}, name="00-first.conflist")
        problem = conditions(cri)[0]["NetworkReady"]
        assert not problem.status
        assert "'not-installed' is not in /usr/lib/cni" in problem.message
        (cri.network / "00-first.conflist").write_text("{")
        assert "00-first.conflist" in conditions(cri)[0]["NetworkReady"].message
    finally:
        for path in cri.network.iterdir():
            path.unlink()
    assert not conditions(cri)[0]["NetworkReady"].status


def test_every_handler_is_listed_with_its_features_and_so_is_the_empty_name(cri):
    _, answer = conditions(cri)
    assert [handler.name for handler in answer.runtime_handlers] == ["", "runc", "other"]
    for handler in answer.runtime_handlers:
        assert handler.features.recursive_read_only_mounts
        assert handler.features.user_namespaces == (handler.name != "other")  # its snapshotter maps nothing
    assert answer.features.supplemental_groups_policy


def test_a_verbose_status_shows_handlers_and_network(cri):
    _, answer = conditions(cri, verbose=True)
    assert json.loads(answer.info["config"])["runtimes"]["other"]["snapshotter"] == "native"
    assert "error" in json.loads(answer.info["cniconfig"])
    assert not conditions(cri)[1].info


def test_the_cgroup_driver_is_the_default_handlers(cri):
    answer = cri.runtime.RuntimeConfig(pb.RuntimeConfigRequest(), timeout=TIMEOUT_S)
    assert answer.linux.cgroup_driver == pb.CGROUPFS


def test_the_pod_cidr_is_taken_or_refused(cri):
    def update(text):
        network = pb.NetworkConfig(pod_cidr=text)
        request = pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network))
        return cri.runtime.UpdateRuntimeConfig(request, timeout=TIMEOUT_S)

    update("10.1.0.0/16,fd00::/64")
    update("")
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        update("10.1.0.0/99")
