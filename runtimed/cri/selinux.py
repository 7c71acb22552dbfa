"""SELinux: the labels of a pod's processes and files, and relabelling of what is mounted."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from runtimed.errors import InvalidArgument, os_errors

KERNEL = Path("/sys/fs/selinux")
POLICIES = Path("/etc/selinux")
_XATTR = "security.selinux"
_DEFAULTS = {  # what container-selinux says, for where its file is missing
    "process": "system_u:system_r:container_t:s0",
    "file": "system_u:object_r:container_file_t:s0",
}
_PRIVILEGED_TYPE = "spc_t"
_NEVER = {"/", "/usr", "/etc", "/tmp", "/home", "/run", "/var", "/root", "/boot", "/dev", "/proc", "/sys"}


@cache
def is_enabled() -> bool:
    """Say whether the kernel has a policy loaded."""
    return (KERNEL / "enforce").exists()


def labels(user: str, role: str, type: str, level: str, sandbox_id: str, *, privileged: bool) -> tuple[str, str]:
    """Return the labels of processes and of files; what is not given is the policy's default.

    Two pods differ in their two categories, which are derived from *sandbox_id*.

    Raises:
        InvalidArgument: a part that would be several.
    """
    for part in (user, role, type):
        if part and not part.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise InvalidArgument(f"SELinux label {part[:64]!r} is not a name")
    if not level:
        level = "s0" if privileged else f"s0:{_categories(sandbox_id)}"
    if any(character.isspace() or not character.isprintable() for character in level):
        raise InvalidArgument(f"SELinux level {level[:64]!r} is not one")
    contexts = _contexts()
    process, file = contexts["process"].split(":"), contexts["file"].split(":")
    default_type = _PRIVILEGED_TYPE if privileged else process[2]
    return (
        ":".join([user or process[0], role or process[1], type or default_type, level]),
        ":".join([user or file[0], file[1], file[2], level]),
    )


def relabel(path: Path, label: str) -> None:
    """Give *path* and all below it the label; links are labelled, not followed, and mounts below are left. Blocks.

    Raises:
        InvalidArgument: a directory that the host itself lives in (CVE-2021-43816).
    """
    real = str(path.resolve())
    if real in _NEVER:
        raise InvalidArgument(f"{real} is the host's own and is not relabelled")
    value = label.encode() + b"\0"
    with os_errors(f"relabel {real}"):
        device = os.lstat(real).st_dev
        for name in _tree(real, device):
            os.setxattr(name, _XATTR, value, follow_symlinks=False)


def _tree(top: str, device: int) -> Iterator[str]:
    yield top
    pending = [top] if Path(top).is_dir() else []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_dev != device:
                    continue
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _categories(id: str) -> str:
    number = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
    first, second = number % 1024, number // 1024 % 1023
    second += second >= first
    return ",".join(f"c{category}" for category in sorted((first, second)))


@cache
def _contexts() -> dict[str, str]:
    """Return what the policy says in lines like ``process = "system_u:..."``."""
    found = dict(_DEFAULTS)
    for path in POLICIES.glob("*/contexts/lxc_contexts"):
        for line in path.read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and key.strip() in found and value.count(":") >= 3:
                found[key.strip()] = value.strip().strip('"')
    return found
