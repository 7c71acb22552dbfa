"""Cuts the power of a guest that pulls, builds and removes images, each time on the disk that the last cut left.

SIGKILL of qemu loses the guest's page cache, and the disk's own (`volatile.py`) loses any part of what the guest has
not had flushed. ext4 is mounted so that it hides no missing fsync: with ``data=writeback`` and ``noauto_da_alloc`` a
file that was renamed without one is empty afterwards.
"""

import os
import random
import re
import time
from pathlib import Path

import pytest

from tests.vm.guest import Disk, Guest, guest, make_disk
from tests.vm.packages import Unavailable
from tests.vm.volatile import VolatileDisk, served

pytestmark = [pytest.mark.root, pytest.mark.slow]
CUTS = int(os.environ.get("RUNTIMED_VM_CUTS", "1"))
OPTIONS = "noatime,data=writeback,noauto_da_alloc,commit=1"
TIMEOUT_S = 240.0
LONGEST_S = 12.0  # a pull, a commit and a collection take about so long in there


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_a_layer_is_complete_or_absent_after_a_power_cut_and_a_pull_repairs_it(
    tmp_path: Path, guests: object, kernel: str
):
    """During pulls, commits, removals and collections; layers are files on the one kernel, directories on the other."""
    seed = int(os.environ.get("RUNTIMED_VM_SEED", random.randrange(1 << 32)))
    print(f"RUNTIMED_VM_SEED={seed}")
    chance = random.Random(seed)
    path = tmp_path / "disk"
    make_disk(path, 512)
    medium = VolatileDisk(path, chance)
    first, promised = 0, set[str]()
    try:
        for _ in range(CUTS):
            with (
                served(medium, tmp_path / "nbd") as drive,
                guest(kernel, command(first, promised), data_disk=of(drive), timeout_s=TIMEOUT_S) as running,
            ):
                running.wait_for("pulling")
                cut_after(running, chance.uniform(0.1, LONGEST_S))
                print(running.output)
                first = int(re.findall(r"pulling (\d+)", running.output)[-1]) + 1
                promised |= {*re.findall(r"(?:acknowledged|built) (\S+)\n", running.output)}
                promised -= {*re.findall(r"removing (\S+)\n", running.output)}
        print(f"{medium.lost} sectors were lost")
        with (
            served(medium, tmp_path / "nbd") as drive,
            guest(kernel, command(first, promised), data_disk=of(drive), timeout_s=TIMEOUT_S) as running,
        ):
            running.wait_for("pulled everything")
            print(running.output)
            assert re.search(r" [1-9]\d* files" if kernel == "6.12" else r" 0 files, [1-9]", running.output)
    except Unavailable as exc:
        pytest.skip(str(exc))
    finally:
        medium.close()
        path.unlink()


def of(drive: str) -> Disk:
    return Disk(drive, options=OPTIONS, cache="writeback")


def command(first: int, promised: set[str]) -> list[str]:
    return [".venv/bin/python", "-m", "tests.vm.cuts", str(first), *sorted(promised)]


def cut_after(running: Guest, delay_s: float) -> None:
    time.sleep(delay_s)  # the moment is the point: nothing is waited for
    running.cut()
