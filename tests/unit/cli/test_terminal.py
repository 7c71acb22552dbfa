"""The terminal is given back as it was."""

import os
import pty
import termios

import pytest

from runtimed.cli import terminal
from runtimed.errors import InvalidArgument


@pytest.fixture
def sub():
    main, sub = pty.openpty()
    yield sub
    os.close(main)
    os.close(sub)


def test_it_is_raw_within_the_block_only(sub):
    before = termios.tcgetattr(sub)
    with terminal.raw(sub):
        assert not termios.tcgetattr(sub)[3] & termios.ECHO
    assert termios.tcgetattr(sub) == before


def test_it_is_given_back_after_an_error(sub):
    before = termios.tcgetattr(sub)
    with pytest.raises(KeyboardInterrupt), terminal.raw(sub):
        raise KeyboardInterrupt
    assert termios.tcgetattr(sub) == before


def test_what_is_no_terminal_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(InvalidArgument, match="leave -t out"):
        terminal.require(file.fileno())
