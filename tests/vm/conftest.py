"""Guests for tests. What is in inside/ is for a guest: test_in_guest.py has it run in one and reports each test."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.vm.guest import Disk, Guest, guest, make_disk
from tests.vm.packages import Unavailable, programs

collect_ignore = [] if os.environ.get("RUNTIMED_GUEST") else ["inside"]
TIMEOUT_S = 900.0  # on a quiet machine it takes 200; on a busy one all of them fail when the last is late
SYSTEMD = "+systemd"  # after a kernel: that guest's first process
FULL = os.environ.get("RUNTIMED_VM_FULL", "")
# Without the plugins that would be looked for, it starts in half the time.
PYTEST = (
    *("env", f"RUNTIMED_VM_FULL={FULL}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", ".venv/bin/python", "-m", "pytest"),
    *("-p", "pytest_asyncio.plugin", "-v", "--color=no", "--basetemp=/data/pytest"),
)


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Guest]]:
    """A guest for each kernel, started on the tests of inside/ that are selected for it.

    They are waited for last, so that they run while the power is cut in another.
    """
    selected: dict[str, list[str]] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_in_guest":
            call = item.callspec.params
            selected.setdefault(str(call["kernel"]), []).append(str(call["name"]))
    with ExitStack() as held:
        started = {}
        try:
            programs()
            for kernel, names in selected.items():
                path = tmp_path_factory.mktemp("guest") / "disk"
                make_disk(path, 1024)
                held.callback(path.unlink)
                disk = Disk(str(path))
                started[kernel] = held.enter_context(
                    guest(
                        kernel.removesuffix(SYSTEMD),
                        [*PYTEST, *names],
                        data_disk=disk,
                        systemd=kernel.endswith(SYSTEMD),
                        timeout_s=TIMEOUT_S,
                    )
                )
        except Unavailable as exc:
            pytest.skip(str(exc))
        yield started
