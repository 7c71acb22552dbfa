"""Pods with a user namespace of their own: root inside is nobody outside, and yet everything is its own."""

import functools
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.images.busybox import NAME, PLATFORM
from tests.images.busybox import busybox as busybox_layout
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FIRST, LENGTH = 300000, 65536


def userns(first=FIRST, length=LENGTH, mode=pb.POD):
    ids = [pb.IDMapping(host_id=first, container_id=0, length=length)]
    return pb.UserNamespace(mode=mode, uids=ids, gids=ids)


def mapped(path, where, **more):
    ids = [pb.IDMapping(host_id=FIRST, container_id=0, length=LENGTH)]
    return pb.Mount(host_path=str(path), container_path=where, uidMappings=ids, gidMappings=ids, **more)


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("mapped", hostname="mapped", userns=userns())


@pytest.fixture
def run(cri, pod, busybox, request):
    """Return a function that starts a container which sleeps, and gives what runs commands in it."""
    made: list[str] = []

    def start(command="sleep 1000", of="", image="", **options):
        name = f"c{abs(hash(request.node.name)) & 0xFFFFFF}-{len(made)}"
        made.append(cri.create(of or pod, cri.container_config(name, command, image=image or busybox, **options)))
        cri.start(made[-1])
        return functools.partial(cri.shell, made[-1])

    yield start
    for id in made:
        cri.remove(id)


def pid_of(cri, id):
    request = pb.ContainerStatusRequest(container_id=id, verbose=True)
    return json.loads(cri.runtime.ContainerStatus(request, timeout=TIMEOUT_S).info["info"])["pid"]


def test_a_kubelet_is_told_that_there_are_user_namespaces(cri):
    found = cri.runtime.Status(pb.StatusRequest(), timeout=TIMEOUT_S)
    assert {one.name: one.features.user_namespaces for one in found.runtime_handlers} == {"": True, "runc": True}
    assert found.features.user_namespaces_host_network


def test_root_inside_is_another_outside_and_all_namespaces_are_its_own(cri, pod, run):
    inside = run()
    assert inside("cat /proc/self/uid_map /proc/self/gid_map").split() == ["0", str(FIRST), str(LENGTH)] * 2
    [container] = cri.containers(pod_sandbox_id=pod, state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING))
    pid, pause = pid_of(cri, container.id), json.loads(cri.pod_status(pod, verbose=True).info["info"])["pid"]
    for process in (pid, pause):
        status = Path(f"/proc/{process}/status").read_text()
        assert f"Uid:\t{FIRST}\t" in status
        assert f"Gid:\t{FIRST}\t" in status
    users = {Path(f"/proc/{process}/ns/user").readlink() for process in (pid, pause)}
    assert len(users) == 1
    assert Path("/proc/self/ns/user").readlink() not in users
    # The network is its own as well: it can be configured, and its sysfs shows it.
    assert "eth0" in inside("ls /sys/class/net")
    added = run(security={"capabilities": pb.Capability(add_capabilities=["NET_ADMIN"])})
    assert added("ip link add d0 type dummy 2>&1; ip addr add 10.99.0.1/32 dev lo && echo done").endswith("done\n")
    # A cgroup in its place, and not just any (CVE-2025-47291).
    assert f"{cri.daemon.cgroup_parent}/{container.id}" in Path(f"/proc/{pid}/cgroup").read_text()


def test_files_of_the_image_and_the_pod_belong_to_root_inside(cri, pod, run):
    inside = run()
    owners = inside("stat -c '%u:%g %n' / /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm")
    assert owners == "".join(
        f"0:0 {path}\n" for path in ("/", "/bin/busybox", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm")
    )
    assert inside("cat /etc/hostname; grep -c mapped /etc/hosts; echo x > /dev/shm/x && cat /dev/shm/x") == (
        "mapped\n1\nx\n"
    )
    assert inside("echo '10.9.9.9 more' >> /etc/hosts && touch /new && chown 7:8 /new && stat -c %u:%g /new") == "7:8\n"
    assert "Permission denied" in inside("echo x > /proc/sys/kernel/panic; true")


def test_what_it_writes_is_the_hosts_in_no_ones_name(cri, pod, run, tmp_path):
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "roots").write_text("secret\n")
    (volume / "roots").chmod(0o600)
    (tmp_path / "file").write_text("a file\n")
    plain = tmp_path / "plain"
    plain.mkdir()
    inside = run(
        mounts=[
            mapped(volume, "/volume"),
            mapped(volume, "/read", readonly=True),
            mapped(tmp_path / "file", "/one-file"),
            pb.Mount(host_path=str(plain), container_path="/plain"),
        ]
    )
    assert inside("stat -c %u:%g /volume/roots /one-file /plain; cat /volume/roots /one-file") == (
        "0:0\n0:0\n65534:65534\nsecret\na file\n"
    )
    assert inside("echo mine > /volume/new && chown 5:6 /volume/new && chmod 4755 /volume/new && echo done") == "done\n"
    new = (volume / "new").stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (5, 6, 0o4755)
    assert "Read-only" in inside("touch /read/x 2>&1; true")
    assert "denied" in inside("touch /plain/x 2>&1; true")
    # The mounts that did it are gone: the volume is busy only by the container.
    assert not list((cri.daemon.state / "cri/mapped").glob("*"))
    assert not re.search("cri/mapped", Path("/proc/self/mountinfo").read_text())


def test_a_volume_in_memory_is_mapped(cri, pod, run, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", tmp_path], check=True)
    try:
        (tmp_path / "token").write_text("token\n")
        assert run(mounts=[mapped(tmp_path, "/secrets")])("stat -c %u /secrets/token; cat /secrets/token") == (
            "0\ntoken\n"
        )
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_volume_whose_file_system_maps_nothing_is_refused_and_leaves_nothing(cri, pod, busybox):
    config = cri.container_config("unmappable", "sleep 1", image=busybox, mounts=[mapped("/proc/sys", "/x")])
    id = cri.create(pod, config)
    with pytest.raises(grpc.RpcError, match="mount /x: the file system of /proc/sys has no ID-mapped mounts") as failed:
        cri.start(id)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert cri.status(id).reason == "StartError"
    cri.remove(id)
    assert not list((cri.daemon.state / "cri/mapped").glob("*"))


def test_streams_can_be_opened_by_their_names_and_logs_are_written(cri, pod, busybox, run):
    id = cri.create(pod, cri.container_config("named", "echo by name > /dev/stdout; sleep 1000", image=busybox))
    cri.start(id)
    log = cri.logs / "mapped" / "named.log"
    run()  # something that takes as long as the line may
    assert "stdout F by name" in log.read_text()
    assert log.stat().st_uid == 0
    cri.remove(id)
    other = run("echo as another > /dev/stderr; sleep 1000", security={"run_as_user": pb.Int64Value(value=1000)})
    assert other("id -u; echo again > /dev/stdout") == "1000\nagain\n"


@pytest.fixture(scope="module")
def image(registry, tmp_path_factory):
    """An image with files of many owners, a volume, and no mercy."""
    root = tmp_path_factory.mktemp("owners")
    busybox_layout(root / "busybox")
    layout = Layout(root / "layout")
    base = layout.layer({"bin/busybox": Path(os.path.realpath("/bin/busybox")).read_bytes(), "bin/sh": "busybox"})
    files = {"data/file": b"of the image", "etc/passwd": b"root:x:0:0:::\nalice:x:1000:1001:::\n"}
    layout.image(
        NAME,
        [base, layout.layer(files)],
        platform=PLATFORM,
        run={"Env": ["PATH=/bin"], "Volumes": {"/data": {}, "/none": {}}, "User": "alice"},
    )
    return registry.push(layout.root, "userns/owners:1", source=NAME)


def test_volumes_of_the_image_and_images_as_volumes_belong_to_it_too(cri, pod, run, image):
    cri.pull(image)
    mounts = [pb.Mount(container_path="/other", image=pb.ImageSpec(image=image), readonly=True)]
    root = {"run_as_user": pb.Int64Value(value=0)}
    inside = run(image=image, mounts=mounts, security=root)
    assert inside("stat -c %u:%g /data /data/file /none /other/data/file; cat /data/file /other/data/file") == (
        "0:0\n" * 4 + "of the image" * 2
    )
    assert inside("echo x > /none/x && stat -c %u /none/x") == "0\n"
    assert run(image=image)("id -u; id -g") == "1000\n1001\n"


def test_on_the_hosts_network_with_ids_of_its_own(cri, busybox, run):
    pod = cri.run_pod("host", network=pb.NODE, userns=userns())
    inside = run(of=pod)
    assert inside("cat /proc/self/uid_map").split() == ["0", str(FIRST), str(LENGTH)]
    shown = set(inside("ls /sys/class/net").split())
    assert shown == {path.name for path in Path("/sys/class/net").iterdir()}
    cri.remove_pod(pod)


def test_a_privileged_container_has_devices_and_all_capabilities_of_its_own_namespace(cri, busybox, run):
    pod = cri.run_pod("privileged", privileged=True, userns=userns())
    inside = run(of=pod, security={"privileged": True})
    assert inside("mount -t tmpfs x /dev/shm && echo mounted; cat /proc/self/uid_map").split() == (
        ["mounted", "0", str(FIRST), str(LENGTH)]
    )
    assert "Operation not permitted" in inside("mknod /null c 1 3 2>&1; true")
    cri.remove_pod(pod)


@pytest.mark.parametrize("mode", ["pid", "ipc"])
def test_it_cannot_share_what_is_not_its_own(cri, mode):
    with pytest.raises(grpc.RpcError, match=f"cannot use the host's {mode} namespace") as failed:
        cri.run_pod("shares", userns=userns(), **{mode: pb.NODE})
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_does_not_fit_the_pod_is_refused(cri, pod, busybox):
    def create(options, **more):
        config = cri.container_config("misfit", "true", image=busybox, **more)
        config.linux.security_context.namespace_options.userns_options.CopyFrom(options)
        with pytest.raises(grpc.RpcError) as failed:
            cri.create(pod, config)
        return failed.value

    for other in (userns(FIRST + LENGTH), userns(length=10), pb.UserNamespace(mode=pb.NODE)):
        error = create(other)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "must be the same" in error.details()
    error = create(userns(), security={"run_as_user": pb.Int64Value(value=LENGTH)})
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"user {LENGTH}" in error.details()
    config = cri.container_config("same", "true", image=busybox)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(userns())
    cri.remove(cri.create(pod, config))
    assert not [one for one in cri.containers() if one.metadata.name == "misfit"]


def test_pods_do_not_see_each_other(cri, pod, busybox, run):
    other = cri.run_pod("other", userns=userns(FIRST + LENGTH))
    assert run(of=other)("cat /proc/self/uid_map").split() == ["0", str(FIRST + LENGTH), str(LENGTH)]
    cri.remove_pod(other)
    assert len(list((cri.daemon.state / "userns").iterdir())) == 1


def test_they_go_on_after_the_daemon_and_leave_nothing(cri, pod, busybox, run):
    own = cri.run_pod("restarted", userns=userns())
    run(of=own)
    left = cri.daemon.state / "cri/mapped/interrupted/0"  # of a start that the daemon did not live to see the end of
    left.mkdir(parents=True)
    subprocess.run(["mount", "--bind", "/usr", left], check=True)
    cri.daemon.kill()
    cri.daemon.start()
    cri.reconnect()
    assert run(of=own)("cat /proc/self/uid_map").split() == ["0", str(FIRST), str(LENGTH)]
    assert not list(left.parent.parent.glob("*"))
    cri.stop_pod(own)
    assert not (cri.daemon.state / "userns" / own).exists()
    cri.remove_pod(own)


def test_a_snapshotter_that_maps_nothing_has_none(busybox):
    with cri_daemon('[cri]\nsnapshotter = "native"\n') as cri:
        cri.write_network()
        found = cri.runtime.Status(pb.StatusRequest(), timeout=TIMEOUT_S)
        assert not any(one.features.user_namespaces for one in found.runtime_handlers)
        assert not found.features.user_namespaces_host_network
        with pytest.raises(grpc.RpcError, match="'runc' has no user namespaces") as failed:
            cri.run_pod("none", userns=userns())
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert not cri.pods()
