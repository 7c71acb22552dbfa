"""A worker that has nothing to do hands over what it has to the keeper, and ends; the next one takes it up.

What goes over is the tree of objects below one root, pickled, and every descriptor that the worker has open, by the
same number. So a number in an object means in the next worker what it meant in this one.

**What keeps a worker awake** is what its loop has: a task, a reader, a writer, a timer. One that can be taken up again
is marked *resumable* where it is begun (``loop.spawn``, ``poller.add_reader``, ``poller.call_later``,
``loop.timeout``), and its owner begins it anew in ``__setstate__``, which runs on the next worker's loop before
anything else does::

    class Watcher:
        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._watch()

        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state)
            self._watch()

        def _watch(self) -> None:
            poller.add_reader(self._fd, self._changed, resumable=True)

A descriptor of a resumable reader wakes the next worker when it is readable. Who marks nothing need do nothing: the
worker stays. So it does with an object that cannot be pickled (a lambda as a callback; a bound method can). A resumable
task may be given up wherever it waits, and must be in the middle of nothing there.
"""

import os
import pickle
import resource
from contextlib import suppress
from time import monotonic
from typing import Any

from shim import link, log, poller
from shim.keeper import Start

_FIRST_REST_S = 1.0
_LAST_REST_S = 64.0
# One who has rested for less was woken in vain: the next rest begins later.
_GOOD_REST_S = 10.0


class Handover:
    """When the worker rests (``loop.Rest``), and how."""

    def __init__(self, start: Start) -> None:
        self.after_s = _FIRST_REST_S
        self._start = start
        self.root: Any = None

    def restored(self) -> Any:
        """Return what the last worker has left; None if this is the first. Call it on the loop."""
        if self._start.state < 0:
            return None
        state = os.pread(self._start.state, os.fstat(self._start.state).st_size, 0)
        os.close(self._start.state)
        self.root, after_s, since = pickle.loads(state)  # a worker of this very program has made it
        self.after_s = min(after_s * 2, _LAST_REST_S) if monotonic() - since < _GOOD_REST_S else _FIRST_REST_S
        return self.root

    def keep(self, root: Any) -> None:
        """Hand over *root*.

        Its ``patience_s`` says after how long it wants to be woken at the latest, or None; its ``children`` are the
        pids of this process's children that go on, and that it takes for the keeper's when it is taken up again.
        """
        self.root = root

    def begin(self, readers: list[int]) -> None:
        """Hand over and end this process; come back if that cannot be."""
        try:
            state = pickle.dumps((self.root, self.after_s, monotonic()))
        except Exception as exc:
            log.debug(f"the shim stays awake: {exc}")
            self._later()
            return
        patience_s = self.root.patience_s
        memory = os.memfd_create("state")
        try:
            os.write(memory, state)
            fds = self._fds()
            # The keeper's limit is ours; it needs room for a packet of them twice.
            if max(fds) + 2 * link.AT_ONCE >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
                raise OSError("too many descriptors")
            for pid in self.root.children:
                self._start.link.say("inherit", pid)
            self._start.link.give(fds)
            self._start.link.watch([fd for fd in readers if fd not in self._start.keepers_fds])
            self._start.link.say("rest", memory, -1 if patience_s is None else max(0, int(patience_s * 1000)) + 1)
            os._exit(0)
        except OSError as exc:
            log.debug(f"the shim stays awake: {exc}")
            self._start.link.say("drop")
            os.close(memory)
            self._later()

    def _later(self) -> None:
        self.after_s = min(self.after_s * 2, _LAST_REST_S)

    def _fds(self) -> list[int]:
        own = {poller.fileno(), *self._start.keepers_fds}
        fds = []
        for fd in sorted(map(int, os.listdir("/proc/self/fd"))):  # noqa: PTH208
            if fd > 2 and fd not in own:
                with suppress(OSError):  # the one that listed them is closed
                    os.fstat(fd)
                    fds.append(fd)
        return fds
