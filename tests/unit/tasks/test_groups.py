"""Which tasks a shim has, and when nobody needs it any more."""

import asyncio
from pathlib import Path

from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Endpoint
from runtimed.tasks.groups import Groups

SHIM = Endpoint(path=Path("/s/one"), pid=7)


def bundle(id: str) -> Bundle:
    return Bundle.at(Path("/root"), Path("/state"), "ns", id)


def test_a_shim_is_shared_until_the_last_of_its_tasks_leaves():
    groups = Groups()
    groups.use(bundle("a"), "pod", "", SHIM)
    groups.use(bundle("b"), "pod", "", SHIM)
    assert groups.shim("ns", "pod", "") == SHIM
    assert groups.leave(bundle("a"), "pod", SHIM)
    assert groups.sockets() == {SHIM.path}
    assert not groups.leave(bundle("b"), "pod", SHIM)
    assert groups.shim("ns", "pod", "") is None
    assert groups.sockets() == frozenset()
    assert vars(groups) == vars(Groups())


def test_groups_of_other_namespaces_and_shims_of_other_programs_are_others():
    groups = Groups()
    groups.use(bundle("a"), "pod", "/bin/other", SHIM)
    assert groups.shim("ns", "pod", "") is None
    assert groups.shim("elsewhere", "pod", "/bin/other") is None


def test_a_shim_that_joins_what_we_take_for_two_groups_is_shared_all_the_same():
    groups = Groups()
    groups.use(bundle("a"), "a", "/bin/other", SHIM)
    groups.use(bundle("b"), "b", "/bin/other", SHIM)
    assert groups.leave(bundle("a"), "a", SHIM)


def test_one_that_never_used_a_shim_knows_whether_others_do():
    groups = Groups()
    groups.use(bundle("a"), "pod", "", SHIM)
    assert groups.leave(bundle("half"), "pod", SHIM)
    assert not groups.leave(bundle("half"), "pod", None)


async def test_a_group_is_locked_for_one_at_a_time_and_forgotten_afterwards():
    groups = Groups()
    order = []

    async def hold(name: str) -> None:
        async with groups.locked("ns", "pod"):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(hold("a"), hold("b"))
    assert order == ["a in", "a out", "b in", "b out"]
    assert vars(groups) == vars(Groups())
