"""Start and delete without runc where that is plain, and by runc where it is not. The fixture looks at what is left."""

import json
import os
import shutil
from pathlib import Path

import pytest

from runtimed.api import task_v3_pb2 as pb
from tests.integration.shim.conftest import Nursery

pytestmark = pytest.mark.root

RUNC = shutil.which("runc")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The log of a runc, first on the nursery's PATH, which writes down its commands."""
    directory = tmp_path_factory.mktemp("recorded")
    log = directory / "commands"
    for name, version in (("runc", ""), ("crun", ""), ("new/runc", 'echo "runc version 2.0.0"; exit')):
        binary = directory / name
        binary.parent.mkdir(exist_ok=True)
        # --root DIR --log FILE --log-format json COMMAND
        record = f'[ "$1" = --version ] || echo "$7" >> {log}\n'
        tell = f'[ "$1" != --version ] || {{ {version}; }}\n' if version else ""
        binary.write_text(f'#!/bin/sh\n{tell}{record}exec {RUNC} "$@"\n')
        binary.chmod(0o755)
    return log


@pytest.fixture(scope="module")
def nursery(tmp_path_factory, commands):
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "rehearsal", PATH=f"{commands.parent}:{os.environ['PATH']}")
    yield nursery
    nursery.close()


@pytest.fixture
def recorded(options, commands):
    """Options that name a runc, and a function that returns its commands."""

    def make(name=""):
        commands.write_text("")
        return options(binary_name=name), lambda: commands.read_text().split()

    return make


def add_cgroups(cgroup):
    for hierarchy in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        if (hierarchy / cgroup).is_dir():
            (hierarchy / cgroup / "inner").mkdir()


async def test_a_plain_container_is_started_and_deleted_without_runc(shim, bundle, recorded):
    given, commands = recorded()
    await shim.run("t1", bundle("exit 7"), options=given)
    assert (await shim.wait("t1")).exit_status == 7
    await shim.delete("t1")
    assert commands() == ["create"]


async def test_hooks_are_left_to_runc(shim, bundle, recorded, tmp_path):
    given, commands = recorded()
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/ran\n")
    script.chmod(0o755)
    hooks = {kind: [{"path": str(script), "args": ["hook", kind]}] for kind in ("poststart", "poststop")}
    await shim.run("t1", bundle("true", hooks=hooks), options=given)
    await shim.wait("t1")
    await shim.delete("t1")
    assert (tmp_path / "ran").read_text().split() == ["poststart", "poststop"]
    assert commands() == ["create", "start", "delete"]


async def test_another_runtime_is_left_to_itself(shim, bundle, recorded):
    given, commands = recorded("crun")
    await shim.run("t1", bundle("true"), options=given)
    await shim.wait("t1")
    await shim.delete("t1")
    assert commands() == ["create", "start", "delete"]


async def test_cgroups_that_the_container_made_are_left_to_runc(shim, bundle, recorded):
    given, commands = recorded()
    path = bundle("sleep 60")
    await shim.run("t1", path, options=given)
    cgroup = json.loads((path / "config.json").read_text())["linux"]["cgroupsPath"].lstrip("/")
    add_cgroups(cgroup)
    await shim.kill("t1")
    await shim.wait("t1")
    await shim.delete("t1")
    assert commands() == ["create", "delete"]


async def test_a_state_with_something_unknown_in_it_is_left_to_runc(shim, bundle, recorded, runc_root):
    given, commands = recorded()
    await shim.create("t1", bundle("true"), options=given)
    state = next(runc_root.glob("*/t1/state.json"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"of_a_later_version": {}}))
    await shim.Start(pb.StartRequest(id="t1"))
    await shim.wait("t1")
    await shim.delete("t1")
    assert commands() == ["create", "delete"]


async def test_a_container_that_was_never_started_is_deleted_by_runc(shim, bundle, recorded):
    given, commands = recorded()
    await shim.create("t1", bundle("true"), options=given)
    await shim.delete("t1")
    assert commands() == ["create", "delete"]


@pytest.mark.parametrize("change", ["of a new version", "replaced"])
async def test_a_runc_that_is_not_known_is_left_to_itself(shim_of, fork, bundle, recorded, commands, tmp_path, change):
    given, ran = recorded()
    directory = tmp_path / "bin"
    shutil.copytree(commands.parent / "new" if change == "of a new version" else commands.parent, directory)
    parent = Nursery(tmp_path / "rehearsal", PATH=f"{directory}:{os.environ['PATH']}")
    try:
        async with shim_of(*fork(parent)) as shim:
            if change == "replaced":
                shutil.copy(directory / "runc", directory / "other")
                (directory / "other").rename(directory / "runc")
            await shim.run("t1", bundle("true"), options=given)
            await shim.wait("t1")
            await shim.delete("t1")
    finally:
        parent.close()
    assert ran() == ["create", "start", "delete"]
