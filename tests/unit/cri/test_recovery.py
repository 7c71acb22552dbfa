"""What is left of pods and containers that a daemon was making, or removing, when it ended."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runtimed import config
from runtimed.api import cri_pb2 as pb
from runtimed.cri import network as networks
from runtimed.cri import recovery
from runtimed.cri.network import Network
from runtimed.cri.state import State
from runtimed.errors import FailedPrecondition


class Collecting:
    """The network, of which namespaces are files."""

    def __init__(self, directory):
        self.directory = directory
        self.valid = None

    def namespaces(self):
        return [str(path) for path in self.directory.iterdir()]

    async def collect(self, valid):
        self.valid = valid()


@pytest.fixture
def core(tmp_path):
    core = SimpleNamespace(
        directory=tmp_path / "state", root=tmp_path / "root", network=Collecting(tmp_path / "netns"), state=State()
    )
    for id in ("known", "gone"):
        (core.directory / "sandboxes" / id).mkdir(parents=True)
        (core.directory / "containers" / id / "0").mkdir(parents=True)
        (core.root / "containers" / id / "volumes").mkdir(parents=True)
        (tmp_path / "netns").mkdir(exist_ok=True)
        (tmp_path / "netns" / id).touch()
    return core


def names(core):
    places = (core.directory / "sandboxes", core.directory / "containers", core.root / "containers")
    return [sorted(path.name for path in place.iterdir()) for place in (*places, core.network.directory)]


@pytest.mark.root
async def test_what_nothing_explains_goes_and_what_comes_meanwhile_stays(core):
    left = recovery.left_over(core, {"known"})
    for place in ("sandboxes", "containers"):
        (core.directory / place / "new").mkdir()
    (core.root / "containers/new").mkdir()
    (core.network.directory / "new").touch()
    await recovery._sweep(core, left)
    assert names(core) == [["known", "new"]] * 4


@pytest.mark.root
async def test_what_a_container_has_been_restored_from_goes_and_what_it_is_to_be_stays(core):
    for id, state in (("known", pb.CONTAINER_RUNNING), ("made", pb.CONTAINER_CREATED), ("over", pb.CONTAINER_EXITED)):
        (core.root / "containers" / id / "restore/checkpoint").mkdir(parents=True)
        (core.root / "containers" / id / "volumes").mkdir(exist_ok=True)
        record = SimpleNamespace(restored_image="image")
        core.state.containers.add(SimpleNamespace(id=id, state=state, record=record))
    core.container_directory = lambda id: core.root / "containers" / id
    await recovery._sweep(core, recovery.left_over(core, {"known", "made", "over"}))
    kept = {str(path.relative_to(core.root / "containers")) for path in (core.root / "containers").glob("*/*")}
    assert kept == {"known/volumes", "made/volumes", "made/restore", "over/volumes"}


@pytest.mark.root
async def test_what_cannot_be_removed_keeps_nothing_else(core, monkeypatch, caplog):
    def busy(path):
        raise FailedPrecondition(f"{path} is busy")

    monkeypatch.setattr(networks, "unpin", busy)
    core.state.coming["c"] = SimpleNamespace(id="c")
    await recovery._sweep(core, recovery.left_over(core, {"known"}))
    assert names(core) == [["known"]] * 3 + [["gone", "known"]]
    assert "something of an earlier daemon stays" in caplog.text
    assert core.network.valid == ["c"]  # the address of a pod that is being made is not given to another


async def test_no_pod_gets_an_address_while_those_of_others_are_freed(tmp_path, monkeypatch):
    """A plugin would free it, too: it is not among those that the plugin was told of."""
    told, collecting, freed = [], asyncio.Event(), asyncio.Event()

    class Plugins:
        async def gc(self, network, valid):
            collecting.set()
            await freed.wait()
            told.append(valid)

        async def add(self, network, attachment):
            told.append("added")

    async def configured():
        return None

    network = Network(config.Cni(), tmp_path)
    nothing: Any = None
    monkeypatch.setattr(network, "_plugins", Plugins())
    monkeypatch.setattr(network, "configured", configured)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(network.collect(lambda: ["a"]))
        await collecting.wait()
        adding = tasks.create_task(network.attach(nothing, nothing))
        await asyncio.sleep(0)
        assert not adding.done()
        freed.set()
    assert told == [[("a", "eth0")], "added"]
