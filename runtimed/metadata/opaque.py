"""Messages that are kept without being looked into, alone and by name."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opaque:
    """A message the daemon keeps without looking into it: the two fields of ``google.protobuf.Any``, as they came."""

    type_url: str
    value: bytes


def packed(extensions: Mapping[str, Opaque]) -> str:
    """Return *extensions* as a column holds them: a JSON object of ``[type URL, base64 of value]``."""
    return json.dumps({name: [one.type_url, base64.b64encode(one.value).decode()] for name, one in extensions.items()})


def unpacked(text: str) -> dict[str, Opaque]:
    """Return what :func:`packed` was given."""
    return {name: Opaque(type_url, base64.b64decode(value)) for name, (type_url, value) in json.loads(text).items()}


def with_one(current: Mapping[str, Opaque], given: Mapping[str, Opaque], name: str) -> dict[str, Opaque]:
    """Return *current* with the extension *name* as *given* has it, or without, if it has none."""
    others = {other: value for other, value in current.items() if other != name}
    return others | ({name: given[name]} if name in given else {})
