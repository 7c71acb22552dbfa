"""Who containers run as and what they may do, seen from inside."""

import os
import stat
from pathlib import Path

import grpc
import pytest

from runtimed.api import cri_pb2 as pb
from tests.cri import TIMEOUT_S, cri_daemon
from tests.images.busybox import NAME, PLATFORM
from tests.images.busybox import busybox as busybox_layout
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def pod(cri):
    return cri.run_pod("pod", network=pb.NODE, privileged=True, hostname="")


@pytest.fixture(scope="module")
def image(registry, tmp_path_factory):
    """Return a function that pushes busybox with more files and another configuration."""

    def push(name, files, **run):
        root = tmp_path_factory.mktemp(name)
        busybox_layout(root / "busybox")
        binary = os.path.realpath("/bin/busybox")
        layout = Layout(root / "layout")
        with open(binary, "rb") as file:  # noqa: PTH123
            base = layout.layer({"bin/busybox": file.read(), "bin/sh": "busybox"})
        layout.image(NAME, [base, layout.layer(files)], platform=PLATFORM, run={"Env": ["PATH=/bin"], **run})
        return registry.push(layout.root, f"security/{name}:1", source=NAME)

    return push


class Inside:
    """Called with a shell command, runs it in a new container and returns what it wrote; the containers are *made*."""

    def __init__(self, cri, pod, image, name):
        self.made: list[str] = []
        self._cri, self._pod, self._image, self._name = cri, pod, image, name

    def __call__(self, command, image="", of="", **options):
        cri = self._cri
        name = f"{self._name}-{len(self.made)}"
        id = cri.create(
            of or self._pod, cri.container_config(name, "sleep 1000", image=image or self._image, **options)
        )
        self.made.append(id)
        cri.start(id)
        words = ["/bin/busybox", "sh", "-c", command]
        request = pb.ExecSyncRequest(container_id=id, cmd=words, timeout=20)
        done = cri.runtime.ExecSync(request, timeout=TIMEOUT_S)
        return done.stdout.decode() + done.stderr.decode()


@pytest.fixture
def inside(cri, pod, busybox, request):
    """What runs commands in containers that go after the test."""
    made = Inside(cri, pod, busybox, f"c{hash(request.node.name) & 0xFFFF}")
    yield made
    for id in made.made:
        cri.remove(id)


def value(number):
    return pb.Int64Value(value=number)


def refused(call, message, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(grpc.RpcError) as failed:
        call()
    assert failed.value.code() is code
    assert message in str(failed.value)


def numbers(status, name):
    return next(line.split()[1:] for line in status.splitlines() if line.startswith(f"{name}:"))


FILES = {
    "etc/passwd": b"root:x:0:0:::\nalice:x:1000:1001:::\n",
    "etc/group": b"root:x:0:\nwheel:x:10:root,alice\nalice:x:1001:\ndev:x:1002:alice\n",
}


@pytest.mark.parametrize(
    ("security", "uid", "gid", "groups"),
    [
        ({}, 1000, 1001, [1001, 10, 1002]),
        ({"run_as_user": 0}, 0, 0, [0, 10]),
        ({"run_as_username": "alice", "run_as_group": 7}, 1000, 7, [7, 10, 1002]),
        ({"run_as_user": 1000, "supplemental_groups": [5]}, 1000, 1001, [1001, 10, 1002, 5]),
        (
            {"run_as_user": 1000, "supplemental_groups": [5], "supplemental_groups_policy": pb.Strict},
            1000,
            1001,
            [1001, 5],
        ),
        ({"run_as_user": 4242}, 4242, 0, [0]),
    ],
)
def test_the_identity_is_the_requests_or_the_images(cri, inside, image, security, uid, gid, groups):
    name = image("users", FILES, User="alice")
    cri.pull(name)
    given = {key: value(found) if key in ("run_as_user", "run_as_group") else found for key, found in security.items()}
    status = inside("cat /proc/self/status", image=name, security=given)
    assert numbers(status, "Uid")[0] == str(uid)
    assert numbers(status, "Gid")[0] == str(gid)
    assert sorted(map(int, numbers(status, "Groups"))) == sorted(groups)
    told = cri.status(inside.made[-1]).user.linux
    assert (told.uid, told.gid, sorted(told.supplemental_groups)) == (uid, gid, sorted(groups))


def test_an_identity_that_cannot_be_is_refused(inside):
    refused(lambda: inside("", security={"run_as_group": value(5)}), "run_as_group needs")
    refused(lambda: inside("", security={"run_as_user": value(1 << 31)}), "not between 0 and")
    refused(lambda: inside("", security={"run_as_user": value(-1)}), "not between 0 and")
    refused(
        lambda: inside("", security={"run_as_username": "nobody-here"}), "not in the image", grpc.StatusCode.NOT_FOUND
    )
    assert not inside.made


def test_capabilities_are_added_and_dropped(inside):
    def effective(**given):
        status = inside("cat /proc/self/status", security={"capabilities": pb.Capability(**given)})
        return int(numbers(status, "CapEff")[0], 16)

    chown, net_admin, net_raw = 1, 1 << 12, 1 << 13
    base = effective()
    assert base & chown
    assert base & net_raw
    assert not base & net_admin
    assert effective(add_capabilities=["NET_ADMIN"]) == base | net_admin
    assert effective(drop_capabilities=["CAP_NET_RAW"]) == base & ~net_raw
    assert effective(drop_capabilities=["ALL"]) == 0
    assert effective(drop_capabilities=["all"], add_capabilities=["net_admin"]) == net_admin
    refused(lambda: effective(add_capabilities=["NONSENSE"]), "no capability 'NONSENSE'")


def test_ambient_capabilities_reach_other_users(inside):
    status = inside(
        "cat /proc/self/status",
        security={
            "run_as_user": value(1000),
            "capabilities": pb.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"]),
        },
    )
    assert int(numbers(status, "CapAmb")[0], 16) == int(numbers(status, "CapEff")[0], 16) == 1 << 10


def test_a_raw_socket_takes_its_capability(inside):
    ping = "ping -c1 -W2 127.0.0.1"
    assert "1 packets received" in inside(ping)
    assert "1 packets received" not in inside(
        ping, security={"capabilities": pb.Capability(drop_capabilities=["NET_RAW"])}
    )


def test_a_privileged_container_takes_a_privileged_pod_and_has_the_machines_devices(cri, inside, busybox):
    plain = cri.run_pod("plain", network=pb.NODE)
    refused(
        lambda: inside("", of=plain, security={"privileged": True}),
        "not privileged itself",
        grpc.StatusCode.PERMISSION_DENIED,
    )
    cri.remove_pod(plain)
    said = inside(
        "cat /proc/self/status; ls /dev; cd /sys/fs/cgroup; [ ! -d pids ] || cd pids; mkdir x && rmdir x && echo w",
        security={"privileged": True, "seccomp": pb.SecurityProfile()},
    )
    assert int(numbers(said, "CapEff")[0], 16) & 1 << 21
    assert numbers(said, "Seccomp") == ["0"]
    of_machine = {path.name for path in Path("/dev").iterdir() if stat.S_ISCHR(path.lstat().st_mode)}
    assert {"null", *(of_machine - {"console", "ptmx"})} <= set(said.split())
    assert said.endswith("w\n")


def test_seccomp_is_the_default_none_or_a_file(inside, tmp_path):
    def mode(**given):
        said = inside("cat /proc/self/status; unshare -m true; mount -t tmpfs x /tmp", security=given)
        return numbers(said, "Seccomp")[0], said

    default = pb.SecurityProfile()
    assert mode(seccomp=default)[0] == "2"
    assert "unshare: unshare(0x" in mode(seccomp=default)[1]
    assert mode()[0] == "0"
    assert mode(seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined))[0] == "0"
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
                       ' "action": "SCMP_ACT_ERRNO"}]}')  # fmt: skip
    local = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(profile))
    assert "not permitted" in inside("mkdir /tmp/x", security={"seccomp": local})
    local.localhost_ref = str(tmp_path / "none")
    with pytest.raises(grpc.RpcError, match="none"):
        inside("", security={"seccomp": local})


def test_with_the_default_profile_programs_work_and_sysadmin_may_mount(inside):
    assert inside("ls / | head -1; (echo sub); sleep 0 & wait; echo done", security={"seccomp": pb.SecurityProfile()})
    said = inside(
        "mount -t tmpfs x /tmp && echo mounted",
        security={"seccomp": pb.SecurityProfile(), "capabilities": pb.Capability(add_capabilities=["SYS_ADMIN"])},
    )
    assert said == "mounted\n"


def test_paths_are_masked_and_read_only_as_the_request_says(inside):
    said = inside(
        "cat /proc/timer_list | wc -c; echo x > /proc/sys/kernel/domainname; touch /new",
        security={"masked_paths": ["/proc/timer_list"], "readonly_paths": ["/proc/sys"], "readonly_rootfs": True},
    )
    assert said.startswith("0\n")
    assert said.count("Read-only file system") == 2


def test_no_new_privileges(inside):
    assert numbers(inside("cat /proc/self/status", security={"no_new_privs": True}), "NoNewPrivs") == ["1"]
    assert numbers(inside("cat /proc/self/status"), "NoNewPrivs") == ["0"]


def test_devices_are_made_with_their_permissions(inside, tmp_path):
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(240, 99))  # that no driver has
    device = pb.Device(host_path=str(node), container_path="/dev/given", permissions="r")
    said = inside("cat /dev/given; echo x > /dev/given", devices=[device])
    assert [line.rpartition(": ")[2] for line in said.splitlines()] == [
        "No such device or address",
        "Operation not permitted",
    ]
    (tmp_path / "file").touch()
    for bad in (
        pb.Device(host_path="/dev/none", container_path="/dev/none"),
        pb.Device(host_path="/dev/zero", container_path="/dev/z", permissions="z"),
        pb.Device(host_path=str(tmp_path / "file"), container_path="/dev/z"),
    ):
        with pytest.raises(grpc.RpcError):
            inside("", devices=[bad])


def test_mounts_are_as_the_request_says(inside, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_text("data\n")
    (tmp_path / "link").symlink_to("sub")

    def mounted(command, **fields):
        mount = pb.Mount(container_path="/m", **{"host_path": str(tmp_path), **fields})
        return inside(command, mounts=[mount])

    assert mounted("cat /m/file; echo w > /m/written") == "data\n"
    assert (tmp_path / "written").read_text() == "w\n"
    assert "Read-only" in mounted("touch /m/x", readonly=True)
    assert "Read-only" in mounted("touch /m/x", readonly=True, recursive_read_only=True)
    mounted("touch /m/through-link", host_path=str(tmp_path / "link"))
    assert (tmp_path / "sub/through-link").exists()
    mounted("true", host_path=str(tmp_path / "made/here"))
    assert (tmp_path / "made/here").is_dir()
    refused(lambda: mounted("", recursive_read_only=True), "needs readonly")
    refused(
        lambda: mounted("", readonly=True, recursive_read_only=True, propagation=pb.PROPAGATION_HOST_TO_CONTAINER),
        "private propagation",
    )
    with pytest.raises(grpc.RpcError):
        mounted("", host_path="")


def test_pid_namespaces_are_the_pods_the_containers_the_machines_or_anothers(cri, inside):
    first = "readlink /proc/1/exe; cat /proc/1/cmdline | tr '\\0' ' '"
    assert "/pause" in inside(first, pid=pb.POD)
    assert "sleep" in inside(first, pid=pb.CONTAINER)
    on_host = cri.run_pod("on-host", network=pb.NODE, pid=pb.NODE)
    own = inside("readlink /proc/self/ns/pid", of=on_host, pid=pb.NODE)
    assert own.strip() == os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    target = inside("readlink /proc/self/ns/pid", pid=pb.CONTAINER)
    assert inside("readlink /proc/self/ns/pid", pid=pb.TARGET, target=inside.made[-1]) == target
    refused(lambda: inside("", pid=pb.TARGET, target="f" * 64), "container", grpc.StatusCode.NOT_FOUND)


def test_volumes_of_the_image_begin_with_what_it_has_there(cri, inside, image, tmp_path):
    files = {"data/file": b"from the image\n"}
    name = image("volumes", files, Volumes={"/data": {}, "/fresh": {}, "/over": {}})
    cri.pull(name)
    mount = pb.Mount(container_path="/over", host_path=str(tmp_path))
    said = inside("cat /data/file; echo x > /data/new; echo y > /fresh/new; cat /data/new; mount | grep -c ' /over '",
                  image=name, mounts=[mount])  # fmt: skip
    assert said == "from the image\nx\n1\n"
    directory = cri.daemon.root / "cri/containers" / inside.made[-1]
    assert sorted(path.name for path in directory.glob("volumes/*/*")) == ["file", "new", "new"]
    cri.remove(inside.made.pop())
    assert not directory.exists()


@pytest.mark.parametrize("volume", ["/", "/proc/self", "a\0b"])
def test_a_volume_that_is_no_place_for_one_is_refused(cri, inside, image, volume):
    name = image("hostile", {}, Volumes={volume: {}})
    cri.pull(name)
    with pytest.raises(grpc.RpcError):
        inside("", image=name)


def test_volumes_whose_path_leads_elsewhere_stay_inside(cri, inside, image, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("the machine's")
    name = image("leading", {"leads": str(tmp_path), "up": "../../../../.."}, Volumes={"/leads": {}, "/../up/x": {}})
    cri.pull(name)
    inside("touch /leads/new /up/x/new; ls /leads", image=name)
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"etc/passwd": "/proc/kmsg"}, "in numbers"),
        ({"etc/passwd": b"x" * (5 << 20)}, "larger than"),
    ],
)
def test_hostile_files_of_users_are_not_read(cri, inside, image, files, message):
    name = image("passwd", files, User="alice")
    cri.pull(name)
    with pytest.raises(grpc.RpcError) as failed:
        inside("", image=name)
    assert failed.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert not inside.made


def test_only_annotations_that_are_let_through_reach_the_runtime(busybox):
    table = '[cri.runtimes.other]\npod_annotations = ["pod.*"]\ncontainer_annotations = ["own.*"]\n'
    with cri_daemon(table) as cri:
        cri.pull(busybox)
        pod = cri.run_pod("pod", handler="other", network=pb.NODE, annotations={"pod.a": "1", "io.hooks": "evil"})
        config = cri.container_config("c", "true", image=busybox, annotations={"own.b": "2", "run.oci.hooks": "evil"})
        id = cri.create(pod, config)
        cri.daemon.namespace, own = "k8s.io", cri.daemon.namespace
        try:
            info = cri.daemon.ctr("containers", "info", id).stdout
        finally:
            cri.daemon.namespace = own
        assert '"own.b": "2"' in info
        assert '"pod.a": "1"' in info
        assert "evil" not in info.partition('"Spec"')[2]


def test_an_image_is_mounted_read_only_with_its_digest_in_the_status(cri, inside, image):
    name = image("mounted", {"models/one": b"weights\n", "escape": "/etc"})
    id = cri.pull(name)

    def mount(**fields):
        return pb.Mount(container_path="/model", image=pb.ImageSpec(image=name), readonly=True, **fields)

    said = inside("cat /model/models/one; touch /model/x; /model/bin/busybox echo runs", mounts=[mount()])
    assert said.startswith("weights\n")
    assert "runs\n" in said  # not noexec
    assert "Read-only" in said
    [told] = cri.status(inside.made[-1]).mounts
    assert told.image.image_ref == id
    assert inside("cat /model/one", mounts=[mount(image_sub_path="models")]) == "weights\n"
    for bad in (
        mount(image_sub_path="none"),
        mount(image_sub_path="../etc"),
        mount(image_sub_path="escape/passwd"),
        pb.Mount(container_path="/model", image=pb.ImageSpec(image=name)),
    ):
        with pytest.raises(grpc.RpcError):
            inside("", mounts=[bad])
    for made in [inside.made.pop() for _ in list(inside.made)]:
        cri.remove(made)
    assert not list((cri.daemon.state / "cri/containers").iterdir())
