"""What a checkpoint of ours stands on: this CRIU, this kernel and runc take a container down and bring it back."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm.inside.conftest import wait_for

pytestmark = pytest.mark.root


def test_runc_checkpoints_and_restores_a_process_with_what_it_has_in_memory(tmp_path: Path):
    rootfs, images = tmp_path / "rootfs", tmp_path / "images"
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    images.mkdir()
    shutil.copy("/bin/busybox", rootfs / "bin/sh")
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    spec = json.loads((tmp_path / "config.json").read_text())
    # Says what it counted whenever a file asks for it.
    count = (
        "n=0; while :; do n=$((n+1)); [ ! -e /tmp/ask ] || { echo $n > /tmp/new; mv /tmp/new /tmp/told; exit; }; done"
    )
    spec["process"].update(args=["/bin/sh", "-c", "exec >/dev/null 2>&1; " + count], terminal=False)
    spec["root"]["readonly"] = False
    spec["linux"]["cgroupsPath"] = "/rtd-checkpoint/one"
    (tmp_path / "config.json").write_text(json.dumps(spec))
    runc = ["runc", "--root", str(tmp_path / "state")]
    run = {"cwd": tmp_path, "check": True, "stdin": -3, "stdout": -3, "stderr": -3, "timeout": 60}
    subprocess.run([*runc, "run", "--detach", "one"], **run)  # type: ignore[call-overload]
    try:
        subprocess.run([*runc, "checkpoint", "--image-path", str(images), "one"], **run)  # type: ignore[call-overload]
        assert list(images.glob("core-*.img"))
        (rootfs / "tmp/ask").touch()
        restore = [*runc, "restore", "--detach", "--image-path", str(images), "one"]
        subprocess.run(restore, **run)  # type: ignore[call-overload]
        wait_for(rootfs / "tmp/told")
        assert int((rootfs / "tmp/told").read_text()) > 0
    finally:
        subprocess.run([*runc, "delete", "--force", "one"], check=False)
        Path("/sys/fs/cgroup/rtd-checkpoint").rmdir()
