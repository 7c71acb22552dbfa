"""Suite ``run``: a whole ``run --rm`` of ``true``, by each client and daemon, and runc alone as the limit."""

import argparse
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.accounts import Account
from tests.bench.samples import GO, OURS, Row, Sample, alternate
from tests.bench.sides import Ours, Theirs, both, run
from tests.images.busybox import NAME, busybox
from tests.registry import docker_registry


def suite(args: argparse.Namespace) -> list[Row]:
    """Return the rows of one container's life as a user sees it."""
    with both() as (ours, theirs), runc_alone() as alone:
        image = pulled(ours, theirs)
        ways: dict[str, Callable[[], Sample]] = {
            GO: lambda: _ctr(theirs, image),
            OURS: lambda: _ctr(ours, image),
            "ours, rctl": lambda: _rctl(ours, image),
            "runc run": alone,
        }
        for way in ways.values():  # once for what is only slow the first time
            way()
        found = alternate("run --rm true", args.runs, ways)
    aims = {OURS: "0.75 wall", "ours, rctl": "1.00 wall", "runc run": "the limit"}
    return [Row.timed("ctr run --rm true", who, samples, aim=aims.get(who, "")) for who, samples in found.items()]


def pulled(*sides: Ours | Theirs) -> str:
    """Pull a small image to each side and return its reference."""
    with docker_registry() as registry, tempfile.TemporaryDirectory(prefix="rtd-") as directory:
        image = registry.push(busybox(Path(directory) / "layout"), "bench/busybox:1", source=NAME)
        for side in sides:
            run(side.pull(image), side)
    return image


def _ctr(side: Ours | Theirs, image: str) -> Sample:
    id = f"b{secrets.token_hex(4)}"
    command = side.ctr("run", "--rm", "--cgroup", f"{side.account.containers}/{id}", image, id, "/bin/true")
    return side.account.run(lambda: run(command, side))


def _rctl(side: Ours, image: str) -> Sample:
    id = f"b{secrets.token_hex(4)}"
    command = side.rctl("run", "--rm", "--cgroup-parent", side.account.containers, image, id, "/bin/true")
    return side.account.run(lambda: run(command, side))


@contextmanager
def runc_alone() -> Iterator[Callable[[], Sample]]:
    """Yield a function that has ``runc run`` make one container, of the specification that ctr would write."""
    base = Path(tempfile.mkdtemp(prefix="rtd-"))
    account = Account(f"rtd-bench-{secrets.token_hex(4)}")
    make_bundle(base / "bundle", ["/bin/true"], f"{account.containers}/alone", rootfs=True)
    command = ["runc", "--root", str(base / "runc"), "run", "--bundle", str(base / "bundle"), "alone"]

    def once() -> None:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    try:
        yield lambda: account.run(once)
    finally:
        account.remove()
        shutil.rmtree(base)


def make_bundle(bundle: Path, words: list[str], cgroup: str, *, rootfs: bool = False) -> None:
    """Write a bundle for a command, after ``ctr oci spec``; with *rootfs*, busybox's tree in it."""
    spec = json.loads(subprocess.run(["ctr", "oci", "spec"], capture_output=True, check=True).stdout)
    spec["process"].update(args=words, env=["PATH=/bin"], terminal=False)
    spec["root"]["path"] = "rootfs"
    spec["linux"]["cgroupsPath"] = cgroup
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(spec))
    if rootfs:
        make_rootfs(bundle / "rootfs")


def make_rootfs(root: Path) -> None:
    """Put busybox and the places of mounts into *root*."""
    for name in ("bin", "proc", "dev", "sys", "run", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "true", "sleep", "dd"):
        (root / "bin" / applet).symlink_to("busybox")
