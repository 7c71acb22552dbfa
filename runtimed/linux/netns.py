"""Network namespaces, made and pinned (ip-netns(8) does the same). Raises OSError."""

import os
import socket
import threading

from runtimed.linux.mount import MS_BIND, mount
from runtimed.linux.namespaces import setns, unshare

CLONE_NEWNET = 0x40000000


def pin_new(mountpoint: str) -> None:
    """Make a network namespace with its loopback interface up, and pin it by a bind mount on the file *mountpoint*.

    Blocks for some milliseconds: it takes a thread of its own, which is in the namespace until it ends.
    """
    failures: list[BaseException] = []

    def make() -> None:
        try:
            unshare(CLONE_NEWNET)
            _loopback_up()
            mount("/proc/thread-self/ns/net", mountpoint, "", MS_BIND)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _loopback_up() -> None:
    from pyroute2 import IPRoute  # here: it takes a sixth of a second to load, and only pods need it

    with IPRoute() as links:
        links.link("set", index=1, state="up")  # lo is the first there is, and for now the only one


def open_socket(namespace: str, family: int) -> socket.socket:
    """Return a new TCP socket of *family* in the network namespace that is pinned at a path; "" is our own.

    Blocks a moment: entering another namespace takes a thread of its own. The caller closes the socket.
    """
    if not namespace:
        return socket.socket(family, socket.SOCK_STREAM)
    made: list[socket.socket] = []
    failures: list[BaseException] = []

    def make() -> None:
        try:
            fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
            made.append(socket.socket(family, socket.SOCK_STREAM))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]
