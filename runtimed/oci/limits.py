"""``linux.resources`` of the OCI runtime spec, as JSON has it (config-linux.md, Control groups)."""

from collections.abc import Mapping
from typing import Any


def merged(current: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return *current* with *over* over it: value by value, and huge pages size by size."""
    groups: dict[str, Any] = {
        group: {**current[group], **over[group]}
        for group in current.keys() & over.keys()
        if isinstance(over[group], Mapping)
    }
    if over.get("hugepageLimits"):
        sizes = {limit["pageSize"] for limit in over["hugepageLimits"]}
        kept = [limit for limit in current.get("hugepageLimits", ()) if limit["pageSize"] not in sizes]
        groups["hugepageLimits"] = [*kept, *over["hugepageLimits"]]
    return {**current, **over, **groups}
