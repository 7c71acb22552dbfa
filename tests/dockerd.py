"""Debian's dockerd on a daemon of ours, with everything it has in a directory and a network namespace of its own."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.daemon import PrivateDaemon

START_LIMIT_S = 60.0  # what dockerd itself allows for its connections to the daemon
STOP_LIMIT_S = 60.0
IMAGE = "box"


class Dockerd:
    """One dockerd. ``start`` may follow ``stop`` or ``kill``: the directory stays."""

    def __init__(
        self, base: Path, daemon: PrivateDaemon, *arguments: str, configuration: dict[str, Any] | None = None
    ) -> None:
        """*configuration* is what daemon.json says; without one Docker's own image store is used."""
        self.base = base
        self.daemon = daemon
        self.socket = base / "docker.sock"
        self.log = base / "log"
        self._arguments = arguments
        self._configuration = configuration or {"storage-driver": "overlay2"}
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line of this dockerd."""
        own = {
            "config-file": self.base / "daemon.json",
            "data-root": self.base / "data",
            "exec-root": self.base / "exec",
            "pidfile": self.base / "pid",
            "host": f"unix://{self.socket}",
            "containerd": self.daemon.address,
            "cgroup-parent": self.daemon.cgroup_parent,
        }
        off = ("iptables", "ip6tables", "userland-proxy")
        return [
            *("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "dockerd"),
            "dockerd",
            *(f"--{name}={value}" for name, value in own.items()),
            *(f"--{name}=false" for name in off),
            *self._arguments,
        ]

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self.base / "daemon.json").write_text(json.dumps(self._configuration))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_LIMIT_S
        while self("version", check=False).returncode:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait; without live-restore its containers end with it, unless it is killed."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(timeout=STOP_LIMIT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None

    def argv(self, *arguments: object) -> list[str]:
        """Return the command line of Docker's client against this dockerd."""
        config = f"DOCKER_CONFIG={self.base / 'client'}"
        return ["env", config, "/usr/bin/docker", "--host", f"unix://{self.socket}", *map(str, arguments)]

    def __call__(
        self, *arguments: object, check: bool = True, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run Docker's client to its end and return what it wrote."""
        done = subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=timeout, check=False, **options
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log.read_text()[-2000:]}"
        return done

    def out(self, *arguments: object, **options: Any) -> str:
        """Return what a command that succeeds wrote to stdout, without the last newline."""
        return self(*arguments, **options).stdout.rstrip("\n")


@contextmanager
def private_dockerd(
    daemon: PrivateDaemon, base: Path, *arguments: str, kind: type[Dockerd] = Dockerd, **options: Any
) -> Iterator[Dockerd]:
    """Run a dockerd, with an image called :data:`IMAGE`, on *daemon* until the block ends, with all its containers."""
    base.mkdir()
    dockerd = kind(base, daemon, *arguments, **options)
    try:
        dockerd.start()
        _import_busybox(dockerd)
        yield dockerd
        if dockerd.process is None:
            dockerd.start()
        if ids := dockerd.out("ps", "--all", "--quiet").split():
            dockerd("rm", "--force", *ids)
    finally:
        dockerd.stop()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if (target := line.split()[4]).startswith(str(base)):
                subprocess.run(["umount", target], check=True)


def _import_busybox(dockerd: Dockerd) -> None:
    tree = dockerd.base / "tree"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n")
    archive = dockerd.base / "tree.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
    dockerd("import", archive, IMAGE)
