"""What a shim does where something is used up, held by others, or late."""

import asyncio
import contextlib
import subprocess
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from runtimed.errors import FailedPrecondition, NotFound, ResourceExhausted, RuntimedError
from runtimed.mounts import mounts_below
from tests.integration.shim.conftest import Nursery, cgroups_left, eventually, fds_of, proc
from tests.processes import children

pytestmark = pytest.mark.root


# A state directory without room


class SmallDisk:
    """A tmpfs that can be filled, by bytes or by inodes."""

    def __init__(self, path):
        self.path = path
        self._fill = path / "fill"
        self._files = []

    def fill(self):
        with contextlib.suppress(OSError), self._fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def use_up_inodes(self):
        with contextlib.suppress(OSError):
            while True:
                self._files.append(self.path / f"file{len(self._files)}")
                self._files[-1].touch()

    def free(self):
        self._fill.unlink(missing_ok=True)
        for file in self._files:
            file.unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small tmpfs on a directory of the test's."""
    mounted = []

    def make(name):
        path = tmp_path / name
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "tmpfs", path], check=True)
        mounted.append(path)
        return SmallDisk(path)

    yield make
    for path in mounted:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("used_up", ["fill", "use_up_inodes"])
async def test_a_create_in_a_full_state_directory_fails_cleanly_and_later_succeeds(
    shim, bundle, small_disk, tmp_path, used_up
):
    disk = small_disk("state")
    path = bundle("exit 3", name="state/b1")
    getattr(disk, used_up)()
    with pytest.raises(ResourceExhausted, match=f"bundle {path}.*: No space left on device"):
        await shim.create("t1", path)
    assert mounts_below(path) == []
    assert cgroups_left() == []
    disk.free()
    await shim.run("t1", path)
    assert (await shim.wait("t1")).exit_status == 3
    await shim.delete("t1")
    assert mounts_below(path) == []


@pytest.mark.parametrize("used_up", ["fill", "use_up_inodes"])
async def test_a_create_fails_cleanly_where_the_runtime_has_no_room_for_its_state(
    shim, bundle, small_disk, runc_root, used_up
):
    disk = small_disk(runc_root.name)
    path = bundle("exit 3")
    getattr(disk, used_up)()
    with pytest.raises(RuntimedError, match="OCI runtime create failed: "):  # runc has no words of its own
        await shim.create("t1", path)
    assert mounts_below(path) == []
    assert cgroups_left() == []
    disk.free()
    await shim.run("t1", path)
    assert (await shim.wait("t1")).exit_status == 3
    await shim.delete("t1")


@pytest.mark.parametrize("used_up", ["fill", "use_up_inodes"])
async def test_a_container_ends_and_is_deleted_in_full_directories(
    shim, bundle, small_disk, runc_root, tmp_path, used_up
):
    disks = [small_disk("state"), small_disk(runc_root.name)]
    path = bundle("exec sleep 60", name="state/b1")
    await shim.run("t1", path)
    await shim.exec("t1", "e1", "exit 0")
    for disk in disks:
        getattr(disk, used_up)()
    with pytest.raises(RuntimedError, match="(?i)no space left on device"):
        await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    await shim.delete("t1", "e1")
    await shim.kill("t1", all=True)
    assert (await shim.wait("t1")).exit_status == 137
    await shim.delete("t1")
    assert mounts_below(path) == []
    assert cgroups_left() == []
    for disk in disks:
        disk.free()


# A root file system that others hold


@contextlib.contextmanager
def held(path, *, command=()):
    """A process with *path* as its working directory, in a mount namespace of its own if *command* makes one."""
    holder = subprocess.Popen([*command, "sh", "-c", "echo; exec sleep 60"], cwd=path, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout as up:
        up.read(1)
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("namespace", [(), ("unshare", "--mount")], ids=["ours", "another"])
async def test_a_root_file_system_that_somebody_works_in_does_not_hold_up_delete(shim, bundle, namespace):
    """A busy mount is detached: it goes when the last one leaves it."""
    path = bundle("exit 0")
    await shim.run("t1", path)
    await shim.wait("t1")
    with held(path / "rootfs", command=namespace):
        await shim.delete("t1")
        assert mounts_below(path) == []
    assert list((path / "rootfs").iterdir()) == []


async def test_mounts_that_others_made_in_a_root_file_system_go_with_it(shim, bundle):
    path = bundle("exit 0")
    await shim.run("t1", path)
    await shim.wait("t1")
    for name in ("tmp", "etc", "etc"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path / "rootfs" / name], check=True)  # noqa: ASYNC221
    assert len(mounts_below(path)) == 4
    with held(path / "rootfs" / "etc"):
        await shim.delete("t1")
        assert mounts_below(path) == []


async def test_a_delete_is_idempotent_for_whoever_repeats_it(shim, bundle):
    await shim.run("t1", bundle("exit 0"))
    await shim.wait("t1")
    answers = await asyncio.gather(*(shim.delete("t1") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers].count(pb.DeleteResponse) == 1
    assert all(isinstance(answer, pb.DeleteResponse | NotFound | FailedPrecondition) for answer in answers)
    with pytest.raises(NotFound):
        await shim.delete("t1")


async def test_a_delete_that_failed_half_way_can_be_repeated(failing, bundle):
    shim = await failing("shim.delete.runtime=1*error(no luck);shim.delete.streams=1*error(nor here)")
    path = bundle("exit 4")
    await shim.run("t1", path)
    await shim.wait("t1")
    for message in ("no luck", "nor here"):
        with pytest.raises(RuntimedError, match=message):
            await shim.delete("t1")
        assert (await shim.state("t1")).exit_status == 4
    assert (await shim.delete("t1")).exit_status == 4
    assert mounts_below(path) == []


# Ends at awkward moments


@pytest.fixture
async def failing(fork, shim_of, tmp_path):
    """Make a shim whose parent has a program of failpoints."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(program):
            nursery = Nursery(tmp_path / "rehearsal", RUNTIMED_FAILPOINTS=program)
            stack.callback(nursery.close)
            return await stack.enter_async_context(shim_of(*fork(nursery)))

        yield make


async def test_a_container_that_ends_before_start_returns_has_started_first(failing, bundle):
    shim = await failing("shim.start.started=delay(300)")
    pid = await shim.run("t1", bundle("exit 3"))
    assert pid > 0
    assert (await shim.wait("t1")).exit_status == 3
    await shim.events.of("/tasks/exit", "t1")
    assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]


async def test_an_exec_that_ends_before_start_returns_has_started_first(failing, bundle):
    shim = await failing("shim.exec.made=delay(300)->off;shim.exec.started=delay(300)")
    await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exit 3")
    started = await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert started.pid > 0
    assert (await shim.wait("t1", "e1")).exit_status == 3
    await shim.events.of("/tasks/exit", "e1")
    assert shim.events.topics == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
    ]


async def test_an_exec_that_cannot_be_followed_is_ended(failing, bundle):
    shim = await failing("shim.exec.made=error(no luck)")
    pid = await shim.run("t1", bundle("exec sleep 60"))
    await shim.exec("t1", "e1", "exec sleep 61")
    with pytest.raises(RuntimedError, match="no luck"):
        await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert [entry.pid for entry in (await shim.Pids(pb.PidsRequest(id="t1"))).processes] == [pid]
    await shim.delete("t1", "e1")


async def test_a_container_that_ends_while_it_is_deleted_ends_once(failing, bundle, fifo):
    """It is deleted when it was only created: the shim kills it then."""
    shim = await failing("shim.delete.begun=delay(100)")
    await shim.create("t1", bundle("exit 0"))
    deleting = asyncio.create_task(shim.delete("t1"))
    assert (await shim.wait("t1")).exit_status == 137
    assert (await deleting).exit_status == 137
    await shim.events.of("/tasks/delete")
    assert shim.events.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


async def test_a_delete_right_after_a_kill_waits_for_nothing_that_is_over(shim, bundle):
    """Refused while it runs still, done when it does not."""
    for number in range(10):
        id = f"t{number}"
        await shim.run(id, bundle("exec sleep 60"))
        await shim.kill(id)
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await shim.delete(id)).exit_status == 137
                    break
                except FailedPrecondition:
                    continue


# Nothing grows


def threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def private_kib(pid):
    lines = proc(pid, "smaps_rollup").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_", "Swap:")))


def kinds(pid):
    """What its descriptors are; the socket to each spare shim is another."""
    return [link.partition(":")[0] for link in fds_of(pid)]


def keyrings():
    return sum(" _ses.leak" in line for line in Path("/proc/keys").read_text().splitlines())


@pytest.mark.slow
async def test_200_containers_one_after_the_other_leave_the_parent_of_shims_where_it_was(
    nursery, fork, shim_of, bundle, tmp_path
):
    path, pid = bundle("exit 5"), nursery.process.pid

    async def one(number):
        async with shim_of(*fork()) as shim:
            await shim.run(f"leak{number}", path, stdout=f"cri://{tmp_path}/out")
            assert (await shim.wait(f"leak{number}")).exit_status == 5
            await shim.delete(f"leak{number}")

    for number in range(20):
        await one(number)
    await eventually(lambda: len(children(pid)) == 1)  # the spare one
    before = kinds(pid), threads(pid)
    size = private_kib(pid)
    for number in range(20, 200):
        await one(number)
    await eventually(lambda: len(children(pid)) == 1)
    assert (kinds(pid), threads(pid)) == before
    assert private_kib(pid) - size < 256
    assert list(tmp_path.glob("*.sock")) == [tmp_path / "events.sock"]
    await eventually(lambda: keyrings() == 0)  # the kernel collects them a little later


@pytest.mark.slow
async def test_100_containers_of_a_pod_leave_their_shim_where_it_was(shim, bundle, fifo):
    out, path = fifo("out"), bundle("exit 5")

    async def one(number):
        await shim.run(f"leak{number}", path, stdin=str(fifo(f"in{number}")), stdout=str(out))
        assert (await shim.wait(f"leak{number}")).exit_status == 5
        await shim.delete(f"leak{number}")

    for number in range(20):
        await one(number)
    before = fds_of(shim.worker), threads(shim.worker), shim.others()
    size = private_kib(shim.worker)
    for number in range(20, 100):
        await one(number)
    assert (fds_of(shim.worker), threads(shim.worker), shim.others()) == before
    assert private_kib(shim.worker) - size < 256
