"""A real snapshotter, native, that can be made to fail."""

from collections.abc import Callable, Mapping
from pathlib import Path

from runtimed.snapshots.snapshotter import Mounts
from snapshotters.native import NativeSnapshotter


class Unreliable(NativeSnapshotter):
    """Calls ``at["before commit"]``, ``at["after remove"]``, ... at that moment, which may raise or end the process."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, self.Config())
        self.at: dict[str, Callable[[], object]] = {}

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        self._reach("before prepare")
        mounts = super().prepare(key, parent, labels)
        self._reach("after prepare")
        return mounts

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        self._reach("before commit")
        super().commit(name, key, labels)
        self._reach("after commit")

    def remove(self, key: str) -> None:
        self._reach("before remove")
        super().remove(key)
        self._reach("after remove")

    def _reach(self, when: str) -> None:
        self.at.get(when, lambda: None)()
