"""The kinds of files in a cgroup, as far as statistics need them. What is not there, or not to be read, is empty."""

import os

from shim import files

UNLIMITED = (1 << 64) - 1  # how a limit of "max" is told


def text(path: str) -> str:
    try:
        return files.read(path).decode(errors="replace")
    except OSError:
        return ""


def number(path: str, unlimited: int = UNLIMITED) -> int:
    """Return the number in a file: 0 if there is none, *unlimited* for "max"."""
    return integer(text(path).strip(), unlimited)


def integer(word: str, unlimited: int = UNLIMITED) -> int:
    if word == "max":
        return unlimited
    return int(word) if word.isascii() and word.isdigit() else 0


def table(path: str) -> dict[str, int]:
    """Return the lines ``key value``; others are left out."""
    lines = [line.split() for line in text(path).splitlines()]
    return {line[0]: integer(line[1]) for line in lines if len(line) == 2}


def nested(path: str, unlimited: int = UNLIMITED) -> list[tuple[str, dict[str, int]]]:
    """Return the lines ``name key=value key=value ...``."""
    found = []
    for line in text(path).splitlines():
        name, *pairs = line.split() or [""]
        if pairs:
            split = [pair.partition("=") for pair in pairs]
            found.append((name, {key: integer(value, unlimited) for key, _, value in split}))
    return found


def page_sizes(directory: str, last: str) -> list[str]:
    """Return the sizes of huge pages of which a file ``hugetlb.SIZE.LAST`` tells; not ``hugetlb.SIZE.rsvd.LAST``."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - strings all the way
    except OSError:
        return []
    parts = [name.split(".") for name in sorted(names)]
    return [part[1] for part in parts if len(part) == 3 and part[0] == "hugetlb" and part[2] == last]
