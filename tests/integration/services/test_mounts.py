"""The Mounts service with real file systems and loop devices."""

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import grpc.aio
import pytest

from runtimed.api import mounts_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.mounts_pb2_grpc import MountsStub, add_MountsServicer_to_server
from runtimed.collector import Collector
from runtimed.config import Gc
from runtimed.content.local import LocalStore
from runtimed.events import EventBus
from runtimed.linux import loop
from runtimed.metadata import containers, leases
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.opaque import Opaque
from runtimed.mounting.manager import MountManager
from runtimed.mounts import mounts_below, unmount_all
from runtimed.services.mounts import MountsService
from tests.fakes.server import NAMESPACE, served

pytestmark = pytest.mark.root

SIZE = "X-containerd.mkfs.size=2MiB"


class Served:
    """A daemon's part that mounts, on a directory of its own."""

    def __init__(self, home):
        self.home = home
        self.directory = home / "mounts"
        self.snapshots = home / "snapshotters"
        self.snapshots.mkdir(exist_ok=True)
        self.database = Database(home / "metadata.db")
        self.manager = MountManager(self.database, self.directory, [self.snapshots])

    def disk(self, name="disk.img", *options):
        source = str(self.snapshots / name)
        return mount("mkfs/loop", source, SIZE, "X-containerd.mkfs.fs=ext4", *options)

    def mounted(self):
        return [path for path in mounts_below(self.home) if path.is_relative_to(self.directory)]

    def devices(self):
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        return [path for path in backing if path.read_text().startswith(str(self.home))]

    @asynccontextmanager
    async def collector(self):
        content = Content(self.database, LocalStore(self.home / "content"))
        collector = Collector(self.database, content, {}, EventBus(), Gc(), self.manager.discard)
        async with collector.running():
            yield collector


@pytest.fixture
def daemon(tmp_path):
    served = Served(tmp_path)
    with closing(served.database):
        yield served
    unmount_all(served.directory)
    for path in served.devices():
        loop.detach(f"/dev/{path.parent.parent.name}")


@pytest.fixture
async def stub(daemon):
    service = MountsService(daemon.manager)
    async with served(daemon.home / "s", lambda server: add_MountsServicer_to_server(service, server)) as channel:
        yield MountsStub(channel)


def write(directory, text):
    Path(directory, "file").write_text(text)


def read(directory, name="file"):
    return Path(directory, name).read_text()


def backing_files():
    return [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def is_there(path):
    return os.path.lexists(path)


def device_of(link):
    return str(Path(link).readlink())


def mode_and_owner(path):
    found = Path(path).stat()
    return found.st_mode & 0o777, found.st_uid, found.st_gid


def mount(type, source, *options, target=""):
    return types_pb2.Mount(type=type, source=source, target=target, options=options)


async def activate(stub, name, *mounts, metadata=NAMESPACE, **fields):
    request = pb.ActivateRequest(name=name, mounts=mounts, **fields)
    return (await stub.Activate(request, metadata=metadata)).info


async def listed(stub, *filters):
    request = pb.ListRequest(filters=filters)
    return [message.info async for message in stub.List(request, metadata=NAMESPACE)]


async def code(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await awaitable
    return failed.value.code().name


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An EROFS file with a file in it."""
    home = tmp_path_factory.mktemp("erofs")
    tree = home / "tree"
    tree.mkdir()
    (tree / "hello").write_text("erofs")
    subprocess.run(["mkfs.erofs", "--quiet", home / "image", tree], check=True, capture_output=True)
    return home / "image"


async def test_a_disk_is_made_formatted_and_left_as_an_overlay_to_mount(daemon, stub):
    info = await activate(
        stub,
        "vm",
        daemon.disk(),
        mount("format/ext4", "{{ mount 0 }}", "noatime"),
        mount(
            "format/mkdir/overlay",
            "overlay",
            "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 1 }}/work:0711:7:8",
            "upperdir={{ mount 1 }}/upper",
            "workdir={{ mount 1 }}/work",
            f"lowerdir={daemon.snapshots}",
        ),
        labels={"a": "1"},
    )
    device, disk = info.active
    assert (info.name, dict(info.labels)) == ("vm", {"a": "1"})
    assert (device.mount.type, device.mount.source) == ("loop", str(daemon.snapshots / "disk.img"))
    assert list(device.mount.options) == []
    assert device.mounted_at.seconds > 0
    assert (disk.mount.type, disk.mount.source) == ("ext4", device.mount_point)
    (overlay,) = info.system
    assert (overlay.type, overlay.options[0]) == ("overlay", f"upperdir={disk.mount_point}/upper")
    assert not any(option.startswith("X-containerd") for option in overlay.options)
    assert mode_and_owner(f"{disk.mount_point}/work") == (0o711, 7, 8)
    assert daemon.mounted() == [Path(disk.mount_point)]
    assert (await stub.Info(pb.InfoRequest(name="vm"), metadata=NAMESPACE)).info == info

    await stub.Deactivate(pb.DeactivateRequest(name="vm"), metadata=NAMESPACE)
    assert (daemon.mounted(), daemon.devices(), list(daemon.directory.iterdir())) == ([], [], [])
    assert await listed(stub) == []


async def test_a_file_system_that_is_there_is_used_again(daemon, stub):
    disk = mount("format/ext4", "{{ mount 0 }}")
    on_top = mount("format/bind", "{{ mount 1 }}", "rbind")
    info = await activate(stub, "first", daemon.disk(), disk, on_top)
    write(info.system[0].source, "kept")
    await stub.Deactivate(pb.DeactivateRequest(name="first"), metadata=NAMESPACE)
    info = await activate(stub, "second", daemon.disk(), disk, on_top)
    assert read(info.system[0].source) == "kept"
    assert [path.name for path in daemon.snapshots.iterdir()] == ["disk.img"]


@pytest.mark.parametrize("options", [(), ("ro",), ("loop",)], ids=["plain", "read-only", "by-a-device"])
async def test_an_erofs_file_is_mounted(daemon, stub, image, options):
    info = await activate(stub, "layer", mount("erofs", str(image), *options), mount("format/bind", "{{ mount 0 }}"))
    assert read(info.active[0].mount_point, "hello") == "erofs"
    assert info.system[0].source == info.active[0].mount_point
    assert (str(image) in backing_files()) is (options == ("loop",))
    await stub.Deactivate(pb.DeactivateRequest(name="layer"), metadata=NAMESPACE)
    assert daemon.mounted() == []
    assert str(image) not in backing_files()


async def test_a_temporary_activation_makes_all_and_leaves_a_bind(daemon, stub, tmp_path):
    (tmp_path / "source").mkdir()
    info = await activate(stub, "t", mount("bind", str(tmp_path / "source"), "rbind", "ro"), temporary=True)
    assert daemon.mounted() == [Path(info.active[0].mount_point)]
    assert list(info.system) == [mount("bind", info.active[0].mount_point, "rbind")]


async def test_what_needs_no_manager_is_left_to_the_caller(stub, tmp_path):
    assert await code(activate(stub, "x", mount("bind", str(tmp_path), "rbind"))) == "UNIMPLEMENTED"
    assert await code(activate(stub, "x", mount("unknown/overlay", "overlay"))) == "UNIMPLEMENTED"
    assert await code(activate(stub, "x", temporary=True)) == "UNIMPLEMENTED"


async def test_errors(daemon, stub):
    await activate(stub, "one", daemon.disk())
    assert await code(activate(stub, "one", daemon.disk("other.img"))) == "ALREADY_EXISTS"
    assert await code(activate(stub, "", daemon.disk())) == "INVALID_ARGUMENT"
    assert await code(activate(stub, "x", daemon.disk(), metadata=())) == "FAILED_PRECONDITION"
    leased = (*NAMESPACE, ("containerd-lease", "nosuch"))
    assert await code(activate(stub, "x", daemon.disk("x.img"), metadata=leased)) == "NOT_FOUND"
    for call, request in (
        (stub.Info, pb.InfoRequest(name="x")),
        (stub.Deactivate, pb.DeactivateRequest(name="x")),
        (stub.Update, pb.UpdateRequest(info=types_pb2.ActivationInfo(name="x"))),
    ):
        assert await code(call(request, metadata=NAMESPACE)) == "NOT_FOUND"
    assert await code(stub.Update(pb.UpdateRequest(), metadata=NAMESPACE)) == "INVALID_ARGUMENT"
    assert len(daemon.devices()) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "INVALID_ARGUMENT"),
        (("X-containerd.mkfs.size=0",), "INVALID_ARGUMENT"),
        (("X-containerd.mkfs.size=lots",), "INVALID_ARGUMENT"),
        (("X-containerd.mkfs.size=1k",), "INVALID_ARGUMENT"),  # mkfs itself says so
        ((SIZE, "X-containerd.mkfs.fs=../sh"), "INVALID_ARGUMENT"),
        ((SIZE, "X-containerd.mkfs.uuid=x"), "INVALID_ARGUMENT"),
        ((SIZE, "X-containerd.mkfs.nosuch=x"), "INVALID_ARGUMENT"),
        ((SIZE, "bad"), "INVALID_ARGUMENT"),
    ],
)
async def test_a_disk_that_cannot_be_made_leaves_nothing(daemon, stub, options, expected):
    asked = mount("mkfs/loop", str(daemon.snapshots / "disk.img"), *options)
    assert await code(activate(stub, "x", asked)) == expected
    assert (daemon.devices(), list(daemon.directory.iterdir()), await listed(stub)) == ([], [], [])
    assert [path.name for path in daemon.snapshots.iterdir() if path.name != "disk.img"] == []


async def test_the_last_mount_failing_takes_the_others_off(daemon, stub):
    broken = mount("format/ext4", "{{ mount 0 }}/nosuch")
    rest = mount("format/bind", "{{ mount 1 }}")
    assert await code(activate(stub, "x", daemon.disk(), broken, rest)) != "OK"
    assert (daemon.mounted(), daemon.devices(), list(daemon.directory.iterdir())) == ([], [], [])


@pytest.mark.parametrize("path", ["/etc/x", "{home}/snapshotters/../x", "{home}/snapshotters/link/x", "{home}"])
async def test_directories_and_disks_are_made_in_the_daemons_own_only(daemon, stub, path):
    (daemon.snapshots / "link").symlink_to(daemon.home)
    path = path.format(home=daemon.home)
    before = sorted(daemon.home.iterdir())
    directory = mount("mkdir/bind", "x", f"X-containerd.mkdir.path={path}")
    assert await code(activate(stub, "x", directory)) == "INVALID_ARGUMENT"
    assert await code(activate(stub, "x", mount("mkfs/loop", path, SIZE))) == "INVALID_ARGUMENT"
    assert [entry for entry in sorted(daemon.home.iterdir()) if entry not in before] in ([], [daemon.directory])
    assert not is_there("/etc/x")


async def test_a_directory_that_is_there_must_be_as_asked(daemon, stub):
    (daemon.snapshots / "d").mkdir(mode=0o750)
    (daemon.snapshots / "f").write_text("")
    for value, expected in (
        ("d:0700", "FAILED_PRECONDITION"),
        ("f", "FAILED_PRECONDITION"),
        ("d:rwx", "INVALID_ARGUMENT"),
        ("d:0700:1", "INVALID_ARGUMENT"),
        ("nosuch/d", "NOT_FOUND"),
    ):
        asked = mount("mkdir/bind", "x", f"X-containerd.mkdir.path={daemon.snapshots}/{value}")
        assert await code(activate(stub, "x", asked)) == expected, value
    made = await activate(stub, "x", mount("mkdir/bind", "x", f"X-containerd.mkdir.path={daemon.snapshots}/d:0750"))
    assert list(made.system) == [mount("bind", "x")]


async def test_labels_change_and_filters_match(daemon, stub):
    await activate(stub, "one", daemon.disk("1.img"), labels={"a": "1"})
    await activate(stub, "two", daemon.disk("2.img"))
    request = pb.UpdateRequest(info=types_pb2.ActivationInfo(name="one", labels={"b": "2"}))
    request.update_mask.paths.append("labels.b")
    changed = (await stub.Update(request, metadata=NAMESPACE)).info
    assert dict(changed.labels) == {"a": "1", "b": "2"}
    assert [info.name for info in await listed(stub)] == ["one", "two"]
    assert await listed(stub, "labels.b==2") == [changed]
    assert [info.name for info in await listed(stub, "name==two", "labels.a==1")] == ["one", "two"]
    request.update_mask.paths[:] = ["active"]
    assert await code(stub.Update(request, metadata=NAMESPACE)) == "INVALID_ARGUMENT"
    assert await code(stub.List(pb.ListRequest(filters=["=="]), metadata=NAMESPACE).read()) == "INVALID_ARGUMENT"


async def test_mounts_outlive_the_daemon_and_what_is_half_made_does_not(daemon, stub):
    kept = await activate(stub, "kept", daemon.disk("1.img"), mount("format/ext4", "{{ mount 0 }}"),
                          mount("format/bind", "{{ mount 1 }}"))  # fmt: skip
    gone = await activate(stub, "gone", daemon.disk("2.img"))
    crashed = await activate(stub, "crashed", daemon.disk("3.img"))
    daemon.database.submit(lambda tx: tx.execute("DELETE FROM mounts WHERE name = 'crashed'")).result()
    loop.detach(device_of(gone.active[0].mount_point))  # as after a reboot

    again = MountManager(daemon.database, daemon.directory, [daemon.snapshots])
    await again.reconcile()
    assert [one.name for one in await again.matching("default", [])] == ["kept"]
    assert daemon.mounted() == [Path(kept.active[1].mount_point)]
    assert len(daemon.devices()) == 1
    assert not is_there(crashed.active[0].mount_point)
    await again.deactivate("default", "kept")
    assert (daemon.devices(), list(daemon.directory.iterdir())) == ([], [])


async def test_garbage_collection_takes_what_neither_a_lease_nor_a_label_holds(daemon, stub):
    write = daemon.database.write
    await write(leases.create, "default", leases.Lease(id="l"))
    spec = Opaque("t", b"{}")
    await write(containers.create, "default", containers.Container(id="c", runtime="r", spec=spec))
    leased = (*NAMESPACE, ("containerd-lease", "l"))
    async with daemon.collector() as collector:
        await activate(stub, "leased", daemon.disk("1.img"), metadata=leased)
        await activate(stub, "of-c", daemon.disk("2.img"), labels={"containerd.io/gc.bref.container": "c"})
        await activate(stub, "of-nobody", daemon.disk("3.img"), labels={"containerd.io/gc.bref.container": "d"})
        await collector.collect()
        assert [info.name for info in await listed(stub)] == ["leased", "of-c"]
        assert len(daemon.devices()) == 2
        await write(leases.delete, "default", "l")
        await write(containers.delete, "default", "c")
        await collector.collect()
    assert await listed(stub) == []
    assert (daemon.devices(), list(daemon.directory.iterdir())) == ([], [])


async def test_two_that_take_one_name_at_once(daemon, stub):
    names = [daemon.disk(f"{number}.img") for number in range(4)]
    done = await asyncio.gather(*(activate(stub, "x", one) for one in names), return_exceptions=True)
    assert [type(one).__name__ for one in done].count("ActivationInfo") == 1
    assert len(daemon.devices()) == 1
