"""``-o json`` of every command of rctl that has something to say."""

import click
import pytest

from runtimed.cli.client import Settings
from tests.unit.cli.tree import COMMANDS

# What these print, if anything, is a process's, bytes, or the names they were given.
_PLAIN = {
    f"rctl {name}"
    for name in (
        *("start", "exec", "kill", "update", "pause", "resume", "checkpoint", "restore", "logs", "rm", "rmi"),
        *("content get", "content abort", "content rm", "snapshots diff", "snapshots rm", "images unmount"),
        *("leases add", "leases remove", "leases rm", "namespaces rm", "mounts rm", "sandboxes rm"),
        *("gc run", "completion"),
        *(f"cri {name}" for name in ("start", "stop", "rm", "stopp", "rmp", "rmi", "logs", "exec", "attach", "update")),
        *("cri port-forward", "cri checkpoint"),
    )
}


def takes_json(command: click.Command) -> bool:
    return any("-o" in option.opts for option in command.params if isinstance(option, click.Option))


def test_all_but_plain_commands_take_it_after_their_name():
    called = {
        name: command
        for name, command in COMMANDS.items()
        if not isinstance(command, click.Group) or command.invoke_without_command
    }
    assert {name for name, command in called.items() if not takes_json(command)} == _PLAIN


@pytest.mark.parametrize(("words", "is_json"), [(["-o", "json"], True), (["-o", "table"], False), ([], None)])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["rctl ps", "rctl images", "rctl content ls", "rctl plugins"])
def test_it_goes_before_what_rctl_was_told_and_else_that_stays(name, words, is_json, before):
    settings = Settings(json=before)
    with COMMANDS[name].make_context(name, [*words], obj=settings):
        assert settings.json is (before if is_json is None else is_json)
