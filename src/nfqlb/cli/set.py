"""`nfqlb set`: what holds for all services of a running director."""

from __future__ import annotations

import json

import click

from nfqlb.cli import steps
from nfqlb.cli.env import Env, change_options, client
from nfqlb.config.toml import ANSWERS, OPTIONS, TIMEOUTS, Seconds
from nfqlb.errors import ConfigError, meant
from nfqlb.model import parse_number, parse_seconds

TABLES = {"timeouts": TIMEOUTS, "answers": ANSWERS, "options": OPTIONS}
TRUTH = {"yes": True, "true": True, "no": False, "false": False}


@click.command("set")
@click.argument("values", nargs=-1, metavar="[TABLE.KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="JSON with stable keys.")
@change_options
@click.pass_obj
def command(env: Env, values: tuple[str, ...], as_json: bool, api: str | None, name: str | None) -> None:
    """Show or change what holds for all services: timeouts, answers and options, as the configuration file has them.

    All that is named is changed in one step or not at all, as in `nfqlb set timeouts.udp=30
    options.expire_nodest_conn=yes`. Without an argument what there is is shown.
    """
    director = client(env, api, name)
    config = director.config()
    if not values:
        found = {table: config[table] for table in TABLES}
        if as_json:
            click.echo(json.dumps(found, indent=2))
        for table, keys in () if as_json else found.items():
            for key, value in keys.items():
                click.echo(f"{table}.{key} = {json.dumps(value)}")
        return
    named: set[tuple[str, str]] = set()
    for text in values:
        table, key, new = setting(text)
        if (table, key) in named:
            raise ConfigError("set", text, "is there twice", "give each value once")
        named.add((table, key))
        config[table][key] = new
    if director.revision is None:
        director.revision = config["revision"]
    steps.tell(director.apply({part: config[part] for part in ("director", "services", "sync", *TABLES)}), as_json)


def setting(text: str) -> tuple[str, str, object]:
    """Read TABLE.KEY=VALUE."""
    path, equals, value = text.partition("=")
    table, _, key = path.partition(".")
    if table not in TABLES or not equals:
        raise ConfigError("set", text, "is no setting", f"write TABLE.KEY=VALUE, TABLE one of {', '.join(TABLES)}")
    kind = TABLES[table].get(key)
    if kind is None:
        fix = f"{meant(key, TABLES[table])}the keys of {table} are {', '.join(TABLES[table])}"
        raise ConfigError("set", path, "is not known", fix)
    if kind is bool and value not in TRUTH:
        raise ConfigError(path, value, "is neither yes nor no")
    if kind is Seconds:
        return table, key, parse_seconds(path, value)
    if kind is int:
        return table, key, parse_number(path, value)
    return table, key, TRUTH[value] if kind is bool else value
