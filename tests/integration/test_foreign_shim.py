"""containerd's own shim for runc, started by this daemon: what other people's runtimes will be like."""

import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtimed.api.events_pb2 import TaskExit
from tests.daemon import PrivateDaemon, private_daemon
from tests.terminals import at_terminal

SHIM = Path("/usr/bin/containerd-shim-runc-v2")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not SHIM.exists(), reason=f"needs {SHIM} (Debian package containerd)"),
]


class HidingDaemon(PrivateDaemon):
    """One that has a /run/containerd of its own: shims before 2.3 put their sockets there whatever one tells them."""

    def command(self) -> list[str]:
        own = self.base / "containerd"
        own.mkdir(exist_ok=True)
        hidden = f"mount --bind {own} /run/containerd"
        return ["unshare", "--mount", "sh", "-c", f"{hidden} && exec {shlex.join(super().command())}"]


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    Path("/run/containerd").mkdir(exist_ok=True)
    with private_daemon(start=False) as plain:
        daemon = HidingDaemon(plain.base, namespace=plain.namespace)
        daemon.config.write_text(f'version = 1\n[runtimes."io.containerd.runc.v2"]\nshim = "{SHIM}"\n')
        daemon.start()
        yield daemon
        daemon.clear()
        daemon.stop()
        daemon.config.unlink()


@pytest.fixture(scope="module")
def rootfs(daemon: PrivateDaemon) -> Path:
    rootfs = daemon.base / "image"
    for name in ("bin", "proc", "dev", "sys"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin/sh")
    return rootfs


def options(daemon: PrivateDaemon, rootfs: Path) -> list[object]:
    """Keep ctr's FIFOs where the shim can see them, and the cgroup where the test looks for leftovers."""
    return ["--fifo-dir", daemon.base / "fifo", "--cgroup", f"{daemon.cgroup_parent}/c", "--rootfs", rootfs]


def test_a_container_runs_to_its_exit_status(daemon, rootfs):
    done = daemon.ctr("run", "--rm", *options(daemon, rootfs), "t1", "/bin/sh", "-c", "echo hello; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "hello\n"), done.stderr
    assert list(daemon.state.glob(f"io.containerd.runtime.v2.task/{daemon.namespace}/*")) == []


def test_a_container_and_an_exec_have_a_terminal(daemon, rootfs):
    typed = b"test -t 0 && test -t 1 && echo ter''minal; exit 3\n"
    run = daemon.ctr_command("run", "--rm", "-t", *options(daemon, rootfs), "tty", "/bin/sh")
    status, output = at_terminal(run, typed)
    assert status == 3, output
    assert b"terminal" in output
    daemon.ctr("run", "-d", *options(daemon, rootfs), "box", "/bin/sh", "-c", "while :; do :; done")
    fifos = ("--fifo-dir", daemon.base / "fifo")
    status, output = at_terminal(
        daemon.ctr_command("task", "exec", "-t", *fifos, "--exec-id", "e", "box", "/bin/sh"), typed
    )
    assert status == 3, output
    assert b"terminal" in output
    daemon.ctr("task", "rm", "-f", "box")
    daemon.ctr("containers", "rm", "box")


def test_it_may_be_named_by_its_path(daemon, rootfs):
    run = ["run", "--rm", "--runtime", SHIM, *options(daemon, rootfs), "path", "/bin/sh", "-c", "exit 6"]
    assert daemon.ctr(*run, check=False).returncode == 6


def test_it_is_found_again_after_a_crash_of_the_daemon(daemon, rootfs):
    daemon.ctr("run", "-d", *options(daemon, rootfs), "t2", "/bin/sh", "-c", "while :; do :; done")
    before = daemon.ctr("task", "ls").stdout
    daemon.kill()
    daemon.start()
    assert daemon.ctr("task", "ls").stdout == before
    fifos = ("--fifo-dir", daemon.base / "fifo")
    done = daemon.ctr("task", "exec", *fifos, "--exec-id", "e", "t2", "/bin/sh", "-c", "echo in; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "in\n"), done.stderr
    daemon.ctr("task", "kill", "-s", "9", "t2")
    assert "exit code 137" in daemon.ctr("task", "rm", "-f", "t2").stderr
    daemon.ctr("containers", "rm", "t2")
    assert list(daemon.state.glob(f"io.containerd.runtime.v2.task/{daemon.namespace}/*")) == []


def test_when_it_is_killed_its_container_is_killed_and_told(daemon, rootfs):
    daemon.ctr("run", "-d", *options(daemon, rootfs), "t3", "/bin/sh", "-c", "while :; do :; done")
    bundle = daemon.state / "io.containerd.runtime.v2.task" / daemon.namespace / "t3"
    pid = int((bundle / "init.pid").read_text())
    with daemon.events("topic==/tasks/exit") as events:
        os.kill(json.loads((bundle / "bootstrap.json").read_text())["pid"], signal.SIGKILL)
        told = TaskExit.FromString(next(events).event.value)
    assert (told.container_id, told.pid, told.exit_status) == ("t3", pid, 137)
    assert daemon.ctr("task", "ls", "-q").stdout == ""
    assert not bundle.exists()
    daemon.ctr("containers", "rm", "t3")


def test_the_containers_of_a_group_share_one_and_die_with_it(daemon, rootfs):
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "process": {"cwd": "/", "args": ["/bin/sh", "-c", "while :; do sleep 1; done"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": {"io.kubernetes.cri.sandbox-id": "pod"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }
    bundles = daemon.state / "io.containerd.runtime.v2.task" / daemon.namespace
    for id in ("pod", "a", "b"):
        config = daemon.base / "spec.json"
        spec["linux"]["cgroupsPath"] = f"{daemon.cgroup_parent}/{id}"
        config.write_text(json.dumps(spec))
        daemon.ctr("run", "-d", "--config", config, "--fifo-dir", daemon.base / "fifo", id)
    shims = {json.loads((bundles / id / "bootstrap.json").read_text())["pid"] for id in ("pod", "a", "b")}
    assert len(shims) == 1

    daemon.kill()
    daemon.start()
    assert daemon.ctr("task", "ls", "-q").stdout.split() == ["a", "b", "pod"]
    assert "exit code 137" in daemon.ctr("task", "rm", "-f", "a").stderr
    assert daemon.ctr("task", "ls", "-q").stdout.split() == ["b", "pod"]

    with daemon.events("topic==/tasks/exit") as events:
        os.kill(shims.pop(), signal.SIGKILL)
        told = [TaskExit.FromString(next(events).event.value) for _ in range(2)]
    assert sorted((event.container_id, event.exit_status) for event in told) == [("b", 137), ("pod", 137)]
    assert daemon.ctr("task", "ls", "-q").stdout == ""
    for id in ("pod", "a", "b"):
        daemon.ctr("containers", "rm", id)
