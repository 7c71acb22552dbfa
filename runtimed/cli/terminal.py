"""The user's terminal: raw while a container has it, and always given back as it was."""

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from runtimed.errors import InvalidArgument
from runtimed.oci.runtime_spec import ConsoleSize


def require(fd: int) -> None:
    """Raise InvalidArgument if *fd* is not a terminal."""
    if not os.isatty(fd):
        raise InvalidArgument("standard input is not a terminal, which -t needs; leave -t out, or add -d")


def size(fd: int) -> ConsoleSize:
    """Return the size of the terminal *fd*."""
    columns, lines = os.get_terminal_size(fd)
    return ConsoleSize(height=lines, width=columns)


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hold the terminal *fd* in raw mode: every key goes to the container, also the ones that make signals."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # not FLUSH, the default: it throws away what has been typed already
    try:
        yield
    finally:
        # After what was written has been shown; keys typed meanwhile are kept for the shell.
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
