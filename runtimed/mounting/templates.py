"""The templates in mounts of type ``format/...``: what of Go's text/template containerd's mounts are made of.

Between ``{{`` and ``}}`` stands one call: ``source N``, ``target N`` or ``mount N`` of the Nth active mount, or
``overlay FIRST LAST``, their mount points joined by colons, upwards or downwards. ``{{-`` and ``-}}`` also drop the
blanks outside.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from runtimed.errors import InvalidArgument
from runtimed.metadata.activations import ActiveMount
from runtimed.mounts import Mount

_ACTION = re.compile(r"\s*\{\{-\s(.*?)\s-\}\}\s*|\s*\{\{-\s(.*?)\}\}|\{\{(.*?)\s-\}\}\s*|\{\{(.*?)\}\}")
_NUMBER = re.compile(r"-?[0-9]{1,4}")


def formatted(mount: Mount, active: Sequence[ActiveMount]) -> Mount:
    """Return *mount* with the templates in its source, target and options filled in from the *active* mounts.

    Raises:
        InvalidArgument: not such a template, or a mount that is not there.
    """
    return replace(
        mount,
        source=_filled(mount.source, active),
        target=_filled(mount.target, active),
        options=tuple(_filled(option, active) for option in mount.options),
    )


def _filled(text: str, active: Sequence[ActiveMount]) -> str:
    return _ACTION.sub(lambda found: _value(next(filter(None, found.groups()), ""), active), text)


def _value(action: str, active: Sequence[ActiveMount]) -> str:
    match action.split():
        case ["source", index]:
            return _at(action, index, active).mount.source
        case ["target", index]:
            return _at(action, index, active).mount.target
        case ["mount", index]:
            return _at(action, index, active).mount_point
        case ["overlay", first, last]:
            start, end = _number(action, first), _number(action, last)
            for index in (first, last):
                _at(action, index, active)
            step = 1 if start <= end else -1
            return ":".join(active[index].mount_point for index in range(start, end + step, step))
    raise InvalidArgument(
        f"mount template {action[:80]!r}: there are `source N`, `target N`, `mount N` and `overlay FIRST LAST`"
    )


def _at(action: str, index: str, active: Sequence[ActiveMount]) -> ActiveMount:
    number = _number(action, index)
    if not 0 <= number < len(active):
        raise InvalidArgument(f"mount template {action!r}: there are {len(active)} active mounts, counted from 0")
    return active[number]


def _number(action: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidArgument(f"mount template {action[:80]!r}: {text[:20]!r} is not a number")
    return int(text)
