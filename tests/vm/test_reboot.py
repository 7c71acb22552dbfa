"""A machine that loses its power and boots again: its pods are told as they were, and give way to new ones."""

from pathlib import Path

import pytest

from tests.vm.guest import Disk, guest, make_disk
from tests.vm.packages import Unavailable

pytestmark = [pytest.mark.root, pytest.mark.slow]
TIMEOUT_S = 240.0


def test_pods_are_told_as_they_were_before_a_reboot_and_leave_nothing(tmp_path: Path):
    path = tmp_path / "disk"
    make_disk(path, 512)
    disk = Disk(str(path), cache="writeback")
    try:
        with guest("6.12", command("before"), data_disk=disk, timeout_s=TIMEOUT_S) as running:
            running.wait_for("made\n")
            running.cut()
        with guest("6.12", command("after"), data_disk=disk, timeout_s=TIMEOUT_S) as running:
            running.wait()
            assert "as it was\n" in running.output, running.output
    except Unavailable as exc:
        pytest.skip(str(exc))
    finally:
        path.unlink()


def command(when: str) -> list[str]:
    return [".venv/bin/python", "-m", "tests.vm.pods", when]
