"""Two directory trees, entry by entry: ``python -m tests.images.compare A B``; status 1 and a line for each difference.

Everything that a layer can say is compared: type, mode, owner, size, time to the nanosecond, device number, extended
attributes, where links point, which names are hard links of each other, and the sha256 of contents.
"""

import argparse
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20

Description = dict[str, Any]


def described(root: Path) -> dict[str, Description]:
    """Return what there is to say about each entry below *root* and, as ``.``, about itself; by path."""
    found = {".": _describe(os.fsencode(root), root.lstat())}
    names: dict[tuple[int, int], list[str]] = {}
    for path in _walk(os.fsencode(root)):
        status = os.lstat(path)
        name = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
        found[name] = _describe(path, status)
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(name)
    for group in names.values():
        for name in group:
            found[name]["same as"] = sorted(group)
    return found


def _walk(root: bytes) -> Iterator[bytes]:
    """Yield every path below *root*; what the directory says of a type must be what the entry says."""
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _describe(path: bytes, status: os.stat_result) -> Description:
    mode = status.st_mode
    description: Description = {
        "type and mode": oct(mode),
        "owner": (status.st_uid, status.st_gid),
        "time": status.st_mtime_ns,
        "device": (os.major(status.st_rdev), os.minor(status.st_rdev)),
        "attributes": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
    }
    if not stat.S_ISDIR(mode):
        description["links"] = status.st_nlink
        description["size"] = status.st_size
    if stat.S_ISREG(mode):
        description["sha256"] = _sha256(path)
    if stat.S_ISLNK(mode):
        description["target"] = Path(os.fsdecode(path)).readlink()
    return description


def _xattrs(path: bytes) -> list[str]:
    # overlayfs keeps these to itself; they show in a layer that is mounted alone.
    return [name for name in sorted(os.listxattr(path, follow_symlinks=False)) if not name.startswith("trusted.")]


def _sha256(path: bytes) -> str:
    """Return the digest of what is in a file."""
    hash_ = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY)
    try:
        while data := os.read(fd, _CHUNK):
            hash_.update(data)
    finally:
        os.close(fd)
    return hash_.hexdigest()


def differences(one: Path, other: Path, *, now: int | None = None) -> list[str]:
    """Return what differs between the trees *one* and *other*, a line for each thing.

    With *now* (nanoseconds), a directory's time counts only if it is before that in both: later ones were set by the
    file system and not by a layer.
    """
    left, right = described(one), described(other)
    lines = [f"{name!r} is only in {one}" for name in sorted(left.keys() - right.keys())]
    lines += [f"{name!r} is only in {other}" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        here, there = left[name], right[name]
        for what in sorted(here.keys() | there.keys()):
            if here.get(what) == there.get(what):
                continue
            if what == "time" and now is not None and max(here[what], there[what]) >= now and "size" not in here:
                continue
            lines.append(f"{name!r}: {what}: {here.get(what)!r}, {there.get(what)!r}")
    return lines


def main() -> int:
    """Compare the trees that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.images.compare", description=__doc__)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    one, other = parser.parse_args().trees
    lines = differences(one, other)
    print("\n".join(lines) or "the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
