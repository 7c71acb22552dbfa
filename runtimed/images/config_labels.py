"""What an image itself says under a label: words of whoever made it, not of whoever runs it."""

import json
import re
from typing import Any

from runtimed.errors import RuntimedError
from runtimed.metadata.content import Content
from runtimed.oci.manifest import MAX_CONFIG_SIZE

_DIGEST = re.compile(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})")
_MOST = 10_000  # documents that are looked into


def values(content: Content, namespace: str, digest: str, label: str) -> set[str]:
    """Return all that is said under the key *label* in the documents of the image *digest* that are here. Blocks.

    Whoever made the image may have done so to be read otherwise here than by clients, which do not care for case, for
    what stands twice, or for a field that is not valid. So nothing is made of the documents: every key that is the
    label counts, and everything is followed that looks like a digest.
    """
    found: set[str] = set()
    ahead = {digest: None}
    seen: set[str] = set()

    def look(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if isinstance(value, str):
                if key == label:
                    found.add(value)
                elif _DIGEST.fullmatch(value):
                    ahead[value] = None

    while ahead and len(seen) < _MOST:
        current, _ = ahead.popitem()
        if current in seen:
            continue
        seen.add(current)
        try:
            json.loads(content.read(namespace, current, MAX_CONFIG_SIZE), object_pairs_hook=look)
        except (RuntimedError, ValueError, RecursionError):  # not here, a layer, or nothing that a client could read
            continue
    return found
