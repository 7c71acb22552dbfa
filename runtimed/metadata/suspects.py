"""Snapshots that a power cut may have damaged: noted when it is found out, until each has been looked at.

The fact ``boot`` is the boot in which a daemon runs that has not stopped. If a later one finds another boot there, the
machine went down under it, and whatever was committed then is suspect: a fact ``suspect/<snapshotter>/<its key>`` each.
A daemon that dies by itself loses nothing that the kernel had.
"""

from runtimed.metadata.db import Tx, frees

_BOOT = "boot"
_PREFIX = "suspect/"


def begin(tx: Tx, boot_id: str) -> bool:
    """Note that a daemon runs in this boot; say whether the last one was cut off, and then suspect all snapshots."""
    found = tx.execute("SELECT value FROM facts WHERE key = ?", (_BOOT,)).fetchone()
    tx.execute(
        "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (_BOOT, boot_id),
    )
    if found is None or found[0] == boot_id:
        return False
    tx.execute(
        "INSERT INTO facts (key, value) SELECT ? || snapshotter || '/' || backend_key, '' FROM snapshots WHERE true"
        " ON CONFLICT DO NOTHING",
        (_PREFIX,),
    )
    return True


@frees
def end(tx: Tx) -> None:
    """Note that the daemon has stopped."""
    tx.execute("DELETE FROM facts WHERE key = ?", (_BOOT,))


def every(tx: Tx) -> set[tuple[str, str]]:
    """Return snapshotter and its key of each suspect that is still there; forget those that are not."""
    tx.execute(
        "DELETE FROM facts WHERE key LIKE ? || '%' AND substr(key, ?) NOT IN"
        " (SELECT snapshotter || '/' || backend_key FROM snapshots)",
        (_PREFIX, len(_PREFIX) + 1),
    )
    keys = tx.execute("SELECT substr(key, ?) FROM facts WHERE key LIKE ? || '%'", (len(_PREFIX) + 1, _PREFIX))
    return {(name, key) for (snapshotter,) in keys for name, _, key in [snapshotter.partition("/")]}


def add(tx: Tx, snapshotter: str, backend_key: str) -> None:
    """Note that a snapshot is damaged."""
    key = f"{_PREFIX}{snapshotter}/{backend_key}"
    tx.execute("INSERT INTO facts (key, value) VALUES (?, '') ON CONFLICT DO NOTHING", (key,))


@frees
def clear(tx: Tx, snapshotter: str, backend_key: str) -> None:
    """Note that a snapshot is as it should be, or is not used."""
    tx.execute("DELETE FROM facts WHERE key = ?", (f"{_PREFIX}{snapshotter}/{backend_key}",))
