"""What is taken out of the archive or image of a checkpoint, and that nothing else can come of one."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from runtimed.cri import checkpoint_files as files
from runtimed.errors import InvalidArgument, NotFound, ResourceExhausted
from tests.images.layouts import tar_of

NEEDED = {"config.dump": b"{}", "spec.dump": b"{ }", "checkpoint/inventory.img": b"inventory"}


def member(name, kind, link="", size=0):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


@pytest.fixture
def take(tmp_path):
    """Take out what an archive of members has."""

    def taken(members):
        archive = tmp_path / "archive.tar"
        archive.write_bytes(members if isinstance(members, bytes) else tar_of(members))
        files.from_archive(archive, tmp_path / "taken")
        return found(tmp_path / "taken")

    return taken


def found(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_a_restore_needs_is_taken_and_nothing_else(take, tmp_path):
    wanted = {**NEEDED, "rootfs-diff.tar": b"layer", "container.log": b"line", "checkpoint/pages-1.img": bytes(5000)}
    more = {"stats-dump": b"", "bind.mounts": b"", "artifacts/x": b"", "etc/config.dump": b"", "run": "/etc"}
    assert take({**more, **wanted}) == wanted
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "taken").rglob("*")} == {0o600, 0o700}


@pytest.mark.parametrize("start", ["./", "/", "a/../", "../../"])
def test_a_name_means_what_it_means_below_the_root(take, start):
    assert take({f"{start}{name}": content for name, content in NEEDED.items()}) == NEEDED


@pytest.mark.parametrize("name", ["config.dump", "container.log", "rootfs-diff.tar", "checkpoint/pages-1.img"])
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_what_is_no_file_is_refused(take, tmp_path, name, kind):
    with pytest.raises(InvalidArgument, match=f"checkpoint archive .*'{name}' is a .*, not a file"):
        take({**NEEDED, name: member(name, kind, link="/etc/shadow")})
    assert not any(path.is_symlink() for path in (tmp_path / "taken").rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_what_has_the_name_of_the_directory_leads_nowhere(take, tmp_path, kind):
    (tmp_path / "outside").mkdir()
    assert take({"checkpoint": member("checkpoint", kind, link=str(tmp_path / "outside")), **NEEDED}) == NEEDED
    assert not list((tmp_path / "outside").iterdir())


def sparse():
    """An archive with a file of a terabyte that is all hole, as GNU tar writes it."""
    entry = member("checkpoint/pages-1.img", tarfile.REGTYPE)
    entry.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0", "GNU.sparse.map": ""}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (b"", "has no checkpoint/inventory.img, config.dump, spec.dump"),
        (b"no archive" * 100, "tar:"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "is compressed .*; make it a plain tar archive first"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0", "is compressed"),
        ({**NEEDED, "./config.dump": b"{}"}, "'config.dump' is there twice"),
        ({**NEEDED, "checkpoint/a/b": b""}, "'checkpoint/a' in it is nothing that CRIU makes"),
        ({**NEEDED, "spec.dump": bytes((4 << 20) + 1)}, "spec.dump is larger than 4194304 bytes"),
        (tar_of(NEEDED)[:600], "tar:"),
        (sparse(), "is a sparse file|sparse"),
    ],
)
def test_what_is_no_archive_of_a_checkpoint_is_refused(take, archive, said):
    with pytest.raises(InvalidArgument, match=f"checkpoint archive .*archive.tar: .*({said})"):
        take(archive)


def test_there_is_a_limit_to_how_many_files_there_are(take, monkeypatch):
    monkeypatch.setattr(files, "_MOST_IMAGES", 2)
    with pytest.raises(InvalidArgument, match="more than 2 files in checkpoint/"):
        take({**NEEDED, "checkpoint/a": b"", "checkpoint/b": b""})


def test_what_is_larger_than_the_disk_is_not_begun(take, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 512, 1, 1, 1, 1, 1, 1, 1, 255)))
    with pytest.raises(ResourceExhausted, match=r"'checkpoint/pages-1.img' has 513 bytes, more than is free"):
        take({"checkpoint/pages-1.img": bytes(513), **NEEDED})
    assert found(tmp_path / "taken") == {}


@pytest.mark.parametrize("kind", ["nothing", "directory", "fifo"])
def test_only_a_file_is_an_archive(tmp_path, kind):
    path = tmp_path / "archive"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    said = "No such file" if kind == "nothing" else "is not a file"
    with pytest.raises(
        NotFound if kind == "nothing" else InvalidArgument, match=f"checkpoint archive {path}: .*{said}"
    ):
        files.from_archive(path, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


@pytest.fixture
def tree(tmp_path):
    """A mounted image of a checkpoint."""
    root = tmp_path / "root"
    for name, content in {**NEEDED, "rootfs-diff.tar": b"layer", "etc/passwd": b"x"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_of_an_image_the_same_is_taken(tree, tmp_path):
    files.from_tree(tree, tmp_path / "taken")
    assert found(tmp_path / "taken") == {**NEEDED, "rootfs-diff.tar": b"layer"}


@pytest.mark.parametrize("name", ["config.dump", "container.log", "checkpoint/pages-1.img"])
@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_in_an_image_too_only_a_file_is_taken(tree, tmp_path, name, kind):
    path: Path = tree / name
    path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(InvalidArgument, match=f"'{name}' is not a file"):
        files.from_tree(tree, tmp_path / "taken")


@pytest.mark.parametrize("kind", ["link", "nothing"])
def test_an_image_needs_the_directory_itself(tree, tmp_path, kind):
    (tree / "checkpoint").rename(tmp_path / "elsewhere")
    if kind == "link":
        (tree / "checkpoint").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgument, match="has no directory checkpoint: it is not the checkpoint of a container"):
        files.from_tree(tree, tmp_path / "taken")
