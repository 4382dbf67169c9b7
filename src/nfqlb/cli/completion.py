"""`nfqlb completion`: what a shell needs to complete commands, options, VIPs and real servers."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from nfqlb.cli.env import Env, client
from nfqlb.errors import NfqlbError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_NFQLB_COMPLETE"


@click.command("completion", short_help="Print what bash, zsh or fish need to complete this command.")
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


def vips(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Of the director that the command would speak to; none where it does not answer."""
    return [one["key"] for one in _services(context) if one["key"].startswith(incomplete)]


def reals(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Those of the VIP that stands before."""
    from nfqlb.model import parse_vip

    try:
        key = str(parse_vip(context.params.get("vip") or ""))
    except NfqlbError:
        return []
    ends = (real["endpoint"] for one in _services(context) if one["key"] == key for real in one["reals"])
    return [end for end in ends if end.startswith(incomplete)]


def _services(context: click.Context) -> list[dict[str, Any]]:
    try:
        answer = client(context.obj or Env(), context.params.get("api"), context.params.get("name")).services()
    except NfqlbError:
        return []
    found: list[dict[str, Any]] = answer["services"]
    return found
