"""Facts about the store as a whole, each a key and a text."""

from runtimed.metadata.db import Tx


def ensure(tx: Tx, key: str, value: str) -> str:
    """Return the fact; it is *value* from now on if there was none."""
    tx.execute("INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, value))
    found: tuple[str] = tx.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return found[0]
