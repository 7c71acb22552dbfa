"""Many containers, one after the other and at once, leave the daemon and the warm parent as they were."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clients import Client, busybox_rootfs
from tests.daemon import PrivateDaemon, private_daemon
from tests.processes import children

pytestmark = [pytest.mark.root, pytest.mark.slow]

AFTER_EACH_OTHER, AT_ONCE = 100, 50
SETTLED_WITHIN = 100  # containers' lives


@pytest.fixture
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as daemon:
        yield daemon


def look(daemon: PrivateDaemon) -> dict[str, tuple[list[str], int]]:
    """Return what descriptors the daemon and each of its children have, and how many children.

    The database's are left out: each of the threads that read it has a connection, and how many threads there are by
    now is chance; there are never more than their pool has.
    """
    found = {}
    for pid in (daemon.pid, *children(daemon.pid)):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        kinds = [target for target in descriptors(pid) if "/metadata.db" not in target]
        found[f"{name} {pid}"] = sorted(kinds), len(children(pid))
    return found


def descriptors(pid: int) -> Iterator[str]:
    """Return what each descriptor of a process leads to, without the numbers of sockets and pipes."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(entry.readlink()).partition(":[")[0]


def memory_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def test_a_hundred_after_each_other_and_fifty_at_once_leave_nothing(daemon):
    rootfs = busybox_rootfs(daemon.base / "image")
    client = Client(daemon)

    def at_once(name: str) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: client.lived(f"{name}{number}", rootfs), range(AT_ONCE)))

    at_once("warm")  # threads and caches that are made once are there from here on
    client.lived("warm", rootfs)
    for number in range(SETTLED_WITHIN):
        before = look(daemon)
        if all(below == 1 for name, (_, below) in before.items() if name.startswith("runtimed-nurser")):
            break  # each shim but the spare one has ended by now, not only said so
        client.lived(f"w{number}", rootfs)
    memory = memory_kb(daemon.pid)
    for number in range(AFTER_EACH_OTHER):
        client.lived(f"c{number}", rootfs)
    at_once("p")
    for number in range(SETTLED_WITHIN):  # the last connections are closed behind the answers
        if look(daemon) == before:
            break
        client.lived(f"s{number}", rootfs)
    assert look(daemon) == before
    assert memory_kb(daemon.pid) < memory + 8 * 1024
    client.channel.close()
