"""Proof that test_cut.py's harness loses what a power cut loses: without it, "nothing was lost" would say nothing."""

import random
from pathlib import Path

import pytest

from tests.vm.guest import Disk, guest, make_disk
from tests.vm.packages import Unavailable
from tests.vm.test_cut import OPTIONS, TIMEOUT_S
from tests.vm.volatile import VolatileDisk, served

pytestmark = [pytest.mark.root, pytest.mark.slow]
MAKE = "yes content | head -c 65536 > /dev/shm/it"
# One file that is synced, one that is renamed without it, as careless programs do.
WRITE = f"""{MAKE}
dd if=/dev/shm/it of=/data/synced conv=fsync status=none
cp /dev/shm/it /data/part && mv /data/part /data/renamed
echo written; sleep 600"""
LOOK = f"{MAKE}; for name in synced renamed; do cmp -s /dev/shm/it /data/$name && echo kept $name; done; echo looked"


@pytest.mark.parametrize(
    ("options", "kept"), [(OPTIONS, ["synced"]), (f"{OPTIONS},barrier=0", [])], ids=["flushed", "never flushed"]
)
def test_a_cut_takes_what_was_not_synced_and_what_the_disk_was_not_told_to_flush(
    tmp_path: Path, options: str, kept: list[str]
):
    path = tmp_path / "disk"
    make_disk(path, 64)
    medium = VolatileDisk(path, random.Random(1))
    try:
        with (
            served(medium, tmp_path / "nbd") as drive,
            guest("6.12", ["sh", "-c", WRITE], data_disk=disk(drive, options), timeout_s=TIMEOUT_S) as running,
        ):
            running.wait_for("written")
            running.cut()
        with (
            served(medium, tmp_path / "nbd") as drive,
            guest("6.12", ["sh", "-c", LOOK], data_disk=disk(drive, options), timeout_s=TIMEOUT_S) as running,
        ):
            running.wait_for("looked")
            found = [line.removeprefix("kept ") for line in running.output.splitlines() if line.startswith("kept ")]
    except Unavailable as exc:
        pytest.skip(str(exc))
    finally:
        medium.close()
        path.unlink()
    assert found == kept
    assert medium.lost > 0 or kept, "the disk lost nothing"


def disk(drive: str, options: str) -> Disk:
    return Disk(drive, options=options, cache="writeback")
