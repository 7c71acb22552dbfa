import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtimed.embedded.build import ARCHITECTURES, HOST, build
from runtimed.embedded.programs import GREETING, assemble, program

HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
EMULATOR = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}


@pytest.fixture(params=ARCHITECTURES)
def executable(request, tmp_path):
    """Returns a function: program name -> the command that runs it, under emulation where it must be."""
    emulator = [] if request.param == HERE else [EMULATOR[request.param]]
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"{emulator[0]} is not installed (.ci/setup test)")

    def command(name: str) -> list[str]:
        path = tmp_path / name
        path.write_bytes(program(name, request.param))
        path.chmod(0o755)
        return [*emulator, str(path)]

    return command


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["7"], 7), (["137", "9"], 137), (["x"], 0)])
def test_hello_prints_its_line_and_exits_with_the_status_it_is_given(executable, arguments, status):
    done = subprocess.run([*executable("hello"), *arguments], capture_output=True, check=False)
    assert (done.stdout, done.returncode) == (GREETING, status)


def wait_until_it_waits(process: subprocess.Popen[bytes]) -> None:
    """Return when *process* is in rt_sigtimedwait, whose number comes first in /proc/<pid>/syscall (proc(5))."""
    number = {"amd64": "128", "arm64": "137"}[HERE]
    while Path(f"/proc/{process.pid}/syscall").read_text().split()[0] != number:
        assert process.poll() is None


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pause_waits_until_it_is_told_to_end(executable, number):
    with subprocess.Popen(executable("pause")) as process:
        wait_until_it_waits(process)
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_pause_reaps_what_is_left_to_it(tmp_path):
    """A subreaper stands in for PID 1: processes whose parent has gone become its children."""
    path = tmp_path / "pause"
    path.write_bytes(program("pause", HERE))
    path.chmod(0o755)
    orphaning = (
        "import ctypes, os, sys, time\n"
        "ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER
        "if os.fork() == 0:\n"
        "    if (pid := os.fork()) == 0:\n"
        "        time.sleep(60)\n"
        "    print(pid, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        f"os.execv({str(path)!r}, ['pause'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", orphaning], stdout=subprocess.PIPE) as process:
        assert process.stdout
        orphan = int(process.stdout.readline())
        wait_until_it_waits(process)
        os.kill(orphan, signal.SIGKILL)
        while exists(orphan):  # a zombie would
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=10) == 0


def test_programs_are_a_few_hundred_bytes():
    assert all(len(program(name, arch)) < 300 for name in ("hello", "pause") for arch in ARCHITECTURES)


def test_a_backward_jump_is_negative():
    table = [("top", "90", "nop"), ("", "eb {rel8 top}", "jmp top")]
    assert assemble(table, words=False) == bytes.fromhex("90 eb fd")


def test_the_layout_is_whole_and_the_same_each_time(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    build(first)
    build(second)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)

    names = [
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in json.loads((first / "index.json").read_bytes())["manifests"]
    ]
    assert names == [f"{HOST}/hello:latest", f"{HOST}/pause:latest"]
    for blob in (first / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
