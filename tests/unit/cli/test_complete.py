"""What a shell completes when there is no daemon to ask; what there is, is with the tests of rctl's nouns."""

import click
import pytest
from click.shell_completion import ShellComplete

from runtimed.cli.main import rctl
from tests.unit.cli.tree import COMMANDS


@pytest.mark.parametrize("words", [["rm"], ["rmi"], ["run", "--rm"], ["inspect"], ["namespaces", "rm"], ["-n"]])
def test_without_a_daemon_there_are_no_names_and_nothing_is_said(words, tmp_path, capfd):
    shell = ShellComplete(rctl, {}, "rctl", "_RCTL_COMPLETE")
    assert shell.get_completions(["-a", f"{tmp_path}/none.sock", *words], "") == []
    assert capfd.readouterr() == ("", "")


def test_what_is_called_the_id_of_a_container_or_an_image_is_completed():
    named = {
        (name, parameter.name): parameter
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.make_metavar(click.Context(command)) in {"IMAGE", "IMAGE...", "[IMAGE]...", "ID|IMAGE"}
        or (parameter.name in {"id", "ids"} and not name.startswith(("rctl leases", "rctl sandboxes")))
    }
    assert len(named) > 20
    assert [name for name, parameter in named.items() if parameter._custom_shell_complete is None] == []
