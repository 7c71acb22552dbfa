"""The spec that a container of an image gets."""

import json

import pytest

from runtimed.errors import InvalidArgument
from runtimed.oci.container_spec import ALL_CAPABILITIES, DEFAULT_PATH, Options, container_spec
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import ConsoleSize, Device, Mount, User

IMAGE = Execution(entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/bin", "X=1"), working_dir="/srv")


def spec_of(image=IMAGE, **options):
    """The spec as the runtime reads it."""
    return json.loads(container_spec(image, Options(cgroups_path="/runtimed/test/c1", **options)).encode())


def test_the_image_says_what_runs_and_where():
    process = spec_of()["process"]
    assert process["args"] == ["/entry", "a", "b"]
    assert process["env"] == ["PATH=/bin", "X=1"]
    assert process["cwd"] == "/srv"
    assert process["user"] == {"uid": 0, "gid": 0}


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({"args": ["c"]}, ["/entry", "c"]),
        ({"entrypoint": ["/other"]}, ["/other"]),
        ({"entrypoint": ["/other"], "args": ["c"]}, ["/other", "c"]),
        ({"entrypoint": [], "args": ["c"]}, ["c"]),
    ],
)
def test_options_replace_the_images_command(options, args):
    assert spec_of(**options)["process"]["args"] == args


def test_an_image_of_gos_nulls_runs_what_it_is_given():
    process = spec_of(Execution(), args=["sh"])["process"]
    assert (process["args"], process["cwd"]) == (["sh"], "/")
    assert process["env"] == [DEFAULT_PATH]


def test_nothing_to_run_is_refused_with_the_remedy():
    with pytest.raises(InvalidArgument, match="no command to run; give one"):
        spec_of(Execution())


def test_the_users_environment_wins_and_keeps_the_place():
    assert spec_of(env=["X=2", "Y=", "X=3"])["process"]["env"] == ["PATH=/bin", "X=3", "Y="]


def test_a_terminal_has_its_size_and_type():
    process = spec_of(terminal=True, console_size=ConsoleSize(height=24, width=80))["process"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in process["env"]


@pytest.mark.parametrize("cwd", ["srv", "/a\nroot:x:0:0", "/proc/self/fd/7", "/x/../proc/1/cwd", "//proc/self/cwd"])
def test_a_hostile_working_directory_is_refused(cwd):
    with pytest.raises(InvalidArgument, match="working directory"):
        spec_of(Execution(cmd=("sh",), working_dir=cwd))


@pytest.mark.parametrize("entry", ["", "=x", "A=b\0c"])
def test_an_environment_entry_that_cannot_be_is_refused(entry):
    with pytest.raises(InvalidArgument, match="environment entry"):
        spec_of(env=[entry])


def test_capabilities_are_dockers_fourteen_and_none_is_inheritable():
    capabilities = spec_of()["process"]["capabilities"]
    assert set(capabilities) == {"bounding", "effective", "permitted"}
    assert all(len(names) == 14 for names in capabilities.values())
    assert "CAP_SYS_ADMIN" not in capabilities["bounding"]


def test_the_default_is_closed():
    spec = spec_of()
    assert spec["process"]["noNewPrivileges"] is True
    assert spec["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert {n["type"] for n in spec["linux"]["namespaces"]} == {"pid", "ipc", "uts", "mount", "network"}
    by_place = {mount["destination"]: mount for mount in spec["mounts"]}
    assert {"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"} == set(by_place)
    assert "ro" in by_place["/sys"]["options"]


def test_nothing_of_an_image_becomes_an_annotation_a_hook_or_a_mount():
    hostile = Execution(cmd=("sh",), labels={"io.containerd.runc.v2.group": "x"}, volumes={})
    spec = spec_of(hostile)
    assert {"annotations", "hooks"} & set(spec) == set()
    assert len(spec["mounts"]) == 7


def test_privileged_opens_what_the_default_closes():
    device = Device(path="/dev/x", type="c", major=1, minor=2, file_mode=0o600, uid=0, gid=0)
    spec = spec_of(privileged=True, devices=[device], capabilities=ALL_CAPABILITIES)
    assert "maskedPaths" not in spec["linux"]
    assert "noNewPrivileges" not in spec["process"]
    assert spec["linux"]["devices"] == [
        {"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 384, "uid": 0, "gid": 0}
    ]
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert len(spec["process"]["capabilities"]["bounding"]) == 41


def test_limits_are_in_the_kernels_units():
    resources = spec_of(memory=64 << 20, cpus=1.5, pids=10)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 10}


@pytest.mark.parametrize(
    "limit", [{"memory": 1000}, {"cpus": 0.0}, {"cpus": float("nan")}, {"cpus": 1e30}, {"pids": 0}]
)
def test_a_limit_that_cannot_work_is_refused(limit):
    with pytest.raises(InvalidArgument):
        spec_of(**limit)


def test_what_is_asked_for_is_there():
    bind = Mount(destination="/data", type="bind", source="/srv/data", options=("rbind", "ro"))
    user = User(uid=7, gid=8, additional_gids=(9,))
    spec = spec_of(
        mounts=[bind],
        user=user,
        hostname="box",
        read_only=True,
        host_network=True,
        cgroup_namespace=True,
        cwd="/tmp/..",
    )
    assert spec["mounts"][-1]["destination"] == "/data"
    assert spec["process"]["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
    assert spec["process"]["cwd"] == "/"
    assert spec["hostname"] == "box"
    assert spec["root"] == {"path": "rootfs", "readonly": True}
    types = {namespace["type"] for namespace in spec["linux"]["namespaces"]}
    assert "network" not in types
    assert "cgroup" in types
    assert spec["linux"]["cgroupsPath"] == "/runtimed/test/c1"
