"""Workers that make a layer one EROFS file, in one step or in two."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from runtimed.errors import Aborted, InvalidArgument, Unavailable
from runtimed.linux.erofs import mount_file
from runtimed.linux.mount import move_mount, umount2
from runtimed.mounts import Mount, mounted_temporarily, mounts_below
from runtimed.oci import digest
from runtimed.workers.pool import Pool
from tests import processes
from tests.images import tars

pytestmark = pytest.mark.root

OCI = "application/vnd.oci.image.layer.v1.tar"
# user::rw-, user:1000:r--, group::r--, mask::r--, other::r-- (linux/posix_acl_xattr.h)
ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff")


@pytest.fixture
async def pool(tmp_path):
    pool = Pool(2, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    yield pool
    await pool.close()
    assert not mounts_below(tmp_path)


class Stage:
    """A snapshot as overlayfs has it, and where its layer file goes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("lower", "upper", "work"):
            (root / name).mkdir()
        self.target = root / "layer.erofs"

    def bottom(self) -> list[Mount]:
        return [Mount("bind", str(self.root / "upper"), options=("rbind", "rw"))]

    def over(self, *lower: Path) -> list[Mount]:
        names = ":".join(str(path) for path in lower)
        options = (f"lowerdir={names}", f"upperdir={self.root}/upper", f"workdir={self.root}/work")
        return [Mount("overlay", "overlay", options=options)]

    def blob(self, *members: bytes) -> Path:
        path = self.root / "blob"
        path.write_bytes(tars.tar(*members))
        return path

    def shown(self, *lower: Path) -> dict[str, str]:
        """Return the files of the layer file over *lower*: text, or what they are."""
        mountpoint = self.root / "mounted"
        mountpoint.mkdir()
        made, fd = mount_file(str(self.target)), os.open(mountpoint, os.O_PATH)
        move_mount(made, fd)
        os.close(made)
        os.close(fd)
        try:
            options = (f"lowerdir={':'.join(map(str, (mountpoint, *lower, self.root / 'work')))}",)
            with mounted_temporarily([Mount("overlay", "overlay", options=options)]) as merged:
                return {str(path.relative_to(merged)): text(path) for path in sorted(merged.rglob("*"))}
        finally:
            umount2(str(mountpoint), 0)
            mountpoint.rmdir()


def text(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return f"{path.stat().st_mode & 0o7777:o}" if path.is_dir() else path.read_text()


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


async def test_a_layer_becomes_a_file_and_the_upper_directory_stays_empty(pool, stage, tmp_path):
    blob = stage.blob(tars.directory(b"d", mode=0o700), tars.file(b"d/f", b"data"), tars.symlink(b"l", b"d"))
    applied = await pool.apply(blob, OCI, stage.bottom(), stage.target)
    assert (applied.diff_id, applied.size) == (digest.of(blob.read_bytes()), blob.stat().st_size)
    assert stage.shown() == {"d": "700", "d/f": "data", "l": "-> d"}
    assert list((tmp_path / "upper").iterdir()) == list((tmp_path / "mountpoint").iterdir()) == []


@pytest.mark.parametrize("lowers", [1, 2])
async def test_what_lies_below_is_seen(pool, stage, tmp_path, lowers):
    (tmp_path / "lower/d").mkdir(mode=0o711)
    (tmp_path / "lower/gone").touch()
    (tmp_path / "other").mkdir()
    below = [tmp_path / "lower", tmp_path / "other"][:lowers]
    blob = stage.blob(tars.file(b"d/f", b"data"), tars.file(b".wh.gone"), tars.file(b".wh.never"))
    await pool.apply(blob, OCI, stage.over(*below), stage.target)
    assert stage.shown(*below) == {"d": "711", "d/f": "data"}
    assert list((tmp_path / "upper").iterdir()) == list((tmp_path / "work").iterdir()) == []


async def test_in_two_steps_the_bytes_come_before_what_lies_below(pool, stage, tmp_path):
    blob = stage.blob(tars.file(b"d/f", b"data"), tars.file(b".wh.gone"))
    async with pool.received(blob, OCI, tmp_path) as received:
        assert received.applied.diff_id == digest.of(blob.read_bytes())
        blob.unlink()
        (tmp_path / "lower/d").mkdir(mode=0o711)
        (tmp_path / "lower/gone").touch()
        assert await received.finish(stage.over(tmp_path / "lower"), stage.target)
    assert stage.shown(tmp_path / "lower") == {"d": "711", "d/f": "data"}


async def test_more_layers_wait_than_workers_work(pool, stage, tmp_path):
    blob = stage.blob(tars.file(b"f", b"data"))
    async with (
        pool.received(blob, OCI, tmp_path),
        pool.received(blob, OCI, tmp_path),
        pool.received(blob, OCI, tmp_path) as third,
    ):
        await pool.apply(blob, OCI, stage.bottom())
        assert await third.finish(stage.bottom(), stage.target)
    assert stage.shown() == {"f": "data"}


async def test_what_no_file_expresses_is_extracted(pool, stage, tmp_path):
    acl = tars.pax({b"SCHILY.xattr.system.posix_acl_access": ACL})
    blob = stage.blob(acl, tars.file(b"f", b"data"))
    applied = await pool.apply(blob, OCI, stage.bottom(), stage.target)
    assert applied.diff_id == digest.of(blob.read_bytes())
    assert (tmp_path / "upper/f").read_text() == "data"
    assert os.getxattr(tmp_path / "upper/f", "system.posix_acl_access") == ACL
    assert not stage.target.exists()
    async with pool.received(blob, OCI, tmp_path) as received:
        assert not await received.finish(stage.bottom(), stage.target)


@pytest.mark.parametrize("member", [tars.header(b"f", size=4096), tars.hard_link(b"f", b"nothing")])
async def test_a_layer_that_is_wrong_leaves_no_file(pool, stage, tmp_path, member):
    blob = stage.blob(member)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidArgument, match=r"truncated|'nothing'"):
        await pool.apply(blob, OCI, stage.bottom(), stage.target)
    with pytest.raises(InvalidArgument, match=r"truncated|'nothing'"):
        async with pool.received(blob, OCI, tmp_path) as received:
            await received.finish(stage.bottom(), stage.target)
    assert sorted(tmp_path.rglob("*")) == before


async def test_a_snapshot_that_has_a_layer_or_is_gone_gets_none(pool, stage, tmp_path):
    blob = stage.blob(tars.file(b"f", b"data"))
    stage.target.write_text("theirs")
    with pytest.raises(Aborted, match="somebody else"):
        await pool.apply(blob, OCI, stage.bottom(), stage.target)
    assert stage.target.read_text() == "theirs"
    async with pool.received(blob, OCI, tmp_path) as received:
        with pytest.raises(Aborted, match="somebody else"):
            await received.finish(stage.bottom(), tmp_path / "removed" / "layer.erofs")


async def test_a_worker_that_dies_while_a_layer_waits_costs_that_layer(pool, stage, tmp_path):
    blob, others = stage.blob(tars.file(b"f", b"data")), processes.children()
    async with pool.received(blob, OCI, tmp_path) as received:
        [parent] = set(processes.children()).difference(others)
        for pid in processes.children(parent):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="killed by signal 9; try again"):
            await received.finish(stage.bottom(), stage.target)
    await pool.apply(blob, OCI, stage.bottom(), stage.target)


async def test_a_layer_that_is_given_up_ends_its_process(pool, stage, tmp_path):
    blob, others = stage.blob(tars.file(b"f", b"data")), processes.children()
    async with pool.received(blob, OCI, tmp_path):
        [parent] = set(processes.children()).difference(others)
        assert len(processes.children(parent)) == 1
    assert processes.children(parent) == []
    with suppress(ZeroDivisionError):
        async with pool.received(blob, OCI, tmp_path):
            raise ZeroDivisionError
    assert processes.children(parent) == []
