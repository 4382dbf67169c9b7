"""`nfqlb confirm`: what was applied for a while stays."""

from __future__ import annotations

import click

from nfqlb.cli.env import Env, change_options, client


@click.command("confirm")
@change_options
@click.pass_obj
def command(env: Env, api: str | None, name: str | None) -> None:
    """Keep what was applied with --confirm-within."""
    click.echo(f"revision {client(env, api, name).confirm()['revision']} stays")
