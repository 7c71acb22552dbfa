"""The shim under a real containerd, which starts it by exec: the proof of the contract in shim/main.py."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from runtimed.mounts import mounts_below, unmount_all
from tests.terminals import at_terminal

SHIM = Path(sys.executable).parent / "containerd-shim-runtimed-v1"
CONFIG = """
version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("containerd") and shutil.which("ctr")), reason="needs Debian's containerd package"
    ),
]


class Containerd:
    """A private containerd, and ctr as its client."""

    def __init__(self, home, rootfs):
        self.home = home
        self.rootfs = rootfs
        (home / "bin").mkdir()
        (home / "bin" / SHIM.name).symlink_to(SHIM)
        (home / "config.toml").write_text(CONFIG)
        self.env = {
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "RUNTIMED_SHIM_SOCKETS": str(home / "s"),
            "RUNTIMED_RUNC_ROOT": str(home / "runc"),
        }
        self.start()

    def start(self):
        home = self.home
        argv = ["containerd", "--config", home / "config.toml", "--root", home / "root", "--state", home / "state"]
        with (home / "log").open("ab") as log:
            self.process = subprocess.Popen([*argv, "--address", home / "c.sock"], stdout=log, stderr=log, env=self.env)
        deadline = time.monotonic() + 20
        while self.ctr("version", check=False).returncode:
            assert time.monotonic() < deadline, (home / "log").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ctr(self, *args, check=True, stdin=b""):
        argv = ["ctr", "--address", self.home / "c.sock", "--connect-timeout", "1s", *map(str, args)]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False, env=self.env)
        assert not (check and done.returncode), (done.stdout, done.stderr, (self.home / "log").read_text()[-4000:])
        return done

    def at_terminal(self, *args):
        """Run ctr at a terminal, typing something into what it runs; return exit status and output."""
        argv = ["ctr", "--address", self.home / "c.sock", *args]
        return at_terminal(argv, b"test -t 0 && test -t 1 && echo ter''minal; exit 3\n", self.env)

    def run(self, *args, runtime="io.containerd.runtimed.v1", **kwargs):
        *flags, id, script = args
        command = ["/bin/sh", "-c", script]
        flags += ["--fifo-dir", self.home / "fifo"]
        return self.ctr("run", "--runtime", runtime, *flags, "--rootfs", self.rootfs, id, *command, **kwargs)

    def close(self):
        for line in self.ctr("task", "ls").stdout.decode().splitlines()[1:]:
            self.ctr("task", "rm", "-f", line.split()[0], check=False)
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def containerd(rootfs):
    with tempfile.TemporaryDirectory(prefix="rtc", dir="/tmp", ignore_cleanup_errors=True) as path:
        home = Path(path)
        containerd = Containerd(home, rootfs)
        try:
            yield containerd
            containerd.close()
        finally:
            containerd.kill()
            left = mounts_below(home)
            unmount_all(home)
        assert left == []
        assert not list((home / "s").glob("*"))


def test_ctr_run_gives_output_and_exit_status(containerd):
    done = containerd.run("--rm", "c1", "echo hello; echo error >&2; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, b"hello\n")
    assert b"error" in done.stderr


def test_the_runtime_may_be_a_path(containerd):
    assert containerd.run("--rm", "c2", "echo hello", runtime=SHIM).stdout == b"hello\n"


def test_input_comes_through(containerd):
    assert containerd.run("--rm", "c3", "cat", stdin=b"some input\n").stdout == b"some input\n"


def test_a_detached_task_can_be_used_and_killed(containerd):
    containerd.run("-d", "c4", "exec sleep 600")
    listed = containerd.ctr("task", "ls").stdout.decode()
    assert "RUNNING" in next(line for line in listed.splitlines() if line.startswith("c4 "))
    done = containerd.ctr("task", "exec", "--exec-id", "e1", "c4", "/bin/sh", "-c", "echo inside; exit 5", check=False)
    assert (done.returncode, done.stdout) == (5, b"inside\n")
    containerd.ctr("task", "pause", "c4")
    assert "PAUSED" in containerd.ctr("task", "ls").stdout.decode()
    containerd.ctr("task", "resume", "c4")
    assert len(containerd.ctr("task", "ps", "c4").stdout.splitlines()) == 2
    containerd.ctr("task", "kill", "-s", "KILL", "c4")
    assert containerd.ctr("task", "rm", "-f", "c4", check=False).returncode in {0, 137}
    containerd.ctr("container", "rm", "c4")


def test_a_task_and_an_exec_have_a_terminal(containerd):
    fifos = ("--fifo-dir", containerd.home / "fifo")
    runtime = ("--runtime", "io.containerd.runtimed.v1", "--rootfs", containerd.rootfs)
    status, output = containerd.at_terminal("run", "--rm", "-t", *fifos, *runtime, "c8", "/bin/sh")
    assert (status, b"terminal" in output) == (3, True), output
    containerd.run("-d", "c9", "exec sleep 600")
    status, output = containerd.at_terminal("task", "exec", "-t", *fifos, "--exec-id", "e1", "c9", "/bin/sh")
    assert (status, b"terminal" in output) == (3, True), output
    containerd.ctr("task", "rm", "-f", "c9")
    containerd.ctr("container", "rm", "c9")


def test_a_program_that_is_not_there_is_an_error(containerd):
    argv = ["run", "--rm", "--runtime", "io.containerd.runtimed.v1", "--rootfs", containerd.rootfs, "c5", "nosuch"]
    done = containerd.ctr(*argv, check=False)
    assert b"OCI runtime create failed: runc create failed: " in done.stderr
    assert b'"nosuch": executable file not found in $PATH' in done.stderr


def test_a_task_survives_its_containerd(containerd):
    containerd.run("-d", "c6", "exec sleep 600")
    containerd.kill()
    containerd.start()
    assert "RUNNING" in containerd.ctr("task", "ls").stdout.decode()
    done = containerd.ctr("task", "exec", "--exec-id", "e1", "c6", "/bin/true", check=False)
    assert done.returncode == 0
    containerd.ctr("task", "rm", "-f", "c6")
    containerd.ctr("container", "rm", "c6")


def test_containerd_cleans_up_after_a_shim_that_was_killed(containerd):
    containerd.run("-d", "c7", "exec sleep 600")
    bundle = containerd.home / "state/io.containerd.runtime.v2.task/default/c7"
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == bundle and (entry / "exe").exists():
                os.kill(int(entry.name), 9)
    deadline = time.monotonic() + 20
    while bundle.exists():  # it removes that last
        assert time.monotonic() < deadline
        containerd.ctr("version")
    assert "c7" not in containerd.ctr("task", "ls").stdout.decode()
    containerd.ctr("container", "rm", "c7")
