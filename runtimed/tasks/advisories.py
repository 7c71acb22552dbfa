"""Security advisories of runc, and which of them a version is too old for.

A distribution may mend an old version without giving it another number (Debian does), so what is said here is that a
hole *may* be open. Sources, as of November 2026: runc's release notes (https://github.com/opencontainers/runc/releases)
and advisories (https://github.com/opencontainers/runc/security/advisories).
"""

import re
from dataclasses import dataclass

_FINAL = 1 << 30  # behind every release candidate

Version = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Advisory:
    """IDs that belong together, and the first release of each branch that has them mended."""

    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]


ADVISORIES = (
    Advisory(("CVE-2023-25809", "CVE-2023-27561", "CVE-2023-28642"), ("1.1.5",)),
    Advisory(("CVE-2024-21626",), ("1.1.12", "1.2.0-rc.1")),
    Advisory(("CVE-2024-45310",), ("1.1.14", "1.2.0-rc.3")),
    Advisory(("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"), ("1.2.8", "1.3.3", "1.4.0-rc.3")),
    Advisory(("CVE-2026-41579",), ("1.3.6", "1.4.3", "1.5.0-rc.3")),
)


def parse(text: str) -> Version | None:
    """Return the version in *text*, as in ``runc version 1.4.0-rc.3+dev``; None if there is none."""
    match = re.search(r"\b(\d+)\.(\d+)\.(\d+)(?:[-~]rc\.?(\d+))?", text)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch), int(candidate) if candidate else _FINAL


def may_be_open(version: Version) -> list[str]:
    """Return the IDs of what was mended in later versions than *version*, oldest first."""
    return [id for advisory in ADVISORIES if _is_older(version, advisory) for id in advisory.ids]


def warning(text: str) -> str:
    """Return what there is to say of the runc that describes its version by *text*; "" if nothing."""
    version = parse(text)
    if not text.startswith("runc ") or version is None or not (ids := may_be_open(version)):
        return ""
    return f"may be open: {', '.join(ids)}; your distribution may have fixed it without changing the version"


def _is_older(version: Version, advisory: Advisory) -> bool:
    fixes = sorted(fix for text in advisory.fixed_in if (fix := parse(text)) is not None)
    of_branch = next((fix for fix in fixes if fix[:2] == version[:2]), None)
    return version < (of_branch or fixes[0])
