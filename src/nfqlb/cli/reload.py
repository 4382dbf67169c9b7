"""`nfqlb reload`: a director reads its file again."""

from __future__ import annotations

import click

from nfqlb.cli import steps
from nfqlb.cli.env import Env, change_options, client


@click.command("reload")
@click.option("--json", "as_json", is_flag=True, help="JSON with stable keys.")
@change_options
@click.pass_obj
def command(env: Env, as_json: bool, api: str | None, name: str | None) -> None:
    """Have a director read the file again that it was started with, and apply it; SIGHUP does the same."""
    steps.tell(client(env, api, name).reload(), as_json)
