"""A root directory that is not that of the mount namespace."""

import subprocess
import sys

import pytest

from runtimed import daemon
from runtimed.linux import chroot

pytestmark = pytest.mark.root

LOOK = """
import os, sys
from runtimed.linux.chroot import is_chroot
print(is_chroot(), os.listdir("/") == os.listdir(sys.argv[1]))
os.chroot(sys.argv[1])
print(is_chroot(), os.listdir("/"))
"""


def test_a_chroot_is_noticed_and_the_process_stays_in_it(tmp_path):
    (tmp_path / "proc").mkdir()
    script = 'mount --bind "$1" "$1" && mount -t proc proc "$1/proc" && exec "$2" -c "$3" "$1"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", tmp_path, sys.executable, LOOK]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\nTrue ['proc']\n"


def test_no_daemon_starts_in_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chroot, "is_chroot", lambda: True)
    assert daemon.main(["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]) == 1
    assert "pivot_root" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
