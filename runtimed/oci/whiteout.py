"""Whiteouts: how a layer says that something of the layers below is gone (OCI image-spec layer.md, "Whiteouts")."""

from dataclasses import dataclass

from runtimed.errors import InvalidArgument

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."  # metadata of AUFS in layers of old tools


@dataclass(frozen=True, slots=True)
class Whiteout:
    """Hides ``name`` in the whiteout's directory or, if ``name`` is empty, everything in that directory."""

    name: bytes

    @property
    def is_opaque(self) -> bool:
        return not self.name


def parse(name: bytes) -> Whiteout | None:
    """Return what the entry *name* (a single path component) hides; None for AUFS metadata, which means nothing here.

    Call it for names that start with :data:`PREFIX`.

    Raises:
        InvalidArgument: what it would hide cannot be an entry of a directory (``.wh.``, ``.wh..``, ``.wh...``).
    """
    if name == OPAQUE:
        return Whiteout(b"")
    if name.startswith(_RESERVED):
        return None
    hidden = name[len(PREFIX) :]
    if hidden in (b"", b".", b"..") or b"/" in hidden:
        raise InvalidArgument(f"whiteout {name!r} hides nothing that a directory can hold")
    return Whiteout(hidden)
