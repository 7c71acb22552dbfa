"""An image's root file system for whoever makes a container's spec: mounted only if somebody has to look into it.

To mount an overlay and take it off costs more than anything else of CreateContainer, and what it is needed for every
time, the image's users and groups, cannot change: they belong to the chain of layers. So those of the images that were
used last are remembered.
"""

import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from runtimed.passwd import Accounts

_MOST = 64  # images
_LARGEST = 16 << 10  # bytes of etc/passwd and etc/group; a distribution's have 2,000, a hostile image's up to 8 MiB


class KnownAccounts:
    """The accounts of the images used last, by chain ID. Any thread may call."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, Accounts] = OrderedDict()
        self._guard = threading.Lock()

    def find(self, chain_id: str) -> Accounts | None:
        with self._guard:
            found = self._accounts.get(chain_id)
            if found is not None:
                self._accounts.move_to_end(chain_id)
        return found

    def add(self, chain_id: str, accounts: Accounts) -> None:
        """Remember *accounts*, unless they are unusually large."""
        if accounts.size > _LARGEST:
            return
        with self._guard:
            self._accounts[chain_id] = accounts
            self._accounts.move_to_end(chain_id)
            if len(self._accounts) > _MOST:
                self._accounts.popitem(last=False)


class Rootfs:
    """The root file system of a container to be, as its image has it; a context manager. Blocks."""

    def __init__(
        self, root: AbstractContextManager[Path], chain_id: str = "", known: KnownAccounts | None = None
    ) -> None:
        """Take *root*, which mounts it when it is entered; *chain_id* says what it shows, if *known* may know that."""
        self._root = root
        self._chain_id = chain_id
        self._known = known or KnownAccounts()
        self._held = ExitStack()
        self._path: Path | None = None

    def path(self) -> Path:
        """Return where it is mounted, for as long as this is entered. Raises what mounting raises."""
        if self._path is None:
            self._path = self._held.enter_context(self._root)
        return self._path

    def accounts(self) -> Accounts:
        """Return its users and groups. Raises as :class:`Accounts`, and what mounting raises."""
        found = self._known.find(self._chain_id)
        if found is None:
            found = Accounts(self.path())
            if self._chain_id:
                self._known.add(self._chain_id, found)
        return found

    def __enter__(self) -> "Rootfs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, exc, traceback)
