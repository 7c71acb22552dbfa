"""The program ``rctl``: :mod:`runtimed.cli.main`, started with as little as it needs.

Half of the time of a ``rctl run`` is Python's start and its imports. Some of what asyncio, protobuf and msgspec import,
rctl never uses, or seldom; that is loaded when something is first asked of it, or not at all.
"""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_WHEN_USED = {
    "google.protobuf.descriptor_database",
    "google.protobuf.internal.python_message",
    "google.protobuf.text_format",
    "hashlib",
}
# What these two import if they can, and do without: TLS, and what Python has itself since 3.11.
_SPARED = {"asyncio": "ssl", "msgspec": "typing_extensions"}


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _WHEN_USED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def main() -> None:
    """Run the program with the process's arguments, and end the process with the exit status."""
    gc.set_threshold(50_000)  # nothing is to be found during the imports
    sys.meta_path.insert(0, _Finder)
    for importer, spared in _SPARED.items():
        sys.modules[spared] = None  # type: ignore[assignment]  # importing it is an ImportError then
        importlib.import_module(importer)
        del sys.modules[spared]  # others may need it
    from runtimed.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
