"""The `nfqlb` command.

Strategy: scripts call it thousands of times, so each command lives in a module of its own that is imported when it is
called, and what only some commands need is imported inside them. Every failure is one sentence on stderr (about a file,
one for each mistake in it) and the exit code of its class in nfqlb.errors; wrong usage ends with 2.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from nfqlb import __version__
from nfqlb.cli.env import Env, check_text
from nfqlb.errors import NfqlbError, meant

COMMANDS = {
    "run": "Run a director in the foreground.",
    "show": "Show what a director does.",
    "service": "Add, edit or delete a virtual service.",
    "real": "Add, edit or delete a real server of a service.",
    "set": "Show or change what holds for all services.",
    "apply": "Make a running director do what a file says.",
    "confirm": "Keep what was applied with --confirm-within.",
    "rollback": "Go back to before what waits to be confirmed.",
    "reload": "Have a director read its file again.",
    "export": "Write what a director does as a configuration file.",
    "events": "Tell what happens to a director.",
    "drain": "Take a real server out when its connections have ended.",
    "sync": "Say how connection sync fares.",
    "doctor": "Say what is wrong, and what to do.",
    "ipvsadm": "Take the arguments of ipvsadm, answer as ipvsadm does.",
    "real-server": "Set up this machine as a real server for dr or tun.",
    "completion": "Print what bash, zsh or fish need to complete this command.",
    "schema": "Print the JSON schema of the configuration file, for editors.",
}


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of a standard output


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nfqlb.cli.{cmd_name.replace('-', '_')}").command
        command.short_help = COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. {meant(args[0], COMMANDS).capitalize()}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="nfqlb %(version)s")
def nfqlb() -> None:
    """A Linux Virtual Server in user space: layer 4 load balancing over NFQUEUE."""


def main(args: Sequence[str] | None = None, env: Env | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    words = sys.argv[1:] if args is None else args
    if sys.stdout is None:  # closed: then writing says so
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    try:
        sys.exit(_run(args, words, env or Env()))
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer
        sys.exit(_fail(f"the standard output takes no more: {error.strerror}", 1))


def _run(args: Sequence[str] | None, words: Sequence[str], env: Env) -> int:
    if args is None and os.path.basename(sys.argv[0]) == "ipvsadm":
        words = ["ipvsadm", *words]
    if words and words[0] == "ipvsadm":  # it has a grammar of its own
        from nfqlb.cli import ipvsadm

        return ipvsadm.main(words[1:], env)
    try:
        for word in words:
            check_text(word)
        return nfqlb.main(args, "nfqlb", standalone_mode=False, obj=env) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(_sentence(error), error.exit_code)
    except click.Abort:
        return 130
    except NfqlbError as error:
        return _fail(str(error), error.exit_code)


def _fail(sentences: str, code: int) -> int:
    for sentence in sentences.splitlines():
        click.echo(f"nfqlb: {sentence}", err=True)
    return code


def _sentence(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{' See' if text.endswith('?') else '; see'} `{error.ctx.command_path} --help`"
    return text[:1].lower() + text[1:] + hint
