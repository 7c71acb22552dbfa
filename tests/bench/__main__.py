"""``python -m tests.bench WHAT``: this daemon beside Debian's containerd and its Go shim; a table on stdout.

Needs root, and Debian's containerd, runc, docker-registry, skopeo and busybox-static.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import calls, commands, cri, erofs, fleet, images, limits, shims, soak
from tests.bench.samples import Row, machine, progress, table

_SUITES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "shim": shims.suite,
    "run": commands.suite,
    "calls": calls.suite,
    "fleet": fleet.suite,
    "soak": soak.suite,
    "limits": limits.suite,
    "images": images.suite,
    "erofs": erofs.suite,
    "cri": cri.suite,
}
_CHECKOUT = Path(__file__).parents[2]
_PACKAGES = ("runtimed", "shim", "snapshotters")
_CONTAINERD = Path("/run/containerd")
_INSIDE = "RUNTIMED_BENCH_INSIDE"  # says that this process is in the mount namespace already


def main() -> int:
    """Run the suites that the command line names."""
    args = _parser().parse_args()
    if os.geteuid() != 0:
        print("the benchmarks need root", file=sys.stderr)
        return 1
    if _INSIDE not in os.environ:
        # As an installed package has it: where Python is told to write no bytecode, every start would compile anew.
        subprocess.run([sys.executable, "-m", "compileall", "-q", *_PACKAGES], cwd=_CHECKOUT, check=True)
        return _inside()
    print(f"{machine()}\n")
    for name in _SUITES if "all" in args.what else args.what:
        progress(f"suite {name}")
        print(f"{table(_SUITES[name](args))}\n", flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("what", nargs="+", choices=[*_SUITES, "all"])
    parser.add_argument("--runs", type=int, default=30, metavar="N", help="of each measurement (default 30)")
    parser.add_argument("--image-runs", type=int, default=5, metavar="N", help="of each pull (default 5)")
    parser.add_argument("--containers", type=int, default=50, metavar="N", help="of fleet (default 50)")
    parser.add_argument("--soak", type=int, default=1000, metavar="N", help="containers of soak (default 1000)")
    parser.add_argument("--limits", type=int, default=100, metavar="PERCENT", help="of limits (default 100)")
    parser.add_argument("--stdout-mb", type=int, default=2048, metavar="MB", help="through stdout (default 2048)")
    parser.add_argument("--entries", type=int, default=70_000, metavar="N", help="of image A (default 70000)")
    parser.add_argument("--many", type=int, default=1_000_000, metavar="N", help="entries of erofs (default 1000000)")
    parser.add_argument("--layers", type=int, default=7, metavar="N", help="of image A (default 7)")
    parser.add_argument("--big-mb", type=int, default=1600, metavar="MB", help="of image C (default 1600)")
    parser.add_argument("--images", default=",".join(images.CASES), metavar="A,B,...", help="of images (default all)")
    parser.add_argument("--image-cache", default="", metavar="DIR", help="keep what images are made of for other runs")
    parser.add_argument("--only", default="", metavar="TEXT", help="only measurements whose name has TEXT in it")
    return parser


def _inside() -> int:
    """Run this again in a mount namespace whose /run/containerd is an empty directory of nobody else's."""
    made_here = not _CONTAINERD.exists()
    _CONTAINERD.mkdir(exist_ok=True)
    script = f'mount -t tmpfs tmpfs {_CONTAINERD} && exec {sys.executable} -m tests.bench "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "bench", *sys.argv[1:]]
    try:
        return os.waitstatus_to_exitcode(os.spawnvpe(os.P_WAIT, command[0], command, {**os.environ, _INSIDE: "1"}) << 8)
    finally:
        if made_here:
            _CONTAINERD.rmdir()


if __name__ == "__main__":
    sys.exit(main())
