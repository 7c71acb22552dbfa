"""The help of every command of rctl: what it does in a line, and examples, which are right."""

import re
import shlex
from pathlib import Path

import click
import pytest

from runtimed.cli.client import Settings
from runtimed.cli.main import rctl
from tests.unit.cli.tree import COMMANDS

_COLUMN = 60  # characters that a terminal of 80 leaves for what a command does
_INNER = re.compile(r"\$\(([^)]*)\)")
_BETWEEN = re.compile(r" (?:\||&&|<) |; ")


def examples(help: str) -> list[str]:
    r"""Return the lines of the paragraphs that ``\b`` keeps click from wrapping."""
    kept = [paragraph for paragraph in help.split("\n\n") if paragraph.lstrip(" ").startswith("\b\n")]
    return [line.strip() for paragraph in kept for line in paragraph.splitlines()[1:]]


def programs(line: str) -> list[list[str]]:
    """Return the words of each rctl in a line of a shell."""
    inner = [found for inside in _INNER.findall(line) for found in programs(inside)]
    parts = _BETWEEN.split(_INNER.sub("OUTPUT", line))
    return [*inner, *(shlex.split(part)[1:] for part in parts if part.startswith("rctl "))]


def called(command: click.Command, context: click.Context) -> str:
    """Return the name of the command that words, parsed as far as *context*, call. Raises click.UsageError: none."""
    with context:
        words = context._protected_args + context.args
        if not isinstance(command, click.Group) or not words:
            return context.command_path
        name, below, rest = command.resolve_command(context, words)
        assert below is not None
        return called(below, below.make_context(name, rest, parent=context))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_says_what_a_command_does(name):
    said = COMMANDS[name].get_short_help_str(_COLUMN)
    assert said.endswith("."), f"{name}: no short help, or one that is cut"
    assert not said.endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_examples_that_rctl_understands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("app.tar.gz").touch()  # one that an example reads
    lines = examples(COMMANDS[name].help or "")
    names = [
        called(rctl, rctl.make_context("rctl", words, obj=Settings())) for line in lines for words in programs(line)
    ]
    assert any(one == name or one.startswith(f"{name} ") for one in names), f"{name}: no example of it"
