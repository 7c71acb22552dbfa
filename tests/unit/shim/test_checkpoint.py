"""What is said to CRIU, and what is believed of a checkpoint that somebody else may have made."""

import json
import os
import stat
from contextlib import ExitStack

import pytest

from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound
from shim import checkpoint
from shim import messages as pb

KIND = pb.CheckpointOptions.FULL_NAME


@pytest.fixture
def criu(tmp_path, monkeypatch):
    """A criu on PATH that nobody calls."""
    program = tmp_path / "bin/criu"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"/none::{program.parent}")
    return program


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    (path / "inventory.img").touch()
    return path


def options(**fields):
    return pb.Any(type_url=KIND, value=pb.CheckpointOptions(**fields).SerializeToString())


def test_the_options_of_a_request_are_those_of_runc():
    assert checkpoint.options_of(None) == pb.CheckpointOptions()
    assert checkpoint.options_of(pb.Any()) == pb.CheckpointOptions()
    given = {"exit": True, "cgroups_mode": "soft", "empty_namespaces": ["network"], "work_path": "/w"}
    assert checkpoint.options_of(options(**given)) == pb.CheckpointOptions(**given)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pb.Any(type_url="containerd.runc.v1.Options"), "a checkpoint takes containerd.runc.v1.CheckpointOptions"),
        (pb.Any(type_url=KIND, value=b"\xff"), "not a message"),
        (options(cgroups_mode="hard"), "'hard' is none of full, ignore, soft, strict"),
        (options(empty_namespaces=["--leave-running"]), "empty namespace '--leave-running'"),
        (options(work_path="w"), "work path 'w'.*absolute"),
        (options(parent_path="../p"), "parent path '../p'.*absolute"),
    ],
)
def test_options_that_cannot_be_are_refused(value, message):
    with pytest.raises(InvalidArgument, match=message):
        checkpoint.options_of(value)


def test_without_criu_the_remedy_is_named(tmp_path, images, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "criu").write_text("not executable")
    with pytest.raises(FailedPrecondition, match="checkpoints need criu: install it .* on the PATH of the daemon"):
        checkpoint.restore_from(str(images), str(tmp_path))


@pytest.mark.usefixtures("criu")
def test_a_restore_has_the_options_and_streams_of_its_checkpoint(tmp_path, images):
    notes = {"streams": {"file[1c:1a]": 1, "file[1c:1b]": 2}, "arguments": ["--tcp-established", "--file-locks"]}
    (images / "runtimed.json").write_text(json.dumps(notes))
    restore = checkpoint.restore_from(str(images), str(tmp_path))
    assert restore.config == "inherit-fd fd[1]:file[1c:1a]\ninherit-fd fd[2]:file[1c:1b]\n"
    assert restore.arguments == [
        *("--image-path", str(images), "--work-path", f"{tmp_path}/criu"),
        *("--tcp-established", "--file-locks"),
    ]


@pytest.mark.usefixtures("criu")
@pytest.mark.parametrize(
    "notes",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"streams": [], "arguments": {}}',
        '{"streams": {"file[1:1]\\nexec-cmd": 1, "pipe:[1]": 1, "file[1:1]": 3, "file[2:1]": "1", "file[3:1]": []}}',
        '{"arguments": ["--action-script=/x", "--root", ["--file-locks"], 7, null]}',
    ],
)
def test_of_what_another_wrote_beside_the_images_nothing_unknown_is_taken(tmp_path, images, notes):
    (images / "runtimed.json").write_text(notes)
    restore = checkpoint.restore_from(str(images), str(tmp_path), "/work")
    assert restore == checkpoint.Restore(["--image-path", str(images), "--work-path", "/work"], "")


@pytest.mark.usefixtures("criu")
def test_a_stream_may_have_other_permissions_than_the_one_it_replaces_but_is_of_its_kind(tmp_path, images):
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo, 0o600)
    file.touch()
    notes = {"streams": {"file[1:1]": 1}, "modes": {"file[1:1]": stat.S_IFIFO | 0o600}}
    (images / "runtimed.json").write_text(json.dumps(notes))
    with ExitStack() as held:

        def config(path):
            fd = os.open(path, os.O_RDWR)
            held.callback(os.close, fd)
            return checkpoint.restore_from(str(images), str(tmp_path), stdio=(fd, fd, fd)).config

        assert config(fifo) == "inherit-fd fd[1]:file[1:1]\n"
        fifo.chmod(0o644)
        assert config(fifo) == "inherit-fd fd[1]:file[1:1]\nskip-file-rwx-check\n"
        with pytest.raises(FailedPrecondition, match="descriptor 1 was a FIFO or pipe cannot be restored on a file"):
            config(file)
        with pytest.raises(FailedPrecondition, match="restored on a device: give it a stream of that kind"):
            config("/dev/null")


@pytest.mark.usefixtures("criu")
def test_a_directory_without_images_is_no_checkpoint(tmp_path):
    with pytest.raises(NotFound, match="no inventory.img"):
        checkpoint.restore_from(str(tmp_path / "none"), str(tmp_path))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/pods/one", "cgroup-root /pods/one\n"),
        ("kubepods-burstable.slice:cri:one", "cgroup-root /kubepods.slice/kubepods-burstable.slice/cri-one.scope\n"),
        ("-.slice:cri:one", "cgroup-root /cri-one.scope\n"),
        ("relative", ""),
        ("/with space", ""),
        ("/a\nexec-cmd", ""),
        ("/a#b", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_processes_come_back_in_the_cgroup_that_the_spec_names(tmp_path, path, told):
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": path}}))
    assert checkpoint._cgroup_config(str(tmp_path), str(tmp_path)) == told
    (tmp_path / "cgroup.controllers").unlink()
    assert checkpoint._cgroup_config(str(tmp_path), str(tmp_path)) == ""  # version 1, where the runtime says it


@pytest.mark.parametrize("spec", [None, "", "[]", '{"linux": null}', '{"linux": []}'])
def test_a_spec_that_names_no_cgroup_is_none_of_crius_affair(tmp_path, spec):
    (tmp_path / "cgroup.controllers").touch()
    if spec is not None:
        (tmp_path / "config.json").write_text(spec)
    assert checkpoint._cgroup_config(str(tmp_path), str(tmp_path)) == ""
