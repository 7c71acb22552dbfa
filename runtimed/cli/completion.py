"""``rctl completion``: what a shell needs to complete rctl's commands and options."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_RCTL_COMPLETE"  # by which the shell asks; click knows it


@click.command("completion", short_help="Print what makes a shell complete rctl's commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete rctl's commands and options.

    \b
    bash: eval "$(rctl completion bash)"               in ~/.bashrc
    zsh:  eval "$(rctl completion zsh)"                in ~/.zshrc
    fish: rctl completion fish | source                in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(ctx.find_root().command, {}, "rctl", _VARIABLE).source())
