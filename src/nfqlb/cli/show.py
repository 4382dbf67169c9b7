"""`nfqlb show`: what a director does, as a table to read or as JSON to process."""

from __future__ import annotations

import json
import shutil
import sys

import click

from nfqlb.cli.env import Env, client, director_options

WHAT = (
    "services",
    "health",
    "schedulers",
    "connections",
    "stats",
    "reasons",
    "daemon",
)  # the verbs of the client, and of tables


@click.command("show")
@click.argument("what", type=click.Choice(WHAT), default="services", metavar="[WHAT]")
@click.option("--json", "as_json", is_flag=True, help="JSON with stable keys instead of a table.")
@click.option("--limit", type=click.IntRange(0), default=0, metavar="N", help="Connections: at most N [default: all].")
@director_options
@click.pass_obj
def command(env: Env, what: str, as_json: bool, limit: int, api: str | None, name: str | None) -> None:
    """Show what a director does.

    \b
    services     services and real servers with their connections (the default)
    health       real servers that are checked, and how they are
    schedulers   those in Python and how they do, and where shadows differ
    connections  the live connections
    stats        connections, packets and bytes of each service and real server
    reasons      packets by what decided them
    daemon       the director itself: processes, queues, table, warnings
    """
    director = client(env, api, name)
    answer = director.connections(limit) if what == "connections" else getattr(director, what)()
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    from nfqlb.cli import tables

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    table: tables.Table = getattr(tables, what)(answer, width)
    for title in table.titles:
        click.echo(title if "NO_COLOR" in env.environ else click.style(title, bold=True))
    for row in table.rows:
        click.echo(row)
