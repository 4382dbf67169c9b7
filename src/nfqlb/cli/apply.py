"""`nfqlb apply`: a running director does what a file says."""

from __future__ import annotations

import os
import time

import click

from nfqlb.cli import steps
from nfqlb.cli.env import Env, change_options, client, seconds
from nfqlb.errors import ConfigError


@click.command("apply")
@click.argument("file")
@click.option("--plan", is_flag=True, help="Only say what would change.")
@click.option(
    "--confirm-within",
    callback=seconds,
    metavar="TIME",
    help="90s, 5m: go back then, unless `nfqlb confirm` was called meanwhile.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON with stable keys.")
@change_options
@click.pass_obj
def command(
    env: Env, file: str, plan: bool, confirm_within: int | None, as_json: bool, api: str | None, name: str | None
) -> None:
    """Make a running director do what FILE says: services that are not in it go, all in one step or not at all.

    FILE - is the standard input.

    The file is checked as a whole first, and every mistake in it is told. Connections go on, unless their real server
    goes. What the [director] section says takes effect at the next start.
    """
    import msgspec

    from nfqlb.config.file import STDIN, read

    director, intent = read(file, whole=True, stdin=True)
    if confirm_within == 0:
        fix = "give it some, as in 90s or 5m; leave it out to apply for good"
        raise ConfigError("--confirm-within", confirm_within, "leaves no time to confirm", fix)
    if "api" in director:
        director["api"] = os.path.abspath(director["api"])
    wanted = {"director": msgspec.to_builtins(director), **msgspec.to_builtins(intent)}
    chosen = client(env, api, name, director)
    origin = "" if file == STDIN else os.path.abspath(file)
    answer = chosen.apply(wanted, plan=plan, confirm_within=confirm_within or 0, file=origin)
    steps.tell(answer, as_json)
    if answer["confirm_by"] and not as_json:
        left = max(0, round(answer["confirm_by"] - time.time()))
        click.echo(f"it goes back in {left} s; keep it by `nfqlb confirm`")
