"""The resources of an update, as a client gives them."""

import json

from runtimed.errors import InvalidArgument
from shim import messages as pb

_KIND = "LinuxResources"


def from_any(value: pb.Any | None) -> bytes:
    """Return the JSON of a LinuxResources (OCI runtime-spec config-linux.md), which is not looked into further.

    Raises:
        InvalidArgument: nothing, something of another type, or no JSON object.
    """
    kind = value.type_url if value is not None else ""
    if value is None or kind.rpartition("/")[2] != _KIND:
        raise InvalidArgument(f"resources of type {kind!r}; a task takes opencontainers/runtime-spec/1/{_KIND}")
    try:
        document = json.loads(value.value)
    except ValueError as exc:
        raise InvalidArgument(f"resources: no JSON: {exc}") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"resources: the JSON is not an object of {_KIND}")
    return value.value
