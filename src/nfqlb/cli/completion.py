"""`nfqlb completion`: what a shell needs to complete commands, options, VIPs and real servers."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_NFQLB_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what SHELL needs to complete this command.

    \b
    bash  nfqlb completion bash > /etc/bash_completion.d/nfqlb
    zsh   nfqlb completion zsh > "${fpath[1]}/_nfqlb"
    fish  nfqlb completion fish > ~/.config/fish/completions/nfqlb.fish
    """
    from nfqlb.cli import nfqlb

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(nfqlb, {}, "nfqlb", VARIABLE).source())
