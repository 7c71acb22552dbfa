"""SELinux labels of pods and containers, on a machine that has it and on one that has not."""

import os
from contextlib import nullcontext

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import selinux
from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest
from runtimed.cri.rootfs import Rootfs
from runtimed.cri.spec import container_spec, sandbox_spec
from runtimed.errors import InvalidArgument
from runtimed.oci.manifest import Execution

LEVEL = pb.SELinuxOption(level="s0:c1,c2")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A directory for what the kernel and the policy have: nothing, until a test says otherwise."""
    monkeypatch.setattr(selinux, "KERNEL", tmp_path / "kernel")
    monkeypatch.setattr(selinux, "POLICIES", tmp_path / "policies")
    selinux.is_enabled.cache_clear()
    selinux._contexts.cache_clear()
    yield tmp_path
    selinux.is_enabled.cache_clear()
    selinux._contexts.cache_clear()


@pytest.fixture
def enabled(machine):
    (machine / "kernel").mkdir()
    (machine / "kernel/enforce").write_text("1")


@pytest.fixture
def labels(tmp_path):
    """Return a function for process and mount label of a container, from its and its pod's options."""
    (tmp_path / "root").mkdir()

    def labels(options=None, of_pod=None, id="5" * 64, privileged=False):
        security = pb.LinuxContainerSecurityContext(selinux_options=options, privileged=privileged)
        pod = pb.LinuxSandboxSecurityContext(selinux_options=of_pod, privileged=privileged)
        request = ContainerSpecRequest(
            container_id="c" * 64,
            sandbox_id=id,
            sandbox_pid=os.getpid(),
            config=pb.ContainerConfig(command=["/x"], linux=pb.LinuxContainerConfig(security_context=security)),
            sandbox_config=pb.PodSandboxConfig(linux=pb.LinuxPodSandboxConfig(security_context=pod)),
            image=Execution(),
            rootfs=Rootfs(nullcontext(tmp_path / "root")),
            directory=tmp_path / "container",
            sandbox_directory=tmp_path / "sandbox",
            mapped_volumes=tmp_path / "mapped",
        )
        spec = container_spec(request)
        return spec.process.selinux_label, spec.linux.mount_label

    return labels


def pod_labels(options, id="5" * 64):
    context = pb.LinuxSandboxSecurityContext(selinux_options=options)
    config = pb.PodSandboxConfig(linux=pb.LinuxPodSandboxConfig(security_context=context))
    image = Execution(entrypoint=("/pause",))
    spec = sandbox_spec(SandboxSpecRequest(sandbox_id=id, config=config, image=image, directory=selinux.KERNEL.parent))
    return spec.process.selinux_label, spec.linux.mount_label


def test_without_selinux_labels_are_ignored(labels):
    assert labels(LEVEL, LEVEL) == pod_labels(LEVEL) == ("", "")
    assert labels(pb.SELinuxOption(type="not a type")) == ("", "")


def test_a_container_has_its_own_labels_or_its_pods(enabled, labels):
    process, file = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
    assert labels(LEVEL) == labels(None, LEVEL) == pod_labels(LEVEL) == (process, file)
    own = pb.SELinuxOption(user="u", role="r", type="t", level="s0")
    assert labels(own, LEVEL) == ("u:r:t:s0", "u:object_r:container_file_t:s0")


def test_pods_differ_in_categories_and_their_containers_do_not(enabled, labels):
    of_pod = pod_labels(None)
    assert labels() == of_pod
    assert of_pod[0].startswith("system_u:system_r:container_t:s0:c")
    assert of_pod[0].rpartition(":")[2] == of_pod[1].rpartition(":")[2]
    assert pod_labels(None, "6" * 64)[0] != of_pod[0]


def test_a_privileged_container_is_not_confined(enabled, labels):
    assert labels(privileged=True)[0] == "system_u:system_r:spc_t:s0"


def test_the_policy_says_what_the_defaults_are(machine, enabled, labels):
    contexts = machine / "policies/mine/contexts"
    contexts.mkdir(parents=True)
    lines = ['process = "a_u:a_r:a_t:s0"', 'file = "b_u:b_r:b_t:s0"', 'other = "x:y:z:s0"']
    (contexts / "lxc_contexts").write_text("\n".join(lines))
    assert labels(LEVEL) == ("a_u:a_r:a_t:s0:c1,c2", "b_u:b_r:b_t:s0:c1,c2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "t:s0"}, "SELinux label 't:s0' is not a name"),
        ({"user": "a b"}, "SELinux label 'a b' is not a name"),
        ({"level": "s0\nx"}, "SELinux level .* is not one"),
    ],
)
def test_labels_that_would_be_several_are_refused(enabled, labels, options, message):
    with pytest.raises(InvalidArgument, match=message):
        labels(pb.SELinuxOption(**options))
