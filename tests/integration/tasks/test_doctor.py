"""What nothing explains is found, put right where that is safe, and left alone where it is not."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runtimed.config import DEFAULT_RUNTIME
from runtimed.doctor.doctor import Doctor
from runtimed.doctor.findings import Stray
from runtimed.doctor.survey import look
from runtimed.linux.mount import mount
from runtimed.metadata import containers
from runtimed.metadata.containers import Container, Opaque
from runtimed.mounts import Mount, mounts_below, unmount_all
from runtimed.tasks.bundle import DIRECTORY
from runtimed.tasks.client import Status
from runtimed.tasks.making import NewTask
from tests.fakes.tasks import NS, SPEC_TYPE, TaskDaemon, gone, signal_shim

pytestmark = pytest.mark.root


@pytest.fixture
def doctor(daemon: TaskDaemon) -> Callable[..., Doctor]:
    """Makes one for the daemon as it is now."""

    def doctor(interval_s: int = 0) -> Doctor:
        return Doctor(
            daemon.database,
            daemon.tasks,
            root=daemon.root,
            state=daemon.state,
            runc_root=daemon.state / "runc",
            oci_runtimes={"runc": "runc version 1.1.4"},
            interval_s=interval_s,
        )

    return doctor


async def run(daemon: TaskDaemon, spec: Any, id: str) -> int:
    await daemon.tasks.create(NS, await daemon.container(id, DEFAULT_RUNTIME, **spec("sleep 1000")))
    return await daemon.tasks.start(NS, id, "")


async def test_where_everything_has_its_task_nothing_is_found(daemon, doctor, spec):
    await run(daemon, spec, "t1")
    await daemon.tasks.create(NS, await daemon.container("t2", DEFAULT_RUNTIME, **spec("true")))
    await daemon.container("only-a-record", DEFAULT_RUNTIME, **spec("true"))
    others = [daemon.state / "netns/pod", daemon.state / "cri/sandboxes/pod/shm", daemon.root / "mounts/1"]
    for mountpoint in others:  # which are looked after by whoever has made them
        mountpoint.mkdir(parents=True)
        mount("tmpfs", str(mountpoint), "tmpfs", 0, "")
    try:
        assert await doctor().check(repair=True) == []
        assert all(mounts_below(mountpoint) for mountpoint in others)
    finally:
        for mountpoint in others:
            unmount_all(mountpoint)


async def test_what_is_left_over_is_found_and_removed_only_on_request(daemon, doctor, spec, cgroup):
    hierarchy = next(path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir())
    await run(daemon, spec, "live")
    bundle = daemon.bundle("gone")
    (bundle / "rootfs").mkdir(parents=True)
    mount("tmpfs", str(bundle / "rootfs"), "tmpfs", 0, "")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(daemon.state / "s/left"))
    sock.close()
    os.mkfifo(daemon.state / "fifo")
    state = daemon.state / "runc" / NS / "old/state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"init_process_pid": os.getpid(), "init_process_start": 1}))
    described = spec("true")
    described["linux"]["cgroupsPath"] = f"{cgroup}/record"
    await daemon.container("record", DEFAULT_RUNTIME, **described)
    (hierarchy / cgroup.strip("/") / "record").mkdir()

    found = await doctor().check(repair=False)
    assert {(finding.kind, finding.what) for finding in found} == {
        ("bundle", f"{NS}/gone"),
        ("mount", str(bundle / "rootfs")),
        ("socket", str(daemon.state / "s/left")),
        ("fifo", str(daemon.state / "fifo")),
        ("runc", f"{NS}/old"),
        ("cgroup", f"{cgroup}/record"),
    }
    assert all(finding.is_left and not finding.action for finding in found)
    assert mounts_below(bundle) != []

    repaired = await doctor().check(repair=True)
    assert [finding for finding in repaired if finding.is_left] == []
    assert len(repaired) == len(found)
    assert mounts_below(daemon.state) == []
    assert not bundle.exists()
    assert await doctor().check(repair=True) == []
    assert (await daemon.tasks.get(NS, "live")).status is Status.RUNNING


async def test_what_one_look_has_seen_and_the_next_has_not_is_nothing(daemon, doctor, monkeypatch):
    os.mkfifo(daemon.state / "fifo")
    looks: list[list[Stray]] = []

    def look_once(*arguments: Any) -> list[Stray]:
        looks.append(look(*arguments))
        (daemon.state / "fifo").unlink(missing_ok=True)
        os.mkfifo(daemon.state / "another")
        monkeypatch.setattr("runtimed.doctor.doctor.look", look)
        return looks[-1]

    monkeypatch.setattr("runtimed.doctor.doctor.look", look_once)
    assert await doctor().check(repair=True) == []
    assert len(looks[0]) == 1
    assert (daemon.state / "another").exists()  # seen by one look so far
    (daemon.state / "another").unlink()


async def test_a_bundle_whose_shim_lives_is_loaded_again(daemon, doctor, spec, home):
    pid = await run(daemon, spec, "t1")
    await daemon.stop()
    daemon.bundle("t1").rename(home / "away")
    await daemon.start()
    (home / "away").rename(daemon.bundle("t1"))
    found = await doctor().check(repair=True)
    assert {finding.action for finding in found if (finding.kind, finding.what) == ("bundle", f"{NS}/t1")} == {
        "loaded again"
    }
    state = await daemon.tasks.get(NS, "t1")
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    assert await doctor().check(repair=True) == []


async def test_a_container_whose_bundle_is_gone_is_told_of_and_lives(daemon, doctor, spec, home):
    pid = await run(daemon, spec, "t1")
    shim = daemon.shim_pid("t1")
    await daemon.stop()
    shutil.copytree(daemon.bundle("t1"), home / "copy", symlinks=True, ignore=shutil.ignore_patterns("log"))
    shutil.rmtree(daemon.bundle("t1"))
    shutil.rmtree(daemon.root / DIRECTORY / NS / "t1")
    await daemon.start()
    found = {(finding.kind, finding.what): finding for finding in await doctor().check(repair=True)}
    assert found["shim", str(shim)].is_left
    assert found["runc", f"{NS}/t1"].is_left
    assert os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110
    (home / "copy").rename(daemon.bundle("t1"))  # as the message has it: people decide
    await doctor().check(repair=True)
    await daemon.tasks.kill(NS, "t1", "", signal.SIGKILL, all=True)
    assert (await daemon.tasks.wait(NS, "t1", "")).status == 137
    await daemon.tasks.delete(NS, "t1")


async def test_a_shim_of_nobody_that_has_no_container_is_ended(daemon, doctor, home):
    bundle = daemon.bundle("t1")
    bundle.mkdir(parents=True)
    socket_path = str(daemon.state / "s/lost")
    pid = await daemon.nursery.fork({"id": "t1", "namespace": NS, "bundle": str(bundle), "socket": socket_path})
    async with asyncio.timeout(10):  # the keeper goes there after the answer
        while Path(f"/proc/{pid}/cwd").readlink() != bundle:  # noqa: ASYNC110, ASYNC240 - of another process
            await asyncio.sleep(0.01)
    shutil.rmtree(bundle)
    found = {finding.kind: finding for finding in await doctor().check(repair=True)}
    assert (found["shim"].what, found["shim"].action) == (str(pid), "ended")
    await gone(pid)
    await doctor().check(repair=True)
    assert list((daemon.state / "s").iterdir()) == []


async def test_a_task_that_does_not_answer_or_has_no_record_and_a_record_without_snapshot_are_told_of(
    daemon, doctor, spec
):
    await run(daemon, spec, "stuck")
    await run(daemon, spec, "unrecorded")
    await daemon.database.write(containers.delete, NS, "unrecorded")
    lacking = Container(
        id="lacking", runtime="x", spec=Opaque(SPEC_TYPE, b"{}"), snapshotter="overlayfs", snapshot_key="none"
    )
    await daemon.database.write(containers.create, NS, lacking)
    signal_shim(daemon.shim_pid("stuck"), signal.SIGSTOP)
    try:
        found = {(finding.kind, finding.what) for finding in await doctor().check(repair=True) if finding.is_left}
    finally:
        with suppress(ProcessLookupError):
            signal_shim(daemon.shim_pid("stuck"), signal.SIGCONT)
    assert found == {("task", f"{NS}/stuck"), ("task", f"{NS}/unrecorded"), ("record", f"{NS}/lacking")}


async def test_a_file_system_that_was_busy_is_told_of_until_it_is_let_go(daemon, doctor, spec, rootfs, home):
    for name in ("upper", "work"):
        (home / name).mkdir()
    options = (f"lowerdir={rootfs}", f"upperdir={home}/upper", f"workdir={home}/work")
    described = spec("sleep 1000") | {"root": {"path": "rootfs"}}
    await daemon.container("t1", DEFAULT_RUNTIME, **described)
    await daemon.tasks.create(NS, NewTask(id="t1", rootfs=[Mount("overlay", "overlay", options=options)]))
    busy = ("sh", "-c", "echo; exec sleep 60")
    with subprocess.Popen(busy, cwd=daemon.bundle("t1") / "rootfs/bin", stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
        assert holder.stdout is not None
        holder.stdout.read(1)
        await daemon.tasks.delete(NS, "t1")
        assert not daemon.bundle("t1").exists()
        [found] = await doctor().check(repair=True)
        assert (found.kind, found.what, found.action) == ("mount", f"{NS}/t1", "")
        assert f"is held by process {holder.pid} (sleep)" in found.detail
        holder.kill()
    assert await doctor().check(repair=True) == []
    assert list((daemon.state / "detached").iterdir()) == []


async def test_a_mount_in_the_daemons_root_that_is_no_layers_is_told_of(daemon, doctor):
    where = daemon.root / "somebodys"
    where.mkdir()
    mount("tmpfs", str(where), "tmpfs", 0, "")
    try:
        [found] = await doctor().check(repair=True)
        assert (found.kind, found.what, found.is_left) == ("mount", str(where), True)
    finally:
        unmount_all(where)


async def test_the_facts_name_the_machine_and_what_is_known_against_its_runc(doctor):
    facts = {fact.name: fact for fact in await doctor().facts()}
    assert facts["kernel"].value == os.uname().release
    assert "CVE-2023-27561" in facts["OCI runtime runc"].warning
    assert facts["cgroups"].value in ("1", "2")
    assert " of " in facts["descriptors of the daemon"].value


async def test_without_being_asked_it_looks_again_and_again(daemon, doctor, monkeypatch):
    monkeypatch.setattr("runtimed.doctor.doctor._FIRST_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr("runtimed.doctor.doctor._AGAIN_AFTER_S", 1.0)
    mended = asyncio.Event()

    async def mend() -> str:
        mended.set()
        return "mended"

    def look(*_: Any) -> list[Stray]:
        return [Stray(kind="mount", what="x", detail="", mend=mend)]

    monkeypatch.setattr("runtimed.doctor.doctor.look", look)
    looking = doctor(interval_s=600)
    async with looking.running(), asyncio.timeout(10):
        await mended.wait()
