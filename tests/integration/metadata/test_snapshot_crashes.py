"""The process dies at each step of each operation; the next one finds a store that it can repair."""

import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from runtimed.metadata.db import Database
from runtimed.metadata.snapshots import Snapshots
from runtimed.snapshots.snapshotter import Kind
from tests.fakes.snapshotters import Unreliable

_SCRIPT = """
import sys
from tests.integration.metadata.test_snapshot_crashes import run_until_death
run_until_death(*sys.argv[1:])
"""


def run_until_death(root: str, when: str) -> None:
    with ExitStack() as opened:
        snapshotter, snapshots = _open(Path(root), opened)
        commit(snapshots, "base", "kept")
        (mount,) = snapshots.prepare("ns", "active", "base", {})
        (Path(mount.source) / "work").write_text("unsaved")
        snapshotter.at[when] = lambda: os._exit(9)  # as if by SIGKILL
        match when.split()[1]:
            case "prepare":
                snapshots.prepare("ns", "another", "base", {})
            case "commit":
                snapshots.commit("ns", "name", "active", {"label": "1"})
            case "remove":
                snapshots.remove("ns", "active")


def _open(root: Path, opened: ExitStack) -> tuple[Unreliable, Snapshots]:
    db = opened.enter_context(closing(Database(root / "metadata.db")))
    snapshotter = opened.enter_context(closing(Unreliable(root / "mortal")))
    return snapshotter, Snapshots(db, "mortal", snapshotter)


def commit(snapshots: Snapshots, name: str, text: str) -> None:
    (mount,) = snapshots.prepare("ns", f"making {name}", "", {})
    (Path(mount.source) / "file").write_text(text)
    snapshots.commit("ns", name, f"making {name}", {})


@pytest.mark.parametrize(
    ("when", "left"),
    [
        ("before prepare", {"base", "active"}),
        ("after prepare", {"base", "active"}),
        ("before commit", {"base", "active"}),
        ("after commit", {"base", "name"}),
        ("before remove", {"base", "active"}),
        ("after remove", {"base"}),
    ],
)
def test_a_death_at_any_step_leaves_no_name_stuck_and_nothing_behind(tmp_path, when, left):
    died = subprocess.run([sys.executable, "-c", _SCRIPT, tmp_path, when], cwd=Path(__file__).parents[3], check=False)
    assert died.returncode == 9

    with ExitStack() as opened:
        snapshotter, snapshots = _open(tmp_path, opened)
        snapshots.reconcile()
        snapshots.cleanup()
        infos = {info.name: info for info in snapshots.list("ns")}
        assert set(infos) == left
        assert len(list(snapshotter.list())) == len(left)
        assert len(list((tmp_path / "mortal" / "snapshots").iterdir())) == len(left)
        assert list((tmp_path / "mortal" / "new").iterdir()) == list((tmp_path / "mortal" / "trash").iterdir()) == []
        if "active" in left:
            (mount,) = snapshots.mounts("ns", "active")
            assert (Path(mount.source) / "work").read_text() == "unsaved"
            snapshots.commit("ns", "name", "active", {})
        elif "name" in left:
            assert (infos["name"].kind, infos["name"].parent) == (Kind.COMMITTED, "base")
            assert infos["name"].labels == {"label": "1"}
        for key in ("another", "active"):
            snapshots.prepare("ns", key, "base", {})
