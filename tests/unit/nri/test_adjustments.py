"""What several plugins want of one container: put together, in conflict, and taken away again."""

import pytest

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition, InvalidArgument
from runtimed.nri.adjustments import Adjusting
from runtimed.nri.checks import check
from runtimed.nri.owners import label
from runtimed.nri.updates import Updates


def container():
    made = pb.Container(id="c", args=["run"], env=["A=1", "B=2"], annotations={"a": "1", "b": "2"})
    made.mounts.add(destination="/data", type="bind", source="/one", options=["rbind"])
    made.linux.devices.add(path="/dev/a", type="c", major=1, minor=3)
    made.linux.namespaces.add(type="ipc", path="/proc/1/ns/ipc")
    made.linux.resources.cpu.shares.value = 100
    made.linux.sysctl["kernel.msgmax"] = "1"
    return made


def answer(**fields):
    return pb.CreateContainerResponse(adjust=pb.ContainerAdjustment(**fields))


def linux(**fields):
    return answer(linux=pb.LinuxContainerAdjustment(**fields))


def resources(**fields):
    return linux(resources=pb.LinuxResources(**fields))


# A wish for each field that can be set, and what it is called in a conflict.
WISHES = {
    "annotation 'k'": answer(annotations={"k": "v"}),
    "mount '/m'": answer(mounts=[pb.Mount(destination="/m", type="tmpfs", source="tmpfs")]),
    "environment variable 'K'": answer(env=[pb.KeyValue(key="K", value="v")]),
    "args": answer(args=["other"]),
    "rlimit 'RLIMIT_CORE'": answer(rlimits=[pb.POSIXRlimit(type="RLIMIT_CORE", hard=1, soft=1)]),
    "CDI device 'v.com/c=d'": answer(CDI_devices=[pb.CDIDevice(name="v.com/c=d")]),
    "device '/dev/x'": linux(devices=[pb.LinuxDevice(path="/dev/x", type="c", major=1, minor=5)]),
    "namespace 'uts'": linux(namespaces=[pb.LinuxNamespace(type="uts")]),
    "sysctl 'net.core.somaxconn'": linux(sysctl={"net.core.somaxconn": "9"}),
    "network device 'eth7'": linux(net_devices={"eth7": pb.LinuxNetDevice(name="eth0")}),
    "cgroups path": linux(cgroups_path="/x"),
    "OOM score": linux(oom_score_adj=pb.OptionalInt(value=5)),
    "I/O priority": linux(io_priority=pb.LinuxIOPriority(priority=3)),
    "seccomp policy": linux(seccomp_policy=pb.LinuxSeccomp(default_action="SCMP_ACT_ALLOW")),
    "scheduler": linux(scheduler=pb.LinuxScheduler(policy=pb.SCHED_BATCH)),
    "memory policy": linux(memory_policy=pb.LinuxMemoryPolicy(mode=pb.MPOL_LOCAL)),
    "RDT closID": linux(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="gold"))),
    "RDT schemata": linux(rdt=pb.LinuxRdt(schemata=pb.OptionalRepeatedString(value=["L3:0=f"]))),
    "RDT monitoring": linux(rdt=pb.LinuxRdt(enable_monitoring=pb.OptionalBool(value=True))),
    "memory limit": resources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=1 << 30))),
    "memory reservation": resources(memory=pb.LinuxMemory(reservation=pb.OptionalInt64(value=1))),
    "memory swap limit": resources(memory=pb.LinuxMemory(swap=pb.OptionalInt64(value=1))),
    "kernel memory limit": resources(memory=pb.LinuxMemory(kernel=pb.OptionalInt64(value=1))),
    "kernel TCP memory limit": resources(memory=pb.LinuxMemory(kernel_tcp=pb.OptionalInt64(value=1))),
    "swappiness": resources(memory=pb.LinuxMemory(swappiness=pb.OptionalUInt64(value=1))),
    "memory disable_oom_killer": resources(memory=pb.LinuxMemory(disable_oom_killer=pb.OptionalBool(value=True))),
    "memory use_hierarchy": resources(memory=pb.LinuxMemory(use_hierarchy=pb.OptionalBool(value=True))),
    "CPU shares": resources(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=2))),
    "CPU quota": resources(cpu=pb.LinuxCPU(quota=pb.OptionalInt64(value=2))),
    "CPU period": resources(cpu=pb.LinuxCPU(period=pb.OptionalUInt64(value=2))),
    "realtime runtime": resources(cpu=pb.LinuxCPU(realtime_runtime=pb.OptionalInt64(value=2))),
    "realtime period": resources(cpu=pb.LinuxCPU(realtime_period=pb.OptionalUInt64(value=2))),
    "cpuset CPUs": resources(cpu=pb.LinuxCPU(cpus="0-1")),
    "cpuset memory nodes": resources(cpu=pb.LinuxCPU(mems="0")),
    "pids limit": resources(pids=pb.LinuxPids(limit=5)),
    "huge page limit '2MB'": resources(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=1)]),
    "unified cgroup value 'memory.high'": resources(unified={"memory.high": "5"}),
    "block I/O class": resources(blockio_class=pb.OptionalString(value="slow")),
    "RDT class": resources(rdt_class=pb.OptionalString(value="gold")),
}


@pytest.mark.parametrize("name", WISHES)
def test_a_wish_is_in_the_sum_and_no_other_plugin_may_have_it(name):
    adjusting = Adjusting(container())
    adjusting.add("10-a", WISHES[name])
    assert adjusting.result == WISHES[name].adjust
    adjusting.add("10-a", pb.CreateContainerResponse())
    with pytest.raises(FailedPrecondition, match=f"^NRI plugins 10-a and 20-b both set {name} of container c$"):
        adjusting.add("20-b", WISHES[name])


def test_every_field_has_a_wish_here_or_is_shared():
    fields = {label(number) for name, number in pb.Field.items() if name != "None"}
    assert fields - {name.partition(" '")[0] for name in WISHES} == {"hooks"}


def test_wishes_for_different_things_add_up():
    adjusting = Adjusting(container())
    for number, wish in enumerate(WISHES.values()):
        adjusting.add(f"{number:02}-plugin", wish)
    total = adjusting.result
    assert total.linux.resources.cpu.shares.value == 2
    assert total.linux.resources.memory.limit.value == 1 << 30
    assert total.args == ["other"]
    owners = adjusting.owners.message().owners["c"]
    assert owners.simple[pb.Args] == "03-plugin"
    assert owners.compound[pb.Env].owners == {"K": "02-plugin"}


def test_the_next_plugin_sees_what_was_changed():
    adjusting = Adjusting(container())
    wish = answer(
        annotations={"-a": "", "c": "3"},
        env=[pb.KeyValue(key="-A"), pb.KeyValue(key="B", value="new"), pb.KeyValue(key="C", value="3")],
        mounts=[pb.Mount(destination="/data", type="tmpfs", source="tmpfs")],
        args=["other"],
        rlimits=[pb.POSIXRlimit(type="RLIMIT_CORE", hard=2, soft=1)],
        hooks=pb.Hooks(prestart=[pb.Hook(path="/h")]),
    )
    wish.adjust.linux.devices.add(path="-/dev/a")
    wish.adjust.linux.namespaces.add(type="ipc")
    wish.adjust.linux.resources.cpu.quota.value = 7
    wish.adjust.linux.sysctl["kernel.msgmax"] = "2"
    adjusting.add("10-a", wish)
    seen = adjusting.container
    assert dict(seen.annotations) == {"b": "2", "c": "3"}
    assert seen.env == ["B=new", "C=3"]
    assert [(one.destination, one.type) for one in seen.mounts] == [("/data", "tmpfs")]
    assert seen.args == ["other"]
    assert [one.path for one in seen.hooks.prestart] == ["/h"]
    assert not seen.linux.devices
    assert [(one.type, one.path) for one in seen.linux.namespaces] == [("ipc", "")]
    assert (seen.linux.resources.cpu.shares.value, seen.linux.resources.cpu.quota.value) == (100, 7)
    assert seen.linux.sysctl == {"kernel.msgmax": "2"}


def test_what_is_taken_away_first_may_be_set_again():
    adjusting = Adjusting(container())
    adjusting.add("10-a", answer(env=[pb.KeyValue(key="K", value="1")], args=["one"], annotations={"k": "1"}))
    replaced = [pb.KeyValue(key="-K"), pb.KeyValue(key="K", value="2")]
    adjusting.add("20-b", answer(env=replaced, args=["", "two"], annotations={"-k": "", "k": "2"}))
    total = adjusting.result
    assert [(one.key, one.value) for one in total.env] == [("K", "2")]
    assert total.args == ["two"]
    assert total.annotations == {"k": "2"}
    adjusting.add("30-c", answer(env=[pb.KeyValue(key="-K")]))
    assert [one.key for one in adjusting.result.env] == ["-K"]
    assert "K=2" not in adjusting.container.env


def test_hooks_of_all_plugins_are_kept():
    adjusting = Adjusting(container())
    for name in ("10-a", "20-b"):
        adjusting.add(name, answer(hooks=pb.Hooks(create_runtime=[pb.Hook(path=f"/{name}")])))
    assert [one.path for one in adjusting.result.hooks.create_runtime] == ["/10-a", "/20-b"]


def test_an_rdt_configuration_is_taken_away_as_a_whole():
    adjusting = Adjusting(container())
    adjusting.add("10-a", linux(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="gold"))))
    adjusting.add("20-b", linux(rdt=pb.LinuxRdt(remove=True, clos_id=pb.OptionalString(value="silver"))))
    assert (adjusting.result.linux.rdt.remove, adjusting.result.linux.rdt.clos_id.value) == (True, "silver")


WRONG = {
    "annotations": answer(annotations={"-": ""}),
    "env": answer(env=[pb.KeyValue(key="A=B", value="")]),
    "env:": answer(env=[pb.KeyValue(key="A", value="x\0")]),
    "env.*longer": answer(env=[pb.KeyValue(key="A", value="x" * (128 << 10))]),
    "args": answer(args=[""]),
    "mounts.destination": answer(mounts=[pb.Mount(destination="x")]),
    "mounts.destination.*": answer(mounts=[pb.Mount(destination="/a/../b")]),
    "mounts.source": answer(mounts=[pb.Mount(destination="/x", source="y", options=["bind"])]),
    "hooks.poststop.path": answer(hooks=pb.Hooks(poststop=[pb.Hook(path="x")])),
    "hooks.prestart.env": answer(hooks=pb.Hooks(prestart=[pb.Hook(path="/x", env=["A"])])),
    "hooks.prestart.timeout": answer(hooks=pb.Hooks(prestart=[pb.Hook(path="/x", timeout=pb.OptionalInt(value=0))])),
    "rlimits": answer(rlimits=[pb.POSIXRlimit(type="NOFILE", hard=1, soft=1)]),
    "rlimits.*above": answer(rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", hard=1, soft=2)]),
    "CDI_devices": answer(CDI_devices=[pb.CDIDevice()]),
    "linux.devices.path": linux(devices=[pb.LinuxDevice(path="x", type="c")]),
    "linux.devices.type": linux(devices=[pb.LinuxDevice(path="/x", type="z")]),
    "linux.devices": linux(devices=[pb.LinuxDevice(path="/x", type="c", major=-1)]),
    "linux.cgroups_path": linux(cgroups_path="/a/../../b"),
    "linux.oom_score_adj": linux(oom_score_adj=pb.OptionalInt(value=1001)),
    "linux.io_priority": linux(io_priority=pb.LinuxIOPriority(priority=8)),
    "linux.io_priority.class": linux(io_priority=pb.LinuxIOPriority.FromString(b"\x08\x63")),
    "linux.scheduler.policy": linux(scheduler=pb.LinuxScheduler.FromString(b"\x08\x63")),
    "linux.scheduler.flags": linux(scheduler=pb.LinuxScheduler.FromString(b"\x20\x63")),
    "linux.memory_policy.mode": linux(memory_policy=pb.LinuxMemoryPolicy.FromString(b"\x08\x63")),
    "linux.memory_policy.flags: 99": linux(memory_policy=pb.LinuxMemoryPolicy.FromString(b"\x18\x63")),
    "linux.namespaces": linux(namespaces=[pb.LinuxNamespace(type="net")]),
    "linux.namespaces.path": linux(namespaces=[pb.LinuxNamespace(type="network", path="x")]),
    "linux.sysctl": linux(sysctl={"../x": "1"}),
    "linux.net_devices": linux(net_devices={"a/b": pb.LinuxNetDevice()}),
    "linux.seccomp_policy": linux(seccomp_policy=pb.LinuxSeccomp(default_action="allow")),
    "linux.seccomp_policy.*no system call": linux(
        seccomp_policy=pb.LinuxSeccomp(
            default_action="SCMP_ACT_ALLOW", syscalls=[pb.LinuxSyscall(action="SCMP_ACT_ERRNO")]
        )
    ),
    "linux.resources: cpu.cpus": resources(cpu=pb.LinuxCPU(cpus="all")),
    "linux.resources: cpu.shares": resources(cpu=pb.LinuxCPU(shares=pb.OptionalUInt64(value=1 << 63))),
    "linux.resources: memory.limit": resources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=-2))),
    "linux.resources: memory.swappiness": resources(memory=pb.LinuxMemory(swappiness=pb.OptionalUInt64(value=201))),
    "linux.resources: hugepage_limits": resources(hugepage_limits=[pb.HugepageLimit(page_size="big")]),
    "linux.resources: unified": resources(unified={"cgroup.procs": "1"}),
    "linux.resources: rdt_class": resources(rdt_class=pb.OptionalString(value="../x")),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wish_that_cannot_be_is_refused_by_plugin_and_field(field):
    with pytest.raises(InvalidArgument, match=f"^NRI plugin 10-a, adjustment: {field}"):
        check(WRONG[field].adjust, "10-a")


def update(id, value, **options):
    made = pb.ContainerUpdate(container_id=id, **options)
    made.linux.resources.cpu.shares.value = value
    return made


def test_updates_of_other_containers_are_put_together():
    adjusting = Adjusting(container())
    first = pb.CreateContainerResponse(update=[update("x", 5)], evict=[pb.ContainerEviction(container_id="z")])
    adjusting.add("10-a", first)
    second = pb.ContainerUpdate(container_id="x", ignore_failure=True)
    second.linux.resources.memory.limit.value = 9
    adjusting.add("20-b", pb.CreateContainerResponse(update=[second]))
    (total,) = adjusting.updates.all()
    assert (total.linux.resources.cpu.shares.value, total.linux.resources.memory.limit.value) == (5, 9)
    assert not total.ignore_failure
    assert [one.container_id for one in adjusting.updates.evictions] == ["z"]
    with pytest.raises(FailedPrecondition, match="20-b and 30-c both set memory limit of container x"):
        adjusting.add(
            "30-c", pb.CreateContainerResponse(update=[pb.ContainerUpdate.FromString(b"\n\1x\22\6\n\4\n\2\n\0")])
        )


def test_the_container_itself_is_not_updated_while_it_is_made():
    with pytest.raises(InvalidArgument, match="NRI plugin 10-a, update: c is being made"):
        Adjusting(container()).add("10-a", pb.CreateContainerResponse(update=[update("c", 5)]))


def test_a_conflict_that_may_be_ignored_is():
    updates = Updates()
    updates.add("10-a", [update("x", 5)])
    updates.add("20-b", [update("x", 6, ignore_failure=True)])
    assert [one.linux.resources.cpu.shares.value for one in updates.all()] == [5]
    with pytest.raises(InvalidArgument, match="NRI plugin 30-c, update: container_id is empty"):
        updates.add("30-c", [update("", 5)])
    assert updates.take("x").cpu.shares.value == 5
    assert not updates.all()
