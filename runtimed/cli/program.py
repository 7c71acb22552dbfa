"""The program ``rctl``: :mod:`runtimed.cli.main`, started with as little as it needs.

Half of the time of a ``rctl run`` is Python's start and its imports. Much of what asyncio, click, protobuf and msgspec
import, rctl never uses, or seldom; that is loaded when something is first asked of it, or not at all.
"""

import gc
import importlib
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

_WHEN_USED = (
    *("ast", "linecache", "platform", "textwrap"),
    *("asyncio.sslproto", "asyncio.staggered", "calendar", "datetime", "decimal", "gettext", "hashlib", "inspect"),
    *("ipaddress", "json", "locale", "msgspec._json_schema", "msgspec.inspect", "msgspec.toml"),
    *("msgspec.yaml", "ntpath", "shlex", "string"),
    *("subprocess", "termios", "traceback", "tty", "urllib.parse", "uuid"),
    "google.protobuf.descriptor_database",
    "google.protobuf.internal.python_edition_defaults",
    "google.protobuf.internal.python_message",
    "google.protobuf.text_encoding",
    "google.protobuf.text_format",
)
# What these two import if they can, and do without: TLS, and what Python has itself since 3.11.
_SPARED = {"asyncio": "ssl", "msgspec": "typing_extensions"}
_PACKAGES = {"json"}
_FOR_IMPORTERS = {"decimal", "string", "uuid"}  # what is given of these is good for the imports only
_SHA256 = "_sha2" if sys.version_info >= (3, 12) else "_sha256"


class Later(ModuleType):
    """A module that is loaded when it is asked for something that it has not been given.

    Unlike that of :class:`importlib.util.LazyLoader` it waits also when a second module imports it.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and self.__name__ not in _PACKAGES:  # `from ... import` asks for that
            raise AttributeError(name)
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """Return the module itself, and have from now on what it has."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return module


class _Unknown:
    """In the place of types that msgspec, click and logging could make use of, and nothing of ours does."""

    unknown = None  # of uuid.SafeUUID


def cleandoc(doc: str) -> str:
    """Return *doc* as inspect.cleandoc does; click asks for that with each option, and inspect takes 3 ms to load."""
    first, *others = doc.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in others)]).strip("\n")


def is_coroutine_function(func: Any) -> bool:
    """Say as inspect.iscoroutinefunction does whether *func* is one; asyncio asks that of each signal's handler."""
    while isinstance(func, partial):
        func = func.func
    code = getattr(getattr(func, "__func__", func), "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE


def unwrap(func: Any) -> Any:
    """Return what *func* wraps, as inspect.unwrap; asyncio asks that for the repr of a task.

    signal.signal makes one of its old handler, which is asyncio.run's and has the task.
    """
    while hasattr(func, "__wrapped__"):
        func = func.__wrapped__
    return func


def postpone() -> None:
    """Import asyncio, msgspec and click without what they do not need; the rest of it is loaded when it is used."""
    later = {name: Later(name) for name in _WHEN_USED if name not in sys.modules}

    def function(module: str, name: str) -> dict[str, Callable[..., Any]]:
        return {name: lambda *args, **kwargs: getattr(later[module].load(), name)(*args, **kwargs)}

    # What somebody takes out of them while he is imported himself, or what is as good without the rest.
    given: dict[str, dict[str, Any]] = {
        "datetime": vars(importlib.import_module("_datetime")),  # Python has it twice, and throws its own one away
        "decimal": {"Decimal": _Unknown},
        "gettext": {"gettext": lambda text: text, "ngettext": lambda one, many, n: one if n == 1 else many},
        # Python's own, for a few bytes; OpenSSL's is loaded by who asks for hashlib.new.
        "hashlib": {"sha256": importlib.import_module(_SHA256).sha256},
        "inspect": {
            "cleandoc": cleandoc,
            "iscoroutinefunction": is_coroutine_function,
            "isfunction": lambda object: isinstance(object, FunctionType),
            "unwrap": unwrap,
        },
        "msgspec._json_schema": function("msgspec._json_schema", "schema")
        | function("msgspec._json_schema", "schema_components"),
        "string": {"Formatter": _Unknown, "Template": _Unknown},
        "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
        "traceback": function("traceback", "extract_stack"),
        "urllib.parse": function("urllib.parse", "quote_from_bytes") | function("urllib.parse", "unquote_to_bytes"),
        "uuid": {"UUID": _Unknown, "SafeUUID": _Unknown},
    }
    for name, module in later.items():
        vars(module).update({key: value for key, value in given.get(name, {}).items() if not key.startswith("__")})
    sys.modules.update(later)
    for importer, spared in _SPARED.items():
        sys.modules[spared] = None  # type: ignore[assignment]  # importing it is an ImportError then
        importlib.import_module(importer)
        del sys.modules[spared]  # others may need it
    importlib.import_module("click")
    signal.valid_signals = cache(signal.valid_signals)  # 0.06 ms; asyncio asks whenever it gets or loses a handler
    for name in _FOR_IMPORTERS & later.keys():
        for attribute in given[name]:
            del vars(later[name])[attribute]  # that was for msgspec, click and logging; others get the true ones


def main() -> None:
    """Run the program with the process's arguments, and end the process with the exit status."""
    gc.set_threshold(50_000)  # nothing is to be found during the imports
    postpone()
    from runtimed.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
