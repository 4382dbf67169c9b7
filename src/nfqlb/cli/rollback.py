"""`nfqlb rollback`: what was applied for a while goes at once."""

from __future__ import annotations

import click

from nfqlb.cli.env import Env, change_options, client


@click.command("rollback")
@change_options
@click.pass_obj
def command(env: Env, api: str | None, name: str | None) -> None:
    """Go back at once to before what waits to be confirmed."""
    click.echo(f"revision {client(env, api, name).rollback()['revision']} is as it was before")
