"""Network namespaces, made and pinned (ip-netns(8) does the same). Raises OSError."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from runtimed.linux.idmap import process_in
from runtimed.linux.mount import MS_BIND, mount
from runtimed.linux.namespaces import setns, unshare

CLONE_NEWNET = 0x40000000


def pin_new(mountpoint: str, user_namespace: str = "") -> None:
    """Make a network namespace with its loopback interface up, and pin it by a bind mount on the file *mountpoint*.

    It belongs to the user namespace that is pinned at *user_namespace*, "" for ours: whose root may configure it, and
    mount a sysfs of it. Blocks for some milliseconds: it takes a thread of its own, which is in the namespace until it
    ends, and for another user namespace two programs.
    """
    if not user_namespace:
        _pin(mountpoint, lambda: unshare(CLONE_NEWNET))
        return
    with process_in("nsenter", f"--user={user_namespace}", "unshare", "--net") as pid:
        _pin(mountpoint, lambda: _enter(f"/proc/{pid}/ns/net"))


def is_pinned(path: Path) -> bool:
    """Say whether a namespace is mounted on *path*: there may be only the file, or not even that."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def _pin(mountpoint: str, go_there: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def make() -> None:
        try:
            go_there()
            _loopback_up()
            mount("/proc/thread-self/ns/net", mountpoint, "", MS_BIND)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _enter(namespace: str) -> None:
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)


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
            _enter(namespace)
            made.append(socket.socket(family, socket.SOCK_STREAM))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]
