"""Getting ready to attach changes nothing, wherever it is done."""

import os
from pathlib import Path

import pytest

from runtimed.linux import cgroups


@pytest.mark.root
def test_a_process_stays_where_it_is():
    before = Path("/proc/self/cgroup").read_text()
    cgroups.get_ready_to_attach()
    assert Path("/proc/self/cgroup").read_text() == before


@pytest.mark.parametrize(("listed", "after"), [("12\n4711\n", "12\n4711\n4711"), ("12\n47110\n0\n", "12\n47110\n0\n")])
def test_it_writes_its_own_pid_to_the_cgroup_that_it_is_listed_in(tmp_path, monkeypatch, listed, after):
    procs = tmp_path / "cgroup.procs"
    procs.write_text(listed)
    monkeypatch.setattr(cgroups, "of", lambda pid, root: cgroups.Cgroup({"": str(tmp_path)}))
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    cgroups.get_ready_to_attach()
    assert procs.read_text() == after


def test_without_cgroups_nothing_happens(tmp_path):
    cgroups.get_ready_to_attach(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
