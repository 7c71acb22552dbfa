"""Which containers are to run, as their labels ``containerd.io/restart.*`` say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from runtimed import labels
from runtimed.errors import InvalidArgument

RUNNING, STOPPED = "running", "stopped"

_TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # as Go reads them


@dataclass(frozen=True, slots=True)
class Policy:
    """`name` is ``no``, ``always``, ``on-failure`` or ``unless-stopped``; `most` restarts on failure, 0: any number."""

    name: str
    most: int = 0


def parse(text: str) -> Policy:
    """Return the policy that a label says; without one it is ``always``, as in containerd. Raises InvalidArgument."""
    name, colon, number = text.partition(":")
    if name in {"", "no", "always", "unless-stopped"} and not colon:
        return Policy(name or "always")
    if name == "on-failure" and (not colon or number.isascii() and number.isdecimal()):
        return Policy(name, int(number or 0))
    raise InvalidArgument(
        f"restart policy {text[:80]!r}: there are no, always, on-failure, on-failure:<number> and unless-stopped"
    )


def count(marks: Mapping[str, str]) -> int:
    """Return how often a container was restarted."""
    text = marks.get(labels.RESTART_COUNT, "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def is_wanted(marks: Mapping[str, str], exit_status: int | None) -> bool:
    """Say whether a container with these labels, whose task has ended so, is to be started again.

    *exit_status* is None where nobody knows: there is no task, perhaps because the machine was started anew.

    Raises:
        InvalidArgument: there is no such policy.
    """
    policy = parse(marks.get(labels.RESTART_POLICY, ""))
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return marks.get(labels.RESTART_EXPLICITLY_STOPPED) not in _TRUE
        case "on-failure":
            return bool(exit_status) and (not policy.most or count(marks) < policy.most)
    return False
