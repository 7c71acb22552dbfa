"""The daemon is killed while it writes, commits, deletes: what it acknowledged is there, and nothing is left over."""

import subprocess
import sys
from contextlib import suppress

import pytest

from runtimed.content.local import LocalStore
from runtimed.errors import AlreadyExists
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci import digest

# Writes blobs for ever, four threads at once, every third deleted again; says what is done after it is done.
WRITER = """
import os, sys, threading
from pathlib import Path
from runtimed.content.local import LocalStore
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.oci import digest

root = Path(sys.argv[1])
content = Content(Database(root / "metadata.db"), LocalStore(root / "content"))

def data(name):
    return f"{name} ".encode() * 5_000

def say(*words):
    os.write(1, (" ".join(words) + chr(10)).encode())  # in one piece: print writes the line end on its own

def write(thread):
    for number in range(100_000):
        name = f"{sys.argv[2]}-{thread}-{number}"
        expected = digest.of(data(name)) if number % 2 else ""
        with content.begin("ns", name, expected=expected) as ingest:
            for start in range(0, len(data(name)), 16_384):
                ingest.write(data(name)[start : start + 16_384])
            info = ingest.commit()
        say("committed", name)
        if number % 3 == 0:
            say("deleting", name)
            content.delete("ns", info.digest)
            say("deleted", name)

for thread in range(4):
    threading.Thread(target=write, args=(thread,)).start()
"""


def data(name):
    return f"{name} ".encode() * 5_000


def run_and_kill(root, run, lines):
    """Start the writer, kill it after it has said so many *lines*, and return all it said."""
    with subprocess.Popen([sys.executable, "-c", WRITER, root, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        return [line.split() for line in [*said, *process.stdout] if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 7, 40, 133])
def test_what_was_acknowledged_is_there_and_nothing_is_left_over(tmp_path, lines):
    said = [pair for run in ("a", "b") for pair in run_and_kill(tmp_path, run, lines)]
    database = Database(tmp_path / "metadata.db")
    content = Content(database, LocalStore(tmp_path / "content"))
    content.reconcile()

    committed = {name for what, name in said if what == "committed"}
    deleting = {name for what, name in said if what == "deleting"}
    deleted = {name for what, name in said if what == "deleted"}
    for name in committed - deleting:
        assert content.read("ns", digest.of(data(name))) == data(name)
    visible = {info.digest for info in content.list("ns")}
    assert not {digest.of(data(name)) for name in deleted} & visible
    for one in visible:
        assert digest.of(content.read("ns", one)) == one

    # Blobs that are not visible wait for an ingest that expects them; every ingest can be finished.
    for status in content.statuses("ns"):
        whole = data(status.ref)
        with (
            suppress(AlreadyExists),
            content.begin("ns", status.ref, expected=digest.of(whole)) as ingest,
        ):
            ingest.write(whole[ingest.offset :])
            ingest.commit(len(whole), digest.of(whole))
        assert content.read("ns", digest.of(whole)) == whole
    assert content.statuses("ns") == []
    assert set(content.store.digests()) == {info.digest for info in content.list("ns")}
    assert list(content.store.ingests()) == []
    database.close()
