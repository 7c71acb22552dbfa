import asyncio
import gzip
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from runtimed.mounts import Mount, mounts_below
from runtimed.oci import digest
from runtimed.workers.pool import Fetch, Pool
from tests import processes
from tests.images import tars

pytestmark = pytest.mark.root

OCI = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
async def pool(tmp_path):
    pool = Pool(2, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    yield pool
    await pool.close()
    assert not parents()
    assert not mounts_below(tmp_path)


def children(of: int | str = "self") -> list[int]:
    """Return the worker processes of a process, zombies too (which have no command line)."""
    return [pid for parent in parents(of) for pid in processes.children(parent)]


def parents(of: int | str = "self") -> list[int]:
    """Return what worker processes are forked from, and children that are zombies."""
    found = processes.children(of)
    return [pid for pid in found if b"runtimed.workers" in (command := command_line(pid)) or not command]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b"gone"


@pytest.fixture
def snapshot(tmp_path):
    root = tmp_path / "snapshot"
    root.mkdir()
    return root


def bind(root: Path) -> list[Mount]:
    return [Mount("bind", str(root), options=("rbind", "rw"))]


@pytest.fixture
def blob(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(gzip.compress(tars.tar(tars.file(b"f", b"data"))))
    return path


@pytest.fixture
def endless(tmp_path):
    """A layer with the file ``f`` and a TiB of zeros after its end, all of which count for the diff ID."""
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.write(tars.tar(tars.file(b"f")))
        file.truncate(1 << 40)
    return path


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what only the file system or the kernel knows."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def test_a_layer_is_applied_on_its_mounts_and_nobody_sees_them(pool, snapshot, blob, tmp_path):
    applied = await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    archive = gzip.decompress(blob.read_bytes())
    assert (applied.diff_id, applied.size) == (digest.of(archive), len(archive))
    assert (snapshot / "f").read_text() == "data"
    assert not list((tmp_path / "mountpoint").iterdir())


async def test_an_overlay_takes_the_layer_into_its_upper_directory(pool, tmp_path):
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/gone").touch()
    layer = tmp_path / "layer"
    layer.write_bytes(tars.tar(tars.file(b"new"), tars.file(b".wh.gone")))
    options = (f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    await pool.apply(layer, OCI, [Mount("overlay", "overlay", options=options)])
    assert sorted(path.name for path in (tmp_path / "upper").iterdir()) == ["gone", "new"]
    assert (tmp_path / "upper/gone").is_char_device()


async def test_a_process_does_one_job_after_the_other(pool, snapshot, blob):
    for _ in range(5):
        await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    assert len(children()) == 1


async def test_as_many_layers_are_applied_at_once_as_were_asked_for(pool, tmp_path, blob):
    roots = [tmp_path / f"root{number}" for number in range(8)]
    for root in roots:
        root.mkdir()
    await asyncio.gather(*(pool.apply(blob, f"{OCI}+gzip", bind(root)) for root in roots))
    assert all((root / "f").exists() for root in roots)
    assert len(children()) == 2


async def test_what_is_wrong_with_a_layer_fails_its_job_only(pool, snapshot, blob, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(blob.read_bytes()[:-5])
    with pytest.raises(InvalidArgument, match="truncated"):
        await pool.apply(broken, f"{OCI}+gzip", bind(snapshot))
    with pytest.raises(InvalidArgument, match="encrypted"):
        await pool.apply(blob, f"{OCI}+gzip+encrypted", bind(snapshot))
    with pytest.raises(NotFound, match="missing"):
        await pool.apply(tmp_path / "missing", OCI, bind(snapshot))
    with pytest.raises(NotFound, match="nowhere"):
        await pool.apply(blob, f"{OCI}+gzip", bind(tmp_path / "nowhere"))
    with pytest.raises(InvalidArgument, match="no mounts"):
        await pool.apply(blob, f"{OCI}+gzip", [])
    [pid] = children()
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    assert children() == [pid]


async def test_a_full_disk_is_resource_exhausted_and_leaves_no_mount(pool, tmp_path):
    layer = tmp_path / "layer"
    layer.write_bytes(tars.tar(tars.file(b"big", bytes(2 << 20))))
    with pytest.raises(ResourceExhausted, match="No space left"):
        await pool.apply(layer, OCI, [Mount("tmpfs", "tmpfs", options=("size=1m",))])


async def test_a_cancelled_job_is_over_when_the_caller_hears_of_it(pool, snapshot, endless):
    job = asyncio.create_task(pool.apply(endless, OCI, bind(snapshot)))
    await until((snapshot / "f").exists)
    assert len(children()) == 1
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not children()


async def test_a_process_that_dies_fails_its_job_and_is_replaced(pool, snapshot, endless, blob):
    job = asyncio.create_task(pool.apply(endless, OCI, bind(snapshot)))
    await until((snapshot / "f").exists)
    [pid] = children()
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(Unavailable, match=f"layer endless: worker process {pid} was killed by signal 11"):
        await job
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))


async def test_a_process_that_died_while_idle_is_replaced(pool, snapshot, blob):
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    [worker] = pool._idle
    os.kill(worker.pid, signal.SIGKILL)
    await worker._process.wait()
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))


async def test_closing_ends_running_jobs(tmp_path, snapshot, endless):
    pool = Pool(1)
    await pool.start()
    job = asyncio.create_task(pool.apply(endless, OCI, bind(snapshot)))
    await until((snapshot / "f").exists)
    await pool.close()
    with pytest.raises(Unavailable):
        await job
    assert not parents()
    with pytest.raises(Unavailable):
        await pool.apply(endless, OCI, bind(snapshot))


async def test_idle_processes_end(tmp_path, snapshot, blob):
    pool = Pool(1, idle_s=0.01, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    try:
        await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
        await until(lambda: not parents())
        await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    finally:
        await pool.close()


async def test_a_process_has_no_more_than_it_needs(pool, snapshot, blob, monkeypatch):
    monkeypatch.setenv("SECRET", "s")
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
        [pid] = children()
        proc = Path(f"/proc/{pid}")
        assert b"SECRET" not in (proc / "environ").read_bytes()
        descriptors = {int(path.name): str(path.readlink()) for path in (proc / "fd").iterdir()}
        assert [target for fd, target in descriptors.items() if fd > 2 and not target.startswith("socket:")] == []
        assert len(descriptors) == 4
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert {status[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {"000000008824001f"}
        assert (proc / "cwd").readlink() == Path("/")
        assert (proc / "ns/mnt").samefile("/proc/self/ns/mnt")
    finally:
        os.close(leak)


DAEMON = """
import asyncio, sys
from pathlib import Path
from runtimed.mounts import Mount
from runtimed.workers.pool import Pool

async def main():
    pool = Pool(1, mountpoint=Path(sys.argv[3]))
    await pool.start()
    mounts = [Mount("bind", sys.argv[2], options=("rbind",))]
    await pool.apply(Path(sys.argv[1]), "application/vnd.oci.image.layer.v1.tar", mounts)

asyncio.run(main())
"""


async def test_workers_end_when_the_daemon_is_killed(snapshot, endless, tmp_path):
    daemon = subprocess.Popen(  # noqa: ASYNC220 - starting it is quick
        [sys.executable, "-c", DAEMON, endless, snapshot, tmp_path / "mountpoint"]
    )
    await until((snapshot / "f").exists)
    [worker] = children(daemon.pid)
    pidfd = os.pidfd_open(worker)
    try:
        daemon.kill()
        daemon.wait()
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
        asyncio.get_running_loop().remove_reader(pidfd)
    finally:
        os.close(pidfd)
    assert not mounts_below(tmp_path)


def test_mounts_stay_private_in_a_chroot_too(tmp_path):
    """A chroot's "/" is no mount, so its propagation cannot be changed from inside."""
    root = tmp_path / "chroot"
    (root / "proc").mkdir(parents=True)
    (root / "here").mkdir()
    code = (
        "import os, sys; from pathlib import Path\n"
        "from runtimed.workers.confinement import private_mounts\n"
        "from runtimed.linux.mount import mount, MS_BIND\n"
        "from runtimed.linux.namespaces import unshare, CLONE_NEWNS\n"
        "root = sys.argv[1]\n"
        "unshare(CLONE_NEWNS)\n"
        "mount('proc', root + '/proc', 'proc', 0)\n"
        "os.chroot(root); os.chdir('/')\n"
        "mounts = lambda: Path('/proc/self/mountinfo').read_text().count(' /here ')\n"
        "with private_mounts():\n"
        "    mount('tmpfs', '/here', 'tmpfs', 0)\n"
        "    inside = mounts(), os.listdir('/')\n"
        "print(inside[0], sorted(inside[1]), mounts(), sorted(os.listdir('/')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, root], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "1 ['here', 'proc'] 0 ['here', 'proc']\n"
    assert not mounts_below(tmp_path)


# -- fetching


@pytest.fixture
def listener():
    """A server for one connection: it sends what the test puts into it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


async def test_a_fetch_reports_its_progress(pool, listener, tmp_path):
    body = os.urandom(3 << 20)
    path = tmp_path / "data"
    path.touch()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:1000])
            first_report.wait()
            connection.sendall(body[1000:])

    first_report = threading.Event()
    server = threading.Thread(target=serve)
    server.start()
    reports: list[int] = []

    def progress(offset: int) -> None:
        reports.append(offset)
        first_report.set()

    host, port = listener.getsockname()
    expected = "sha256:" + hashlib.sha256(body).hexdigest()
    found = await pool.fetch(Fetch(f"http://{host}:{port}/blob", {}, path, 0, len(body), expected), progress)
    server.join()
    assert found == expected
    assert path.read_bytes() == body
    assert reports[0] == 1000


async def test_a_cancelled_fetch_keeps_its_bytes(pool, listener, tmp_path):
    path = tmp_path / "data"
    path.touch()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + bytes(1000))
            connection.recv(1)  # until the other side goes

    server = threading.Thread(target=serve)
    server.start()
    host, port = listener.getsockname()
    started = asyncio.Event()
    fetch = Fetch(f"http://{host}:{port}/", {}, path, 0, 5000, digest.of(bytes(5000)))
    job = asyncio.create_task(pool.fetch(fetch, lambda _: started.set()))
    await started.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    server.join()
    assert path.read_bytes() == bytes(1000)
    assert not children()


async def test_errors_of_a_fetch_come_back_as_what_they_are(pool, tmp_path):
    path = tmp_path / "data"
    path.touch()
    with pytest.raises(InvalidArgument, match="URL"):
        await pool.fetch(Fetch("ftp://x/", {}, path, 0, 5, digest.of(b"12345")), lambda _: None)


# -- what workers are forked from


async def test_workers_end_with_what_they_are_forked_from_and_it_is_replaced(pool, snapshot, endless, blob):
    job = asyncio.create_task(pool.apply(endless, OCI, bind(snapshot)))
    await until((snapshot / "f").exists)
    [parent], [worker] = parents(), children()
    os.kill(parent, signal.SIGKILL)
    with pytest.raises(Unavailable, match=f"worker process {worker} .*; try again"):
        await job
    assert not processes.is_alive(worker)
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    assert len(parents()) == len(children()) == 1


async def test_it_is_started_before_there_is_work_and_ends_when_there_is_none(tmp_path):
    pool = Pool(1, idle_s=0.2, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    try:
        pool.warm()
        pool.warm()
        await until(lambda: len(parents()) == 1)
        await until(lambda: not parents())
    finally:
        await pool.close()


async def test_whoever_gives_up_while_a_worker_is_forked_leaves_none(pool, snapshot, blob):
    await pool.apply(blob, f"{OCI}+gzip", bind(snapshot))
    [idle] = children()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fork = asyncio.create_task(pool._nursery.fork(theirs))
        await asyncio.sleep(0)  # asked, and no answer heard yet
        fork.cancel()
        await asyncio.wait([fork])
        await until(lambda: not pool._nursery._asked)
        await until(lambda: children() == [idle])
