"""From a request to a spec, rule by rule."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import apparmor, cdi, mounts, process, resources, seccomp, security, signals, sysctls
from runtimed.cri.annotations import allowed
from runtimed.cri.cgroup_path import cgroups_path
from runtimed.cri.namespaces import user_mappings
from runtimed.cri.request import ContainerSpecRequest, HandlerRules, SandboxSpecRequest
from runtimed.cri.rootfs import Rootfs
from runtimed.cri.spec import container_spec, sandbox_spec
from runtimed.errors import InvalidArgument, NotFound, PermissionDenied
from runtimed.oci.container_spec import DEFAULT_CAPABILITIES, MASKED_PATHS
from runtimed.oci.manifest import Execution

PASSWD = "root:x:0:0::/:/bin/sh\nalice:x:1000:1001::/:/bin/sh\n"
GROUP = "root:x:0:\nalice:x:1001:\nwheel:x:10:alice\n"
NODE, POD, CONTAINER, TARGET = pb.NODE, pb.POD, pb.CONTAINER, pb.TARGET


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a request; what is left out is an ordinary container."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (tmp_path / "sandbox").mkdir()

    def request(config=None, sandbox=None, image=None, **more):
        config = config or pb.ContainerConfig()
        if not config.command and not (image and image.cmd):
            config.command.append("/bin/true")
        return ContainerSpecRequest(
            container_id="c" * 64,
            sandbox_id="5" * 64,
            sandbox_pid=os.getpid(),
            config=config,
            sandbox_config=sandbox or pb.PodSandboxConfig(),
            image=image or Execution(),
            rootfs=Rootfs(nullcontext(root)),
            directory=tmp_path / "container",
            sandbox_directory=tmp_path / "sandbox",
            mapped_volumes=tmp_path / "mapped",
            **more,
        )

    return request


def context(**fields):
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))
    return pb.ContainerConfig(linux=linux)


def pod(**fields):
    return pb.PodSandboxConfig(
        linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(**fields))
    )


@pytest.mark.parametrize(
    ("command", "args", "found"),
    [
        ([], [], ("entry", "cmd")),
        ([], ["a"], ("entry", "a")),
        (["c"], [], ("c",)),
        (["c"], ["a"], ("c", "a")),
    ],
)
def test_command_and_args_replace_the_images(command, args, found):
    image = Execution(entrypoint=("entry",), cmd=("cmd",))
    assert process.args(pb.ContainerConfig(command=command, args=args), image) == found


def test_nothing_to_run_is_refused():
    with pytest.raises(InvalidArgument, match="no command"):
        process.args(pb.ContainerConfig(), Execution())


def test_the_requests_environment_wins_over_the_images():
    config = pb.ContainerConfig(envs=[pb.KeyValue(key="A", value=b"2"), pb.KeyValue(key="B", value=b"")])
    found = process.env(config, Execution(env=("A=1", "PATH=/x", "EMPTY")), "pod")
    assert found == ("PATH=/x", "HOSTNAME=pod", "A=2", "EMPTY=", "B=")


def test_an_environment_that_no_program_could_get_is_refused():
    config = pb.ContainerConfig(envs=[pb.KeyValue(key="A", value=b"x" * (200 << 10))])
    with pytest.raises(InvalidArgument, match="longer"):
        process.env(config, Execution(), "pod")


@pytest.mark.parametrize("path", ["/proc/self/fd/8", "/a\nb", "relative"])
def test_a_working_directory_of_a_hostile_image_is_refused(path):
    with pytest.raises(InvalidArgument, match="working directory"):
        process.cwd(pb.ContainerConfig(), Execution(working_dir=path))


@pytest.mark.parametrize(
    ("fields", "image", "user"),
    [
        ({}, "", (0, 0, (0,))),
        ({}, "alice", (1000, 1001, (1001, 10))),
        ({}, "77:10", (77, 10, (10,))),
        ({"run_as_user": pb.Int64Value(value=1000)}, "root", (1000, 1001, (1001, 10))),
        ({"run_as_username": "alice"}, "root", (1000, 1001, (1001, 10))),
        (
            {"run_as_user": pb.Int64Value(value=1000), "run_as_group": pb.Int64Value(value=5)},
            "",
            (1000, 5, (5, 10)),
        ),
        (
            {"run_as_user": pb.Int64Value(value=1000), "supplemental_groups": [60000], "supplemental_groups_policy": 1},
            "",
            (1000, 1001, (1001, 60000)),
        ),
        (
            {"run_as_user": pb.Int64Value(value=1000), "supplemental_groups": [60000]},
            "",
            (1000, 1001, (1001, 10, 60000)),
        ),
    ],
)
def test_the_user_and_its_groups(make, fields, image, user):
    found = container_spec(make(context(**fields), image=Execution(user=image))).process.user
    assert (found.uid, found.gid, found.additional_gids) == user


@pytest.mark.parametrize(
    "fields",
    [
        {"run_as_group": pb.Int64Value(value=1)},
        {"run_as_user": pb.Int64Value(value=-1)},
        {"run_as_user": pb.Int64Value(value=2**32)},
        {"supplemental_groups": [-5]},
        {"run_as_username": "a:b:c"},
    ],
)
def test_a_user_that_cannot_be_is_refused(make, fields):
    with pytest.raises(InvalidArgument):
        container_spec(make(context(**fields)))


def test_capabilities_are_added_and_dropped():
    asked = pb.Capability(add_capabilities=["SYS_TIME"], drop_capabilities=["CAP_NET_RAW"])
    found = security.capabilities(pb.LinuxContainerSecurityContext(capabilities=asked))
    assert set(found.bounding) == (set(DEFAULT_CAPABILITIES) | {"CAP_SYS_TIME"}) - {"CAP_NET_RAW"}
    assert found.inheritable == found.ambient == ()


def test_all_goes_before_single_capabilities():
    asked = pb.Capability(add_capabilities=["CHOWN"], drop_capabilities=["ALL"])
    assert security.capabilities(pb.LinuxContainerSecurityContext(capabilities=asked)).bounding == ("CAP_CHOWN",)


def test_ambient_capabilities_are_inheritable_too():
    asked = pb.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"])
    found = security.capabilities(pb.LinuxContainerSecurityContext(capabilities=asked))
    assert found.ambient == found.inheritable == ("CAP_NET_BIND_SERVICE",)


def test_a_capability_that_is_none_is_refused():
    asked = pb.Capability(add_capabilities=["FLY"])
    with pytest.raises(InvalidArgument, match="FLY"):
        security.capabilities(pb.LinuxContainerSecurityContext(capabilities=asked))


def test_a_privileged_container_needs_a_privileged_pod(make):
    with pytest.raises(PermissionDenied):
        container_spec(make(context(privileged=True)))


def test_a_privileged_container_sees_everything(make):
    spec = container_spec(make(context(privileged=True), pod(privileged=True)))
    assert spec.linux.masked_paths == spec.linux.readonly_paths == ()
    assert spec.linux.seccomp is None
    assert spec.linux.resources.devices[0].allow
    assert "/dev/null" in {device.path for device in spec.linux.devices}
    assert "rw" in next(mount.options for mount in spec.mounts if mount.destination == "/sys")


def test_paths_are_masked_unless_the_request_says_otherwise(make):
    assert container_spec(make()).linux.masked_paths == MASKED_PATHS
    assert container_spec(make(context(masked_paths=["/proc/x"]))).linux.masked_paths == ("/proc/x",)
    assert container_spec(make(context(no_new_privs=True))).linux.masked_paths == ()


def test_an_empty_seccomp_profile_is_the_default_one_and_none_is_none(make):
    assert container_spec(make(context())).linux.seccomp is None
    assert container_spec(make(context(seccomp=pb.SecurityProfile()))).linux.seccomp is not None
    unconfined = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
    assert container_spec(make(context(seccomp=unconfined))).linux.seccomp is None


def test_the_default_filter_knows_capabilities():
    plain, admin = seccomp.default(()), seccomp.default({"CAP_SYS_ADMIN"})
    allowed_names = [
        {name for rule in one.syscalls if rule.action == "SCMP_ACT_ALLOW" for name in rule.names}
        for one in (plain, admin)
    ]
    assert not {"mount", "unshare", "bpf", "keyctl", "io_uring_setup", "kexec_load", "clone3"} & allowed_names[0]
    assert {"mount", "unshare", "clone3"} <= allowed_names[1]
    assert {"read", "execve", "futex", "clone", "socket"} <= allowed_names[0]


def test_a_filter_from_a_file_is_passed_on(make, tmp_path):
    path = tmp_path / "profile.json"
    text = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}
    path.write_text(json.dumps(text))
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(path))
    spec = json.loads(container_spec(make(context(seccomp=profile))).encode())
    assert spec["linux"]["seccomp"] == text


@pytest.mark.parametrize(("content", "error"), [(None, NotFound), (b"[]", InvalidArgument), (b"{", InvalidArgument)])
def test_a_filter_that_is_none_is_refused(make, tmp_path, content, error):
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content)
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(path))
    with pytest.raises(error):
        container_spec(make(context(seccomp=profile)))


def sandbox_request(config, **more):
    return SandboxSpecRequest(
        sandbox_id="5" * 64, config=config, image=Execution(cmd=("/pause",)), directory=Path("/x"), **more
    )


def test_a_pod_has_its_own_namespaces_or_the_hosts():
    own = {one.type for one in sandbox_spec(sandbox_request(pod(), netns="/n")).linux.namespaces}
    assert {"network", "uts", "ipc", "pid", "mount"} <= own
    host = pb.NamespaceOption(network=NODE, pid=NODE, ipc=NODE)
    shared = {one.type for one in sandbox_spec(sandbox_request(pod(namespace_options=host))).linux.namespaces}
    assert not {"network", "uts", "ipc", "pid"} & shared


def test_a_container_joins_its_pods_namespaces(make):
    found = {one.type: one.path for one in container_spec(make(context(), netns="/n")).linux.namespaces}
    assert found["network"] == "/n"
    assert found["pid"] == f"/proc/{os.getpid()}/ns/pid"
    own = context(namespace_options=pb.NamespaceOption(pid=CONTAINER))
    assert {one.type: one.path for one in container_spec(make(own)).linux.namespaces}["pid"] == ""
    target = context(namespace_options=pb.NamespaceOption(pid=TARGET))
    joined = container_spec(make(target, target_pid=42)).linux.namespaces
    assert {one.type: one.path for one in joined}["pid"] == "/proc/42/ns/pid"
    with pytest.raises(InvalidArgument, match="target"):
        container_spec(make(target))


@pytest.mark.parametrize(("can_load", "profile"), [(True, "runtimed-default"), (False, "")])
def test_who_asks_for_no_apparmor_profile_gets_the_default_one_where_it_can_be_loaded(
    make, monkeypatch, can_load, profile
):
    monkeypatch.setattr(apparmor, "is_enabled", lambda: True)
    monkeypatch.setattr(apparmor, "can_load", lambda: can_load)
    monkeypatch.setattr(apparmor, "default", lambda: "runtimed-default")
    assert container_spec(make(context())).process.apparmor_profile == profile
    asked = context(apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.ProfileType.RuntimeDefault))
    assert container_spec(make(asked)).process.apparmor_profile == "runtimed-default"


def userns(*mappings, mode=POD):
    ids = [pb.IDMapping(container_id=inside, host_id=outside, length=length) for inside, outside, length in mappings]
    return pb.NamespaceOption(userns_options=pb.UserNamespace(mode=mode, uids=ids, gids=ids))


def test_a_user_namespace_is_the_pods_for_its_containers(make):
    one = userns((0, 100000, 65536))
    spec = container_spec(make(context(namespace_options=one), pod(namespace_options=one)))
    assert spec.linux.uid_mappings[0].host_id == 100000
    assert {one.type: one.path for one in spec.linux.namespaces}["user"] == f"/proc/{os.getpid()}/ns/user"


@pytest.mark.parametrize(
    "options",
    [
        userns((0, 1, 5), (5, 9, 5)),
        userns((1, 100, 5)),
        userns((0, 2**32 - 2, 5)),
        userns(),
        userns((0, 1, 5), mode=CONTAINER),
        userns((0, 1, 5), mode=TARGET),
        userns((0, 1, 5), mode=NODE),
    ],
)
def test_a_user_namespace_that_cannot_be_is_refused(options):
    with pytest.raises(InvalidArgument):
        user_mappings(options)


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("kernel.core_pattern", "|/evil", pb.NamespaceOption()),
        ("net.core.somaxconn", "1", pb.NamespaceOption(network=NODE)),
        ("kernel.shmmax", "1", pb.NamespaceOption(ipc=NODE)),
        ("net.core.somaxconn+kernel.core_pattern", "1", pb.NamespaceOption()),
        ("net/../kernel/x", "1", pb.NamespaceOption()),
        ("net.ipv4.ip_forward", "1\nkernel.x=2", pb.NamespaceOption()),
        ("kernel.hostname", "x", pb.NamespaceOption()),
        ("net", "1", pb.NamespaceOption()),
    ],
)
def test_a_sysctl_that_would_reach_the_host_is_refused(name, value, options):
    config = pod(namespace_options=options)
    config.linux.sysctls[name] = value
    with pytest.raises(InvalidArgument, match="sysctl"):
        sysctls.of_sandbox(sandbox_request(config))


def test_a_sysctl_is_named_with_dots_and_pods_may_ping():
    config = pod()
    config.linux.sysctls["net/core/somaxconn"] = "100"
    found = sysctls.of_sandbox(sandbox_request(config))
    assert found["net.core.somaxconn"] == "100"
    assert found["net.ipv4.ping_group_range"] == "0 2147483647"


def test_annotations_pass_by_allow_list_and_orders_to_systemd_only_by_name():
    given = {"a/b": "1", "c": "2", "org.systemd.property.DeviceAllow": "x"}
    assert allowed(given, ["*"]) == {"a/b": "1", "c": "2"}
    assert allowed(given, ["a/*"]) == {"a/b": "1"}
    assert allowed(given, ["org.systemd.property.*"]) == {"org.systemd.property.DeviceAllow": "x"}


def test_a_pods_annotation_cannot_pose_as_ours(make):
    sandbox = pb.PodSandboxConfig(annotations={"io.kubernetes.cri.sandbox-id": "other"})
    spec = container_spec(make(sandbox=sandbox, rules=HandlerRules(pod_annotations=("*",))))
    assert spec.annotations["io.kubernetes.cri.sandbox-id"] == "5" * 64


@pytest.mark.parametrize(
    ("parent", "systemd", "path"),
    [
        ("/kubepods/pod1", False, "/kubepods/pod1/id"),
        ("", False, "/k8s.io/id"),
        ("/kubepods.slice/kubepods-pod1.slice", True, "kubepods-pod1.slice:cri-containerd:id"),
        ("", True, ":cri-containerd:id"),
    ],
)
def test_the_cgroup_is_in_the_drivers_form(parent, systemd, path):
    assert cgroups_path(parent, "id", systemd=systemd) == path


@pytest.mark.parametrize(
    ("parent", "systemd"), [("/a/../b", False), ("x.slice", False), ("/pod", True), ("a:b", False)]
)
def test_a_cgroup_parent_of_the_other_driver_is_refused(parent, systemd):
    with pytest.raises(InvalidArgument, match="cgroup parent"):
        cgroups_path(parent, "id", systemd=systemd)


def test_limits():
    asked = pb.LinuxContainerResources(
        cpu_quota=50000, cpu_period=100000, cpu_shares=512, memory_limit_in_bytes=64 << 20, cpuset_cpus="0-1,3"
    )
    found = resources.limits_of(asked)
    assert found.cpu
    assert found.memory
    assert (found.cpu.quota, found.cpu.period, found.cpu.shares, found.cpu.cpus) == (50000, 100000, 512, "0-1,3")
    assert found.memory.limit == 64 << 20
    assert resources.limits_of(pb.LinuxContainerResources()) == msgspec.structs.replace(found, cpu=None, memory=None)


@pytest.mark.parametrize(
    "fields", [{"cpuset_cpus": "0;rm"}, {"cpu_shares": -1}, {"hugepage_limits": [{"page_size": "../x"}]}]
)
def test_limits_that_cannot_be_are_refused(fields):
    with pytest.raises(InvalidArgument):
        resources.limits_of(pb.LinuxContainerResources(**fields))


def mount_of(spec, destination):
    return next(mount for mount in spec.mounts if mount.destination == destination)


def test_a_missing_host_path_becomes_a_directory_and_a_link_is_resolved(make, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    config = pb.ContainerConfig(
        mounts=[
            pb.Mount(container_path="/new", host_path=str(tmp_path / "a/b")),
            pb.Mount(container_path="/link", host_path=str(tmp_path / "link"), readonly=True),
        ]
    )
    spec = container_spec(make(config))
    assert (tmp_path / "a/b").is_dir()
    assert mount_of(spec, "/link").source == str(tmp_path / "real")
    assert mount_of(spec, "/link").options == ("rbind", "rprivate", "ro")


def test_mounts_come_after_those_they_lie_below(make, tmp_path):
    paths = ["/a/b/c", "/a", "/a/b", "/dev/shm"]
    config = pb.ContainerConfig(mounts=[pb.Mount(container_path=path, host_path=str(tmp_path)) for path in paths])
    found = [mount.destination for mount in container_spec(make(config)).mounts]
    assert found.index("/a") < found.index("/a/b") < found.index("/a/b/c")
    assert found.count("/dev/shm") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"recursive_read_only": True},
        {"recursive_read_only": True, "readonly": True, "propagation": pb.PROPAGATION_HOST_TO_CONTAINER},
        {"image": pb.ImageSpec(image="i")},
        {"container_path": "/"},
        {"host_path": "relative"},
        {"uidMappings": [pb.IDMapping(length=1)], "gidMappings": [pb.IDMapping(length=1)]},
    ],
)
def test_a_mount_that_cannot_be_is_refused(make, tmp_path, fields):
    mount = pb.Mount(**({"container_path": "/m", "host_path": str(tmp_path)} | fields))
    if mount.image.image:
        mount.host_path = ""
    with pytest.raises(InvalidArgument):
        container_spec(make(pb.ContainerConfig(mounts=[mount])))


def test_a_sub_path_stays_in_the_image(make, tmp_path):
    image = tmp_path / "image"
    (image / "sub").mkdir(parents=True)
    (image / "out").symlink_to("/etc")
    (image / "in").symlink_to("/sub")
    assert mounts.below_image(image, "in", "/m") == str(image / "sub")
    for path in ("out", "missing", "../image", "/sub"):
        with pytest.raises(InvalidArgument, match="image_sub_path"):
            mounts.below_image(image, path, "/m")


def test_volumes_begin_with_the_images_content_and_links_lead_nowhere_else(make, tmp_path):
    root = tmp_path / "root"
    (root / "data").mkdir()
    (root / "data/file").write_text("content")
    (root / "evil").symlink_to("/" + "../" * 20 + str(tmp_path.relative_to("/")))
    image = Execution(volumes={"/data/../data": msgspec.Raw(b"{}"), "/evil": msgspec.Raw(b"{}")})
    spec = container_spec(make(image=image))
    assert Path(mount_of(spec, "/data").source, "file").read_text() == "content"
    assert list(Path(mount_of(spec, "/evil").source).iterdir()) == []


def test_a_mount_of_the_request_takes_a_volumes_place(make, tmp_path):
    config = pb.ContainerConfig(mounts=[pb.Mount(container_path="/data", host_path=str(tmp_path))])
    spec = container_spec(make(config, image=Execution(volumes={"/data": msgspec.Raw(b"{}")})))
    assert mount_of(spec, "/data").source == str(tmp_path)


def test_devices_by_path(make):
    config = pb.ContainerConfig(devices=[pb.Device(host_path="/dev/null", container_path="/dev/x", permissions="r")])
    spec = container_spec(make(config))
    assert [device.path for device in spec.linux.devices] == ["/dev/x"]
    assert [(rule.allow, rule.major, rule.access) for rule in spec.linux.resources.devices] == [
        (False, None, "rwm"),
        (True, 1, "r"),
    ]


@pytest.mark.parametrize(
    ("path", "permissions", "error"),
    [("/dev/none", "r", NotFound), ("/dev/null", "z", InvalidArgument), ("/etc/passwd", "r", InvalidArgument)],
)
def test_a_device_that_is_none_is_refused(make, path, permissions, error):
    config = pb.ContainerConfig(devices=[pb.Device(host_path=path, container_path="/dev/x", permissions=permissions)])
    with pytest.raises(error):
        container_spec(make(config))


CDI_YAML = """\
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: [SHARED=1]
devices:
  - name: "0"
    containerEdits:
      env: [GPU=0]
      deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null}]
      mounts: [{hostPath: /lib, containerPath: /gpu, options: [ro, rbind]}]
      hooks: [{hookName: createContainer, path: /bin/true}]
"""


def test_cdi_devices_by_request_and_annotation(make, tmp_path):
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi/gpu.yaml").write_text(CDI_YAML)
    config = pb.ContainerConfig(
        CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=0")], annotations={"cdi.k8s.io/x": "vendor.com/gpu=0"}
    )
    spec = container_spec(make(config, rules=HandlerRules(cdi_directories=(tmp_path / "cdi",))))
    assert {"SHARED=1", "GPU=0"} <= set(spec.process.env)
    assert [device.path for device in spec.linux.devices] == ["/dev/gpu0"]
    assert mount_of(spec, "/gpu").source == "/lib"
    assert spec.hooks is not None
    assert [hook.path for hook in spec.hooks.create_container] == ["/bin/true"]


def test_a_cdi_device_that_is_not_defined_is_refused(make, tmp_path):
    with pytest.raises(NotFound, match="CDI"):
        cdi.inject(container_spec(make()), ["vendor.com/gpu=9"], [tmp_path])
    with pytest.raises(InvalidArgument, match="CDI"):
        cdi.names_of(pb.ContainerConfig(CDI_devices=[pb.CDIDevice(name="../x")]))


@pytest.mark.parametrize(
    ("text", "value"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)]
)
def test_stop_signals(text, value):
    assert signals.number(text) == value
    assert signals.number(pb.Signal.Name(signals.cri_signal(text)).replace("PLUS", "+").replace("MINUS", "-")) == value


@pytest.mark.parametrize("text", ["SIGNOTHING", "0", "99", "RTMIN+40", "", "SIG_DFL"])
def test_a_stop_signal_that_is_none_is_refused(text):
    with pytest.raises(InvalidArgument):
        signals.number(text)


def test_every_signal_of_cri_is_a_signal():
    for name, _ in pb.Signal.items():
        if name != "RUNTIME_DEFAULT":
            config = pb.ContainerConfig(stop_signal=name)
            assert 1 <= signals.stop_signal(config, Execution()) <= 64, name
