"""Every field of an adjustment, done to an OCI runtime spec."""

import pytest

from runtimed.api import nri_pb2 as pb
from runtimed.cri import nri_messages
from runtimed.nri import resources
from runtimed.nri.spec import adjusted
from runtimed.nri.synchronizing import pieces


def spec():
    return {
        "process": {
            "args": ["run"],
            "env": ["A=1", "B=2"],
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 1, "soft": 1}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
            {"destination": "/data", "type": "bind", "source": "/one", "options": ["rbind"]},
        ],
        "annotations": {"a": "1", "b": "2"},
        "linux": {
            "namespaces": [{"type": "ipc", "path": "/x"}, {"type": "uts", "path": "/y"}, {"type": "pid"}],
            "devices": [{"path": "/dev/a", "type": "c", "major": 10, "minor": 1}],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rwm"},
                ],
                "cpu": {"shares": 5, "quota": 7},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
            },
            "sysctl": {"kernel.msgmax": "1"},
            "intelRdt": {"closID": "old"},
        },
    }


def adjust(**fields):
    return adjusted(spec(), pb.ContainerAdjustment(**fields))


def linux(**fields):
    return adjust(linux=pb.LinuxContainerAdjustment(**fields))


def test_nothing_wanted_changes_nothing():
    assert adjust() == spec()


def test_process():
    changed = adjust(
        args=["other", "x"],
        env=[pb.KeyValue(key="-A"), pb.KeyValue(key="B", value="3"), pb.KeyValue(key="C", value="4=5")],
        rlimits=[
            pb.POSIXRlimit(type="-RLIMIT_CORE"),
            pb.POSIXRlimit(type="RLIMIT_NOFILE", hard=9, soft=8),
        ],
    )["process"]
    assert changed == {
        "args": ["other", "x"],
        "env": ["B=3", "C=4=5"],
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}],
    }


def test_annotations_and_mounts():
    changed = adjust(
        annotations={"-a": "", "b": "3"},
        mounts=[
            pb.Mount(destination="-/proc"),
            pb.Mount(destination="/data/below", type="tmpfs", source="tmpfs"),
            pb.Mount(destination="/data", type="bind", source="/two", options=["rbind", "rslave"]),
        ],
    )
    assert changed["annotations"] == {"b": "3"}
    assert [(one["destination"], one["source"]) for one in changed["mounts"]] == [
        ("/data", "/two"),
        ("/data/below", "tmpfs"),
    ]
    assert changed["linux"]["rootfsPropagation"] == "rslave"
    shared = adjust(mounts=[pb.Mount(destination="/s", source="/s", type="bind", options=["rbind", "rshared"])])
    assert shared["linux"]["rootfsPropagation"] == "rshared"


def test_hooks():
    hook = pb.Hook(path="/h", args=["h", "x"], env=["A=1"], timeout=pb.OptionalInt(value=3))
    names = ["prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop"]
    changed = adjust(hooks=pb.Hooks(**{name: [hook] for name in names}))["hooks"]
    made = {"path": "/h", "args": ["h", "x"], "env": ["A=1"], "timeout": 3}
    ours = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    assert changed == {name: [made] for name in ours}


def test_devices_come_with_their_rules_and_go_with_them():
    new = pb.LinuxDevice(
        path="/dev/b",
        type="b",
        major=8,
        minor=0,
        file_mode=pb.OptionalFileMode(value=0o600),
        uid=pb.OptionalUInt32(value=1),
        gid=pb.OptionalUInt32(value=0),
    )
    changed = linux(devices=[pb.LinuxDevice(path="-/dev/a"), new])["linux"]
    assert changed["devices"] == [
        {"path": "/dev/b", "type": "b", "major": 8, "minor": 0, "fileMode": 0o600, "uid": 1, "gid": 0}
    ]
    assert changed["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
    ]


def test_resources():
    wanted = pb.LinuxResources(
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=9)], unified={"memory.high": "1"}
    )
    memory = {"limit": 10, "reservation": 9, "swap": 20, "kernel": 3, "kernel_tcp": 4, "swappiness": 60}
    for name, value in memory.items():
        getattr(wanted.memory, name).value = value
    wanted.memory.disable_oom_killer.value = wanted.memory.use_hierarchy.value = True
    for name, value in {"shares": 50, "period": 100, "realtime_runtime": 5, "realtime_period": 6}.items():
        getattr(wanted.cpu, name).value = value
    wanted.cpu.cpus, wanted.cpu.mems, wanted.pids.limit = "0-1", "0", 33
    changed = linux(resources=wanted)["linux"]["resources"]
    assert changed.pop("devices") == spec()["linux"]["resources"]["devices"]
    assert changed == {
        "memory": {
            **{"limit": 10, "reservation": 9, "swap": 20, "kernel": 3, "kernelTCP": 4, "swappiness": 60},
            **{"disableOOMKiller": True, "useHierarchy": True},
        },
        "cpu": {
            **{"shares": 50, "quota": 7, "period": 100, "realtimeRuntime": 5, "realtimePeriod": 6},
            **{"cpus": "0-1", "mems": "0"},
        },
        "pids": {"limit": 33},
        "hugepageLimits": [{"pageSize": "1GB", "limit": 2}, {"pageSize": "2MB", "limit": 9}],
        "unified": {"memory.high": "1"},
    }
    told = resources.from_oci(changed)
    wanted.cpu.quota.value = 7
    wanted.hugepage_limits.insert(0, pb.HugepageLimit(page_size="1GB", limit=2))
    assert told == wanted


def test_the_rest_of_linux():
    changed = linux(
        cgroups_path="/moved",
        oom_score_adj=pb.OptionalInt(value=0),
        io_priority=pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_IDLE, "priority": 2}),
        namespaces=[pb.LinuxNamespace(type="-ipc"), pb.LinuxNamespace(type="uts")],
        sysctl={"-kernel.msgmax": "", "net.core.somaxconn": "9"},
        net_devices={"eth7": pb.LinuxNetDevice(name="eth0"), "eth8": pb.LinuxNetDevice()},
        scheduler=pb.LinuxScheduler(policy=pb.SCHED_FIFO, priority=4, flags=[pb.SCHED_FLAG_RESET_ON_FORK]),
        memory_policy=pb.LinuxMemoryPolicy(mode=pb.MPOL_BIND, nodes="0", flags=[pb.MPOL_F_STATIC_NODES]),
        rdt=pb.LinuxRdt(
            schemata=pb.OptionalRepeatedString(value=["L3:0=f"]), enable_monitoring=pb.OptionalBool(value=True)
        ),
    )
    assert changed["process"]["oomScoreAdj"] == 0
    assert changed["process"]["ioPriority"] == {"class": "IOPRIO_CLASS_IDLE", "priority": 2}
    assert changed["process"]["scheduler"] == {
        "policy": "SCHED_FIFO", "priority": 4, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}  # fmt: skip
    found = changed["linux"]
    assert found["cgroupsPath"] == "/moved"
    assert found["namespaces"] == [{"type": "pid"}, {"type": "uts"}]
    assert found["sysctl"] == {"net.core.somaxconn": "9"}
    assert found["netDevices"] == {"eth7": {"name": "eth0"}, "eth8": {}}
    assert found["memoryPolicy"] == {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    assert found["intelRdt"] == {"closID": "old", "schemata": ["L3:0=f"], "enableMonitoring": True}
    assert "intelRdt" not in linux(rdt=pb.LinuxRdt(remove=True))["linux"]


def test_a_seccomp_policy_replaces_the_profile_and_is_told_as_it_is():
    policy = pb.LinuxSeccomp(
        default_action="SCMP_ACT_ERRNO",
        default_errno=pb.OptionalUInt32(value=1),
        architectures=["SCMP_ARCH_X86_64"],
        flags=["SECCOMP_FILTER_FLAG_LOG"],
        listener_path="/run/l",
        listener_metadata="m",
    )
    rule = policy.syscalls.add(names=["read", "write"], action="SCMP_ACT_ERRNO", errno_ret=pb.OptionalUInt32(value=38))
    rule.args.add(index=1, value=2, value_two=3, op="SCMP_CMP_EQ")
    made = linux(seccomp_policy=policy)["linux"]["seccomp"]
    assert made == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/l",
        "listenerMetadata": "m",
        "syscalls": [
            {
                "names": ["read", "write"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 38,
                "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    told = pb.LinuxSeccomp()
    nri_messages._seccomp(told, made)
    assert told == policy


def test_limits_between_the_words_of_nri_and_cri():
    wanted = pb.LinuxResources(unified={"memory.high": "1"}, pids=pb.LinuxPids(limit=5))
    wanted.cpu.shares.value, wanted.cpu.quota.value, wanted.cpu.cpus = 2, -1, "0"
    wanted.memory.limit.value, wanted.memory.reservation.value = 9, 8
    given, extra = nri_messages.to_cri(wanted)
    assert (given.cpu_shares, given.cpu_quota, given.cpuset_cpus, given.memory_limit_in_bytes) == (2, -1, "0", 9)
    assert extra == {"pids": {"limit": 5}, "memory": {"reservation": 8}}
    back = nri_messages.from_cri(given)
    wanted.ClearField("pids")
    wanted.memory.ClearField("reservation")
    assert back == wanted


@pytest.mark.parametrize(("count", "most", "expected"), [(0, 100, 1), (3, 10_000, 1), (30, 1000, 3)])
def test_what_there_is_comes_in_pieces_that_fit(count, most, expected):
    pods = [pb.PodSandbox(id=f"pod-{number}") for number in range(count)]
    made = [pb.Container(id=f"c-{number}", args=["x" * 50]) for number in range(count)]
    found = list(pieces(pods, made, most))
    assert len(found) >= expected
    assert all(one.ByteSize() <= most for one in found)
    assert [one.more for one in found] == [True] * (len(found) - 1) + [False]
    assert [pod.id for one in found for pod in one.pods] == [pod.id for pod in pods]
    assert [one.id for piece in found for one in piece.containers] == [one.id for one in made]
