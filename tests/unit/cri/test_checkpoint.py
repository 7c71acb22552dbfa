"""The archive of a checkpoint, as far as CRIU has no part in it; with it: vm/inside/test_cri_checkpoint.py."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cri import checkpoint
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimedError


def test_a_status_is_as_go_would_write_it():
    status = pb.ContainerStatus(
        id="c",
        metadata=pb.ContainerMetadata(name="n", attempt=2),
        state=pb.CONTAINER_EXITED,
        created_at=1 << 60,
        labels={"a": "b"},
        mounts=[pb.Mount(container_path="/x", readonly=True)],
    )
    assert checkpoint.plain(status) == {
        "id": "c",
        "metadata": {"name": "n", "attempt": 2},
        "state": 2,
        "created_at": 1 << 60,
        "labels": {"a": "b"},
        "mounts": [{"container_path": "/x", "readonly": True}],
    }
    json.dumps(checkpoint.plain(status))


@pytest.fixture
def made(tmp_path):
    """What there is before the archive is written."""
    directory = tmp_path / "checkpoint-x"
    (directory / "checkpoint").mkdir(parents=True)
    (directory / "checkpoint/inventory.img").write_bytes(b"image")
    (directory / "rootfs-diff.tar").write_bytes(b"layer")
    return directory


def test_the_archive_is_written_whole(made, tmp_path):
    location, log = tmp_path / "out/c.tar", tmp_path / "log"
    location.parent.mkdir()
    location.write_text("of before")
    log.write_text("line\n")
    (made / "dump.log").write_text("done")
    checkpoint._write(made, {"spec.dump": b"{}", "status": b"1"}, str(log), location)
    with tarfile.open(location) as archive:
        found = {name: archive.extractfile(name) for name in archive.getnames()}
        assert {name: file.read() for name, file in found.items() if file} == {
            "checkpoint/inventory.img": b"image",
            "rootfs-diff.tar": b"layer",
            "spec.dump": b"{}",
            "status": b"1",
            "dump.log": b"done",
            "container.log": b"line\n",
        }
    assert location.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in location.parent.iterdir()] == ["c.tar"]


def test_of_one_that_cannot_be_written_nothing_is_there(made, tmp_path):
    (tmp_path / "out").mkdir()
    (made / "rootfs-diff.tar").unlink()
    with pytest.raises(RuntimedError):
        checkpoint._write(made, {}, "", tmp_path / "out/c.tar")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(NotFound, match="make it first"):
        checkpoint._make(tmp_path / "new", tmp_path / "missing/c.tar")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("left", [True, False])
async def test_a_container_that_a_checkpoint_has_paused_goes_on_after_a_restart(tmp_path, left):
    """And one that somebody else has paused stays so."""
    resumed = []

    async def resume(namespace, id):
        resumed.append(id)
        raise FailedPrecondition("not paused")

    container: Any = SimpleNamespace(id="c")
    core: Any = SimpleNamespace(
        tasks=SimpleNamespace(resume=resume),
        container_directory=lambda id: tmp_path / id,
        state=SimpleNamespace(containers=[container]),
    )
    (tmp_path / "c").mkdir()
    if left:
        (tmp_path / "c/checkpoint-1234").mkdir()
    for interrupted, directories in checkpoint.interrupted(core):
        await checkpoint.recover(core, interrupted, directories)
    assert resumed == ["c"] * left
    assert not list((tmp_path / "c").iterdir())


def test_what_cannot_be_written_is_told_of_the_archive(made, tmp_path):
    shutil.rmtree(made)
    with pytest.raises(RuntimedError, match=f"checkpoint archive {tmp_path}/c.tar"):
        checkpoint._write(made, {"spec.dump": b"{}"}, "", tmp_path / "c.tar")
    assert not list(tmp_path.glob(".c.tar*"))


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "nothing"])
def test_what_is_no_log_is_not_taken_into_the_archive(made, tmp_path, kind):
    """Who may write to the directory of logs must not have the daemon read for him, or read without end."""
    secret, log = tmp_path / "secret", tmp_path / "log"
    secret.write_text("of the host")
    match kind:
        case "link":
            log.symlink_to(secret)
        case "fifo":
            os.mkfifo(log)
        case "device":
            log.symlink_to("/dev/zero")
    checkpoint._write(made, {}, str(log), tmp_path / "c.tar")
    with tarfile.open(tmp_path / "c.tar") as archive:
        assert "container.log" not in archive.getnames()


def test_a_log_that_grows_is_taken_as_long_as_it_was(made, tmp_path, monkeypatch):
    log, target = tmp_path / "log", tmp_path / "copy"
    log.write_bytes(b"x" * 100)
    monkeypatch.setattr(checkpoint, "_CHUNK", 60)
    found = os.fstat

    def grown(fd):
        size = found(fd)
        with log.open("ab") as file:
            file.write(b"y" * 1000)
        return size

    monkeypatch.setattr(os, "fstat", grown)
    checkpoint._copy_log(str(log), target)
    assert target.read_bytes() == b"x" * 100


@pytest.mark.parametrize("name", ["", "..", "made"])
def test_a_directory_is_no_archive(tmp_path, name):
    (tmp_path / "made").mkdir()
    location = tmp_path / name if name else Path("/")
    with pytest.raises(InvalidArgument, match="is a directory; name a file in it"):
        checkpoint._make(tmp_path / "checkpoint-x", location)
    assert not (tmp_path / "checkpoint-x").exists()
