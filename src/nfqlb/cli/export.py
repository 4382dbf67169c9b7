"""`nfqlb export`: what a director does, as a configuration file."""

from __future__ import annotations

import click

from nfqlb.cli.env import Env, client, director_options


@click.command("export")
@click.argument("file", required=False)
@director_options
@click.pass_obj
def command(env: Env, file: str | None, api: str | None, name: str | None) -> None:
    """Write what a director does as a configuration file, to FILE or to the standard output.

    An existing FILE is replaced as a whole; - is the standard output. With `options.hash_key` a new one is its owner's.
    """
    import msgspec

    from nfqlb.config.file import write
    from nfqlb.config.toml import Loaded, dumps
    from nfqlb.model import Intent

    answer = client(env, api, name).config()
    intent = msgspec.convert(
        {part: answer[part] for part in ("timeouts", "answers", "options", "services", "sync")}, Intent
    )
    text = dumps(Loaded(answer["director"], intent))
    if file in (None, "-"):
        click.echo(text, nl=False)
    else:
        write(file, text, secret=bool(intent.options.hash_key))
