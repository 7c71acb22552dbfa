"""Where a container is in the cgroup hierarchies."""

import os

from runtimed.errors import NotFound
from shim import files

_ROOT = "/sys/fs/cgroup"
_MOUNTS = "/proc/self/mountinfo"
# A controller is in one hierarchy only, so where version 1 has one of these the container is measured by version 1.
_MEASURING = frozenset({"cpu", "memory", "pids"})


class Cgroups:
    """The cgroups of a process: what /proc/PID/cgroup (cgroups(7)) says, as directories.

    ``text`` is all there is to it, so that it can be written down and found again after the process is gone.
    """

    __slots__ = ("_mounts", "_root", "text")

    def __init__(self, text: str, root: str = _ROOT, mounts: str = _MOUNTS) -> None:
        self.text = text
        self._root = root
        self._mounts = mounts

    @classmethod
    def of(cls, pid: int) -> "Cgroups":
        """Return those of a process; none of one that is gone."""
        try:
            return cls(files.read(f"/proc/{pid}/cgroup").decode(errors="surrogateescape"))
        except OSError:
            return cls("")

    @property
    def is_unified(self) -> bool:
        """Whether the controllers are those of cgroup version 2."""
        return not any(_MEASURING & set(controllers) for controllers, _ in self._lines())

    def directory(self, controller: str) -> str:
        """Return the directory in the hierarchy of *controller*, with version 2 that of all.

        Raises:
            NotFound: there is none, or none any more.
        """
        is_unified = self.is_unified
        for controllers, path in self._lines():
            if controllers == [""] if is_unified else controller in controllers:
                below = self._root if is_unified else f"{self._root}/{controller}"
                for directory in (f"{below}{path}", self._below_mount(controller, path, is_unified=is_unified)):
                    if directory and os.path.isdir(directory):  # noqa: PTH112 - a string all the way
                        return directory.rstrip("/")
        raise NotFound(f"cgroup of the controller {controller!r}")

    def is_own(self, controller: str) -> bool:
        """Return whether the container has a cgroup of that controller to itself, and is not in the root's."""
        is_unified = self.is_unified
        return any(
            path != "/" and (controllers == [""] if is_unified else controller in controllers)
            for controllers, path in self._lines()
        )

    def _lines(self) -> list[tuple[list[str], str]]:
        """Return the controllers of each hierarchy (version 2: one empty name) and the path in it."""
        lines = [line.split(":", 2) for line in self.text.splitlines()]
        return [(line[1].split(","), line[2]) for line in lines if len(line) == 3]

    def _below_mount(self, controller: str, path: str, *, is_unified: bool) -> str:
        """Return the directory where a part of the hierarchy is mounted, or it lies elsewhere (mountinfo); else ""."""
        try:
            text = files.read(self._mounts).decode(errors="surrogateescape")
        except OSError:
            return ""
        for line in text.splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(" "), after.split(" ")
            if len(fields) < 5 or len(kind) < 3:
                continue
            if kind[0] == "cgroup2" if is_unified else kind[0] == "cgroup" and controller in kind[2].split(","):
                top = fields[3].rstrip("/")
                if path == top or path.startswith(f"{top}/"):
                    return fields[4] + path[len(top) :]
        return ""
