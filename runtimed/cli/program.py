"""The program ``rctl``: :mod:`runtimed.cli.main`, started with as little as it needs.

Half of the time of a ``rctl run`` is Python's start and its imports. Much of what asyncio, click, protobuf and msgspec
import, rctl never uses, or seldom; that is loaded when something is first asked of it, or not at all.
"""

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

_WHEN_USED = (
    *("ast", "linecache", "platform", "textwrap"),
    *("asyncio.sslproto", "asyncio.staggered", "calendar", "decimal", "hashlib", "inspect", "ipaddress", "json"),
    *("locale", "msgspec.inspect", "msgspec.toml", "msgspec.yaml", "ntpath", "shlex"),
    *("termios", "traceback", "tty", "uuid"),
    "google.protobuf.descriptor_database",
    "google.protobuf.internal.python_edition_defaults",
    "google.protobuf.internal.python_message",
    "google.protobuf.text_encoding",
    "google.protobuf.text_format",
)
# What these two import if they can, and do without: TLS, and what Python has itself since 3.11.
_SPARED = {"asyncio": "ssl", "msgspec": "typing_extensions"}


class Later(ModuleType):
    """A module that is loaded when it is asked for something that it has not been given.

    Unlike that of :class:`importlib.util.LazyLoader` it waits also when a second module imports it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """Return the module itself, and have from now on what it has."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return module


class _Unknown:
    """In the place of types that msgspec and click could convert to, and that nothing of ours is of."""

    unknown = None  # of uuid.SafeUUID


def cleandoc(doc: str) -> str:
    """Return *doc* as inspect.cleandoc does; click asks for that with each option, and inspect takes 3 ms to load."""
    first, *others = doc.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in others)]).strip("\n")


def postpone() -> None:
    """Import asyncio, msgspec and click without what they do not need; the rest of it is loaded when it is used."""
    later = {name: Later(name) for name in _WHEN_USED if name not in sys.modules}
    # What somebody takes out of them while he is imported himself.
    given: dict[str, dict[str, Any]] = {
        "decimal": {"Decimal": _Unknown},
        "inspect": {"cleandoc": cleandoc},
        "traceback": {"extract_stack": lambda *args: later["traceback"].load().extract_stack(*args)},
        "uuid": {"UUID": _Unknown, "SafeUUID": _Unknown},
    }
    for name, module in later.items():
        vars(module).update(given.get(name, {}))
    sys.modules.update(later)
    for importer, spared in _SPARED.items():
        sys.modules[spared] = None  # type: ignore[assignment]  # importing it is an ImportError then
        importlib.import_module(importer)
        del sys.modules[spared]  # others may need it
    importlib.import_module("click")
    for name in {"decimal", "uuid"} & later.keys():
        for attribute in given[name]:
            del vars(later[name])[attribute]  # that was for msgspec and click; others get the true ones


def main() -> None:
    """Run the program with the process's arguments, and end the process with the exit status."""
    gc.set_threshold(50_000)  # nothing is to be found during the imports
    postpone()
    from runtimed.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
