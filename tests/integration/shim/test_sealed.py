"""runc executed from sealed memory, and from its file where that cannot be. A hook tells which, a child of it."""

import fcntl
import os
import shutil

import pytest

from runtimed.api import task_v3_pb2 as pb
from shim import loop, sealed, shortcuts
from shim.exits import Children
from shim.options import Options
from shim.runc import Runc
from tests.integration.shim.conftest import Nursery

pytestmark = pytest.mark.root

RUNC = shutil.which("runc") or "runc"
MEMORY = "/memfd:runc (deleted)"


@pytest.fixture
def telling(bundle, tmp_path):
    """Make a bundle whose runc writes down what program it is, and its command line; returns it and the file."""
    script, said = tmp_path / "hook", tmp_path / "said"
    script.write_text(f"#!/bin/sh\nreadlink /proc/$PPID/exe >> {said}\ntr '\\0' ' ' < /proc/$PPID/cmdline >> {said}\n")
    script.chmod(0o755)

    def make(script_inside):
        return bundle(script_inside, hooks={"createRuntime": [{"path": str(script)}]}), said

    return make


@pytest.fixture
def own(tmp_path):
    """A nursery with a runc of its own on its PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    shutil.copy(RUNC, directory / "runc")
    nursery = Nursery(tmp_path / "rehearsal", PATH=f"{directory}:{os.environ['PATH']}")
    yield nursery, directory / "runc"
    nursery.close()


async def test_runc_creates_and_execs_from_memory(shim, telling):
    path, said = telling("sleep 60")
    await shim.run("t1", path)
    program, command = said.read_text().splitlines()
    assert program == MEMORY
    assert command.startswith("runc --root ")
    await shim.exec("t1", "e1", "exit 7")
    await shim.Start(pb.StartRequest(id="t1", exec_id="e1"))
    assert (await shim.wait("t1", "e1")).exit_status == 7


async def test_one_that_was_replaced_is_executed_from_its_file(own, fork, shim_of, telling):
    nursery, runc = own
    async with shim_of(*fork(nursery)) as shim:
        shutil.copy(runc, runc.with_name("new"))
        runc.with_name("new").rename(runc)
        path, said = telling("true")
        await shim.run("t1", path)
        assert said.read_text().splitlines()[0] == str(runc)


@pytest.fixture
def loaded(monkeypatch):
    """runc's copy, in this process."""
    monkeypatch.setattr(shortcuts, "_trusted", None)
    monkeypatch.setattr(sealed, "_fd", -1)
    shortcuts.learn()
    sealed.load(shortcuts.trusted())
    (fd,) = sealed.fds()
    yield fd
    os.close(fd)


def test_nobody_can_change_the_copy(loaded):
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(loaded, fcntl.F_GET_SEALS) == seals
    fd = os.open(f"/proc/self/fd/{loaded}", os.O_RDWR)
    try:
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 30)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


def test_only_what_enters_a_container_is_executed_from_memory(loaded):
    assert sealed.program("runc", "create") == sealed.program("runc", "exec") == f"/proc/self/fd/{loaded}"
    assert sealed.program("runc", "restore") == sealed.program("crun", "create") == ""


def test_memory_that_cannot_be_executed_is_done_without(loaded, tmp_path):
    os.fchmod(loaded, 0o444)
    runc = Runc(Children(), Options(root=str(tmp_path)), "test", str(tmp_path))
    null = os.open(os.devnull, os.O_RDWR)

    async def spawned():
        environment = {"PATH": os.environ["PATH"]}
        return (await runc._spawn("create", ["runc", "--version"], environment, (null, null, null)).exited).status

    assert loop.run(spawned()) == 0
    os.close(null)


def test_a_script_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed, "_fd", -1)
    script = tmp_path / "runc"
    script.write_text("#!/bin/sh\necho runc version 1.1.5\n")
    script.chmod(0o755)
    sealed.load(str(script))
    sealed.load(str(tmp_path / "missing"))
    assert sealed.fds() == ()
