"""What a row costs does not grow with how many there are: each statement finds its rows by an index."""

from contextlib import closing, suppress

import pytest

from runtimed.errors import NotFound
from runtimed.metadata import blobs, containers, images
from runtimed.metadata.db import Database
from runtimed.oci import digest

DIGEST = digest.of(b"x")


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    with closing(Database(tmp_path_factory.mktemp("limits") / "metadata.db")) as opened:
        yield opened


def plans(tx, func, *args):
    """Return what SQLite does for each statement of a function of the tables."""
    said: list[str] = []
    tx.set_trace_callback(said.append)
    with suppress(NotFound):
        func(tx, "ns", *args)
    tx.set_trace_callback(None)
    statements = [one for one in said if one.split()[0] in {"SELECT", "UPDATE", "DELETE"}]
    assert statements
    return [row[3] for one in statements for row in tx.execute(f"EXPLAIN QUERY PLAN {one}")]


@pytest.mark.parametrize(
    ("func", "arguments"),
    [
        (images.get, ["example.org/a:1"]),
        (images.delete, ["example.org/a:1"]),
        (images.list, []),
        (containers.get, ["c"]),
        (containers.delete, ["c"]),
        (containers.list, []),
        (blobs.get_blob, [DIGEST]),
        (blobs.delete_blob, [DIGEST]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_no_table_is_read_from_end_to_end(db, func, arguments):
    for plan in db.submit(plans, func, *arguments).result():
        assert not plan.startswith("SCAN"), plan
