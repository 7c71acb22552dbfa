"""Loading what speaks to registries, when the first of them is asked: aiohttp, 60 ms and 8 MB.

aiohttp makes two contexts of its own when it is imported, and reads the system's authorities for each: another 40 ms
and 2 MB. Nothing here uses them: a connection by TLS is made with :func:`runtimed.workers.tls.context`. So they are
left without authorities, which is to say that they trust nobody.
"""

import importlib
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.Lock()


def load() -> None:
    """Import :mod:`runtimed.registry.host`, and aiohttp with it. Takes its time only once; blocks."""
    with _one_at_a_time:
        if "aiohttp" in sys.modules:  # if by another thread that is not done, the import waits for it
            importlib.import_module("runtimed.registry.host")
        else:
            with _without_authorities():
                importlib.import_module("runtimed.registry.host")


@contextmanager
def _without_authorities() -> Iterator[None]:
    """Have contexts that this thread makes in the block read none of the system's; those of other threads do."""
    here = threading.get_ident()
    usual = ssl.SSLContext.set_default_verify_paths  # inherited, in C

    def set_default_verify_paths(self: ssl.SSLContext) -> None:
        if threading.get_ident() != here:
            usual(self)

    ssl.SSLContext.set_default_verify_paths = set_default_verify_paths  # type: ignore[method-assign]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths
