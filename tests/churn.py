"""``python -m tests.churn --minutes 10``: pods come and go on a daemon as a kubelet has it, and nothing of them stays.

Needs root, Debian's CNI plugins, docker-registry and busybox-static. Exit status 1: something failed, or is left.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.cri import Cri, cri_daemon
from tests.images.busybox import NAME
from tests.images.busybox import busybox as busybox_layout
from tests.kubelet import Kubelet, Plan
from tests.registry import docker_registry

_MORE_DESCRIPTORS = 10  # connections of clients, and of the daemon's own that come and go


def churn(cri: Cri, image: str, plan: Plan) -> Kubelet:
    """Have *plan* done on a fresh daemon; return who did it. Raises AssertionError: something is left of the pods."""
    cri.write_network()
    cri.pull(image)
    cri.remove_pod(cri.run_pod("first"))  # what is only done once
    descriptors, shims = _descriptors(cri), _shims(cri)
    kubelet = Kubelet(cri, image, plan)
    kubelet.run()
    for failure in kubelet.failures:  # said also if something is left
        print(f"FAILED {failure}", flush=True)
    # A container that was being made when the daemon was killed: its snapshot is nobody's once its pod has gone.
    cri.daemon.rctl("gc", "run")
    left = remains(cri)
    assert not left, left
    assert _shims(cri) == shims
    now = _descriptors(cri)
    more = Counter(now) - Counter(descriptors)
    assert more.total() <= _MORE_DESCRIPTORS, f"more descriptors than before: {more}"
    return kubelet


def remains(cri: Cri) -> list[str]:
    """Return what there still is of pods: in lists, on disk, of networks, mounts, cgroups and in containerd's API."""
    state = cri.daemon.state
    paths = [*state.glob("netns/*"), *state.glob("cri/*/*"), *state.glob("io.containerd*/k8s.io/*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{state}/cri" in line]
    found = [str(one) for one in (*cri.pods(), *cri.containers(), *paths, *mounts, *cri.addresses())]
    found += [
        str(path)
        for path in Path("/sys/fs/cgroup").glob(f"*/{cri.daemon.cgroup_parent.lstrip('/')}/**/*")
        if path.is_dir()
    ]
    cri.daemon.namespace, own = "k8s.io", cri.daemon.namespace
    try:
        for what in ("containers", "tasks", "leases"):
            found += [f"{what}: {id}" for id in cri.daemon.ctr(what, "ls", "-q").stdout.split()]
        keys = [line.split()[0] for line in cri.daemon.ctr("snapshots", "ls").stdout.splitlines()[1:]]
        found += [f"snapshot: {key}" for key in keys if not key.startswith("sha256:")]
    finally:
        cri.daemon.namespace = own
    return found


def _descriptors(cri: Cri) -> list[str]:
    """Return what the daemon's descriptors lead to, but for the database's: each thread that reads it has its own."""
    found = []
    for entry in Path(f"/proc/{cri.daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()).partition(":[")[0])
    return [target for target in found if "/metadata.db" not in target]


def _shims(cri: Cri) -> int:
    return len(list((cri.daemon.state / "s").iterdir()))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.churn", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long (default 10)")
    parser.add_argument("--pods", type=int, default=30, metavar="N", help="at a time (default 30)")
    args = parser.parse_args(arguments)
    plan = Plan(pods=args.pods, seconds=args.minutes * 60, kubelet_restart=37.0, daemon_restart=23.0)
    with docker_registry() as registry, tempfile.TemporaryDirectory(prefix="rtd-") as directory, cri_daemon() as cri:
        image = registry.push(busybox_layout(Path(directory) / "layout"), "churn/busybox:1", source=NAME)
        began = time.monotonic()
        kubelet = churn(cri, image, plan)
        print(f"{time.monotonic() - began:.0f} s with {args.pods} pods")
    for name, count in sorted(kubelet.counts.items()):
        slowest = f", the slowest {kubelet.slowest[name]:.2f} s" if name in kubelet.slowest else ""
        print(f"{count:7} {name}{slowest}")
    return 1 if kubelet.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
