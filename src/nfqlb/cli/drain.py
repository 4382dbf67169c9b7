"""`nfqlb drain`: a real server goes out without breaking a connection; the director does it, this waits and tells."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from nfqlb.cli.env import Env, change_options, client, known_reals, known_vips, seconds

if TYPE_CHECKING:
    from nfqlb.api.client import Client

POLL = 0.5  # seconds
PATIENCE = 30.0  # seconds for a director that is started again
ENDS = {
    "empty": "its last connection has ended",
    "deadline": "time was up",
    "called off": "called off, its weight is no longer 0",
    "gone": "somebody else removed it",
}


@click.command("drain")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", shell_complete=known_reals)
@click.option(
    "--timeout",
    callback=seconds,
    default="5m",
    metavar="TIME",
    help="90s, 5m, 2h: take it out then at the latest [default: 5m].",
)
@click.option("--keep", is_flag=True, help="Leave it there in the end, with weight 0.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
@change_options
@click.pass_context
def command(
    context: click.Context,
    vip: str,
    real: str,
    timeout: int,
    keep: bool,
    no_wait: bool,
    api: str | None,
    name: str | None,
) -> None:
    """Give a real server weight 0, and delete it when its last connection has ended.

    The director does it: it goes on after Ctrl-C here, and after a crash of the director. Giving the server a weight
    calls it off. Ends with 0 when the server is empty, with 1 when time was up before that or it was called off.
    """
    from nfqlb.model import parse_real, parse_vip

    env: Env = context.obj
    key = parse_vip(vip)
    director = client(env, api, name)
    drain = director.drain(str(key), str(parse_real(real, key)), timeout, keep)
    if no_wait:
        click.echo(_progress(drain))
        return
    drain = _wait(director, drain)
    left = drain["active"] + drain["inactive"]
    rest = f", {left} connections were left" if left and drain["phase"] == "deadline" else ""
    stays = "it is still there" if keep or drain["phase"] == "called off" else "it is deleted"
    click.echo(f"{drain['real']}: {ENDS[drain['phase']]}{rest}; {stays}")
    context.exit(0 if drain["phase"] == "empty" else 1)


def _wait(director: Client, drain: dict[str, Any]) -> dict[str, Any]:
    """The drain at its end; what changes meanwhile is told."""
    from nfqlb.errors import UnreachableError

    told, end = "", time.monotonic() + PATIENCE
    while drain["phase"] == "draining":
        count = f"{drain['active']} {drain['inactive']}"
        if count != told:
            click.echo(_progress(drain))
            told = count
        time.sleep(POLL)
        try:
            drain = _find(director.drains()["drains"], drain)
            end = time.monotonic() + PATIENCE
        except UnreachableError:
            if time.monotonic() > end:
                raise
    return drain


def _find(drains: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    """What became of it; a director that was started again in the very moment of the end does not know."""
    same = (one for one in drains if (one["service"], one["real"]) == (wanted["service"], wanted["real"]))
    return next(same, {**wanted, "phase": "gone"})


def _progress(drain: dict[str, Any]) -> str:
    counts = f"{drain['active']} active and {drain['inactive']} inactive connections"
    return f"{drain['real']}: {counts}, {drain['seconds_left']} s left"
