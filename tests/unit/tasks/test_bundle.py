"""The bundle on disk."""

import json
import os
import stat
from pathlib import Path

import pytest

from runtimed.errors import AlreadyExists, Internal, InvalidArgument
from runtimed.tasks import bundle as bundles
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return Bundle.at(tmp_path / "root", tmp_path / "state", "ns", "t1")


def test_it_lies_where_every_containerd_client_expects_it(bundle, tmp_path):
    assert bundle.path == tmp_path / "state/io.containerd.runtime.v2.task/ns/t1"


def test_it_has_the_spec_a_rootfs_and_a_link_to_the_work_directory(bundle):
    bundle.create(b'{"ociVersion": "1.0"}')
    assert json.loads((bundle.path / "config.json").read_bytes()) == {"ociVersion": "1.0"}
    assert (bundle.path / "rootfs").is_dir()
    assert (bundle.path / "work").resolve() == bundle.work.resolve()
    assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((bundle.path / "config.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "x" * 77, "a\0b"])
def test_names_that_would_be_paths_are_refused(tmp_path, name):
    with pytest.raises(InvalidArgument):
        Bundle.at(tmp_path, tmp_path, "ns", name)
    with pytest.raises(InvalidArgument):
        Bundle.at(tmp_path, tmp_path, name, "t1")


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"annotations": ' + b"[" * 100_000,
        b'{"linux": 7}',
        b'{"linux": {"gidMappings": [7]}}',
        b'{"linux": {"gidMappings": [{"containerID": 0, "hostID": -1}]}}',
        b'{"linux": {"gidMappings": [{"containerID": 0, "hostID": 4294967295}]}}',
        b'{"linux": {"gidMappings": [{"containerID": 0, "hostID": "0"}]}}',
    ],
)
def test_a_spec_that_is_none_is_refused_before_anything_is_made(bundle, spec):
    with pytest.raises(InvalidArgument, match="container spec"):
        bundle.create(spec)
    assert not bundle.path.parent.parent.exists()


def test_a_second_one_is_refused_and_the_first_stays(bundle):
    bundle.create(b"{}")
    with pytest.raises(AlreadyExists):
        bundle.create(b'{"other": 1}')
    assert (bundle.path / "config.json").read_bytes() == b"{}"


def test_what_it_remembers_of_its_shim_comes_back(bundle):
    bundle.create(b"{}")
    assert bundle.endpoint() is None
    assert bundle.shim() == ""
    endpoint = Endpoint(path=Path("/s/1"), version=2, pid=7, started=9)
    bundle.save_endpoint(endpoint)
    bundle.save_shim("/bin/shim")
    assert bundle.endpoint() == endpoint
    assert bundle.shim() == "/bin/shim"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 3}', "\x00", '{"pid": {}, "address": "/s", "version": 2}']
)
def test_a_damaged_note_is_no_note(bundle, text):
    bundle.create(b"{}")
    (bundle.path / "bootstrap.json").write_text(text)
    assert bundle.endpoint() is None


def test_a_note_of_another_daemon_is_read_too(bundle):
    bundle.create(b"{}")
    (bundle.path / "bootstrap.json").write_text('{"version":2,"address":"unix:///s/1","protocol":"ttrpc"}')
    assert bundle.endpoint() == Endpoint(path=Path("/s/1"), version=2)


def test_deleting_removes_all_of_it_and_once_more_is_fine(bundle):
    bundle.create(b"{}")
    (bundle.work / "checkpoint").mkdir()
    bundle.delete()
    assert not bundle.path.exists()
    assert not bundle.work.exists()
    bundle.delete()


def test_what_is_in_the_rootfs_is_never_deleted(bundle):
    bundle.create(b"{}")
    (bundle.path / "rootfs/precious").touch()
    with pytest.raises(Internal, match="rootfs cannot be removed"):
        bundle.delete()
    assert (bundle.path / "rootfs/precious").exists()


def test_a_rootfs_that_has_become_a_link_is_not_followed(bundle, tmp_path):
    bundle.create(b"{}")
    (tmp_path / "outside").mkdir()
    (bundle.path / "rootfs").rmdir()
    (bundle.path / "rootfs").symlink_to(tmp_path / "outside")
    with pytest.raises(Internal):
        bundle.delete()
    assert (tmp_path / "outside").exists()


def test_the_log_can_be_opened_before_anybody_writes(bundle):
    bundle.create(b"{}")
    fd = bundle.make_log()
    writer = os.open(bundle.path / "log", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"x")
    assert os.read(fd, 10) == b"x"
    os.close(writer)
    os.close(fd)


def test_bundles_and_left_over_work_directories_are_found_again(tmp_path):
    root, state = tmp_path / "root", tmp_path / "state"
    Bundle.at(root, state, "a", "t1").create(b"{}")
    Bundle.at(root, state, "b", "t1").work.mkdir(parents=True)
    (state / bundles.DIRECTORY / "a" / "not a name!").mkdir()
    assert [(found.namespace, found.id) for found in bundles.found(root, state)] == [("a", "t1"), ("b", "t1")]
