"""Options of a task, containerd.runc.v1.Options: what each does to a real container."""

import os
import shlex
import shutil
import uuid
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition
from tests.integration.shim.conftest import CGROUPS, proc
from tests.integration.shim.test_logger import COPY

pytestmark = pytest.mark.root


@pytest.fixture
def runtime(tmp_path):
    """runc under a name of the test's own, that writes down how it is called; it ignores options we have no use for."""

    class Runtime:
        path = tmp_path / "my-runtime"
        calls_file = tmp_path / "calls"

        @property
        def calls(self):
            """Return the arguments of each call, by its command."""
            calls = [shlex.split(line) for line in self.calls_file.read_text().splitlines()]
            return {next(word for word in call if word in COMMANDS): call for call in calls}

    runtime = Runtime()
    runtime.path.write_text(f"""#!/bin/bash
echo "${{@@Q}}" >>{runtime.calls_file}
args=()
for word; do [ "$word" = --systemd-cgroup ] || args+=("$word"); done
exec {shutil.which("runc")} "${{args[@]}}"
""")
    runtime.path.chmod(0o755)
    return runtime


COMMANDS = {"create", "start", "exec", "kill", "delete", "ps", "pause", "resume"}


async def lived(shim, path, **kwargs):
    """Lead a container through its life, with an exec and a pause."""
    await shim.run("t1", path, **kwargs)
    await shim.exec("t1", "e1", "exit 0")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.wait("t1", "e1")
    await shim.Pids(pb.PidsRequest(id="t1"))
    await shim.Pause(pb.PauseRequest(id="t1"))
    await shim.Resume(pb.ResumeRequest(id="t1"))
    await shim.kill("t1", all=True)
    await shim.wait("t1")
    await shim.delete("t1")


async def test_the_binary_and_its_root_are_used_for_every_command(shim, bundle, options, runtime, tmp_path):
    path = bundle("exec sleep 60")
    await lived(shim, path, options=options(binary_name=str(runtime.path), root=str(tmp_path / "other")))
    assert set(runtime.calls) == COMMANDS
    for call in runtime.calls.values():
        assert call[:2] == ["--root", str(tmp_path / "other" / "test")]
        assert not {"--systemd-cgroup", "--no-pivot", "--no-new-keyring"} & set(call)
    assert list((tmp_path / "other" / "test").iterdir()) == []


async def test_systemd_cgroups_are_asked_for_in_every_command(shim, bundle, options, runtime):
    await lived(shim, bundle("exec sleep 60"), options=options(binary_name=str(runtime.path), systemd_cgroup=True))
    for command, call in runtime.calls.items():
        assert call.index("--systemd-cgroup") < call.index(command)  # an option of the runtime, not of the command


async def test_no_pivot_and_no_new_keyring_are_for_create(shim, bundle, options, runtime):
    given = options(binary_name=str(runtime.path), no_pivot_root=True, no_new_keyring=True)
    await lived(shim, bundle("exec sleep 60"), options=given)
    calls = runtime.calls
    assert {"--no-pivot", "--no-new-keyring"} <= set(calls["create"][calls["create"].index("create") :])
    del calls["create"]
    assert not any({"--no-pivot", "--no-new-keyring"} & set(call) for call in calls.values())


@pytest.mark.parametrize("shared", [False, True])
async def test_a_container_has_a_session_keyring_of_its_own_unless_asked_otherwise(
    shim, bundle, options, tmp_path, shared
):
    out = tmp_path / "out"
    id = f"t-{uuid.uuid4().hex}"  # root sees every keyring, also one that is about to be removed
    await shim.run(id, bundle("cat /proc/keys"), stdout=f"file://{out}", options=options(no_new_keyring=shared))
    await shim.wait(id)
    assert (f"_ses.{id}" in out.read_text()) == (not shared)


async def test_the_shim_joins_the_cgroup_it_is_told(shim, bundle, options):
    name = f"{CGROUPS}-shim"
    top = Path("/sys/fs/cgroup")
    roots = [top] if (top / "cgroup.controllers").exists() else [top / "pids", top / "memory"]
    for root in roots:
        (root / name).mkdir()
    try:
        await shim.create("t1", bundle("exit 0"), options=options(shim_cgroup=f"/{name}"))
        for root in roots:
            assert {str(shim.pid), str(shim.worker)} <= set((root / name / "cgroup.procs").read_text().split())
        assert name not in proc((await shim.state("t1")).pid, "cgroup")
        await shim.tear_down()
    finally:
        for root in roots:
            (root / name).rmdir()


async def test_a_shim_cgroup_that_is_not_there_fails_the_create_and_frees_the_name(shim, bundle, options):
    with pytest.raises(FailedPrecondition, match=f"shim cgroup '/{CGROUPS}-none': create it before the task"):
        await shim.create("t1", bundle(), options=options(shim_cgroup=f"/{CGROUPS}-none"))
    await shim.create("t1", bundle())


@pytest.mark.parametrize("scheme", ["fifo", "file", "cri", "binary"])
async def test_streams_of_any_kind_get_their_owner(shim, bundle, options, tmp_path, fifo, scheme):
    """The user is the process's own afterwards: runc sees to that. The group stays."""
    out, stdin = tmp_path / "out", fifo("in")
    if scheme == "fifo":
        os.mkfifo(out)
    logger = tmp_path / "logger"
    logger.write_text("#!/bin/sh\n" + COPY)
    logger.chmod(0o755)
    uri = {
        "fifo": str(out),
        "file": f"file://{out}",
        "cri": f"cri://{out}",
        "binary": f"binary://{logger}?dir={tmp_path}",
    }[scheme]
    user = {"uid": 1000, "gid": 1000}
    given = options(io_uid=1000, io_gid=4321)
    pid = await shim.run("t1", bundle("exec sleep 60", user=user), stdin=str(stdin), stdout=uri, options=given)
    for fd in (0, 1):
        assert owner(pid, fd) == (1000, 4321)


def owner(pid, fd):
    found = Path(f"/proc/{pid}/fd/{fd}").stat()
    return found.st_uid, found.st_gid
