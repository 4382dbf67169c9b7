"""`nfqlb events`: what happens to a director."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from nfqlb.cli.env import Env, client, director_options
from nfqlb.cli.steps import lines

DAY = 86400


@click.command("events")
@click.option("--follow", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--since", type=click.IntRange(0), default=0, metavar="NUMBER", help="Only those after this event.")
@click.option("--json", "as_json", is_flag=True, help="An object a line, with stable keys.")
@director_options
@click.pass_obj
def command(env: Env, follow: bool, since: int, as_json: bool, api: str | None, name: str | None) -> None:
    """Tell what happened to a director: changes, confirmations, drains, real servers lost and found, repairs."""
    director = client(env, api, name)
    while True:
        for event in director.events(since, DAY if follow else 0):
            since = event["number"]
            _tell(event, as_json)
        if not follow:
            return


def _tell(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event, ensure_ascii=False))
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    click.echo(f"{when} {event['kind']}: {event['message']}")
    for line in lines(event.get("steps", ())):
        click.echo(f"    {line}")
