"""Numbered steps from one schema to the next, each applied once.

``PRAGMA user_version`` holds the number of the last step. Step 1 is ``schema.sql``; when the schema changes, its file
is edited so that it stays the page to read, and a step that does the same to an existing database is added to STEPS.
"""

import sqlite3
from collections.abc import Callable
from importlib.resources import files

from runtimed.errors import FailedPrecondition


def _sandboxes(conn: sqlite3.Connection) -> None:
    conn.execute(
        """
        CREATE TABLE sandboxes (
            namespace  TEXT NOT NULL REFERENCES namespaces (name),
            id         TEXT NOT NULL,
            sandboxer  TEXT NOT NULL DEFAULT '',
            runtime    TEXT NOT NULL DEFAULT '',
            runtime_options_type TEXT NOT NULL DEFAULT '',
            runtime_options BLOB NOT NULL DEFAULT x'',
            spec_type  TEXT NOT NULL DEFAULT '',
            spec       BLOB NOT NULL DEFAULT x'',
            extensions TEXT NOT NULL DEFAULT '{}',
            labels     TEXT NOT NULL DEFAULT '{}',
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (namespace, id)
        ) STRICT, WITHOUT ROWID
        """
    )


def _mounts(conn: sqlite3.Connection) -> None:
    conn.execute(
        """
        CREATE TABLE mounts (
            namespace  TEXT NOT NULL REFERENCES namespaces (name),
            name       TEXT NOT NULL,
            directory  TEXT NOT NULL UNIQUE,
            lease      TEXT NOT NULL DEFAULT '',
            active     TEXT NOT NULL,
            system     TEXT NOT NULL,
            labels     TEXT NOT NULL DEFAULT '{}',
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (namespace, name)
        ) STRICT, WITHOUT ROWID
        """
    )


# From version 2 on: version -> the step that leads to it.
STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {2: _sandboxes, 3: _mounts}

LATEST = max([1, *STEPS])


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the database to the latest schema; all steps or none.

    Raises:
        FailedPrecondition: the database was written by a newer runtimed.
    """
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if version == LATEST:
        return
    if version > LATEST:
        raise FailedPrecondition(
            f"metadata database has schema {version}, this runtimed knows {LATEST}: start the newer version,"
            " or use another root directory"
        )
    conn.execute("BEGIN EXCLUSIVE")
    try:
        if version == 0:
            for statement in _statements(files("runtimed.metadata").joinpath("schema.sql").read_text()):
                conn.execute(statement)
        else:
            for number in range(version + 1, LATEST + 1):
                STEPS[number](conn)
        conn.execute(f"PRAGMA user_version = {LATEST}")
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")


def _statements(script: str) -> list[str]:
    """Split a script; ``executescript`` would commit the open transaction."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
