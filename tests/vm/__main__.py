"""Run a command in a guest: ``python -m tests.vm [--kernel 6.12] [--disk MIB] -- COMMAND...`` (docs/testing-vm.md)."""

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.vm import packages
from tests.vm.guest import Disk, guest, make_disk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Run a command in a guest.")
    parser.add_argument("--kernel", choices=packages.SUITES, default="6.12")
    parser.add_argument(
        "--disk", type=int, default=0, metavar="MIB", help="a file system of this size at /data and /tmp"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--console", action="store_true", help="print what the kernel said, too")
    parser.add_argument("--systemd", action="store_true", help="let it be the first process")
    parser.add_argument("--fetch", action="store_true", help="only fetch what guests need")
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    try:
        packages.programs()
        if arguments.fetch:
            for version in packages.SUITES:
                packages.kernel(version)
            return 0
        return run(arguments)
    except (packages.Unavailable, AssertionError) as exc:
        print(exc, file=sys.stderr)
        return 125


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="rtd-vm-") as place:
        disk = None
        if arguments.disk:
            path = Path(place, "disk")
            make_disk(path, arguments.disk)
            disk = Disk(str(path))
        command = arguments.command or ["true"]
        options = {"data_disk": disk, "systemd": arguments.systemd, "timeout_s": arguments.timeout}
        with guest(arguments.kernel, command, **options) as running:
            try:
                return running.wait()
            finally:
                with suppress(BrokenPipeError):
                    print(running.console if arguments.console else "", running.output, sep="", end="")


if __name__ == "__main__":
    sys.exit(main())
