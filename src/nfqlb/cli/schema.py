"""`nfqlb schema`: what editors need to complete and check a configuration file."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON schema of the configuration file, for editors."""
    from nfqlb.config.schema import schema

    click.echo(json.dumps(schema(), indent=2))
