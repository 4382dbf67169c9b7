"""What commands take from their surroundings, so that a test can hand them others; and how they find the director."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from nfqlb.errors import ConfigError, NfqlbError
from nfqlb.paths import DEFAULT_NAME, api_socket

if TYPE_CHECKING:
    from nfqlb.api.client import Client

REVISION = f"{__name__}.revision"  # in the context of a command
F = TypeVar("F", bound=Callable[..., Any])


class Env(NamedTuple):
    environ: Mapping[str, str] = os.environ
    euid: Callable[[], int] = os.geteuid
    execv: Callable[[str, list[str]], object] = os.execv


def check_text(word: str) -> None:
    """Refuse an argument whose bytes are no UTF-8: Python has stand-ins for them, which nothing else takes."""
    if not word.isascii():
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError("argument", word.encode(errors="replace").decode(), "is not UTF-8 text") from None


def seconds(_: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Read the value of an option as a time, with its unit or without, as in the file: 90, 90s, 5m, 2h, 1d."""
    from nfqlb.model import parse_seconds

    return None if text is None else parse_seconds(option.opts[0], text)


def director_options(function: F) -> F:
    """--api and --name, for every command that speaks to a director."""
    api = click.option("--api", metavar="SOCKET", help="The API socket of the director [default: from --name].")
    name = click.option("--name", metavar="NAME", help=f"The name of the director [default: {DEFAULT_NAME}].")
    return api(name(function))


def change_options(function: F) -> F:
    """The same, and --if-revision, for every command that changes what the director does."""
    revision = click.option(
        "--if-revision",
        type=click.IntRange(0),
        metavar="N",
        help="Only if this is the revision, as `nfqlb show --json` tells it.",
        expose_value=False,
        callback=lambda context, _, value: context.meta.update({REVISION: value}),
    )
    return director_options(revision(function))


def known_vips(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete a VIP of the director that the command would speak to; none where it does not answer."""
    return [one["key"] for one in _services(context) if one["key"].startswith(incomplete)]


def known_reals(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete a real server of the VIP before it."""
    from nfqlb.model import parse_vip

    try:
        key = str(parse_vip(context.params.get("vip") or ""))
    except NfqlbError:
        return []
    ends = (real["endpoint"] for one in _services(context) if one["key"] == key for real in one["reals"])
    return [end for end in ends if end.startswith(incomplete)]


def _services(context: click.Context) -> list[dict[str, Any]]:
    try:
        answer = client(context.obj or Env(), context.params.get("api"), context.params.get("name")).services()
    except NfqlbError:
        return []
    found: list[dict[str, Any]] = answer["services"]
    return found


def client(env: Env, api: str | None, name: str | None, file: Mapping[str, Any] | None = None) -> Client:
    """`file` is the [director] section of a configuration, where there is one."""
    from nfqlb.api.client import Client

    context = click.get_current_context(silent=True)
    revision = context.meta.get(REVISION) if context else None
    told = file or {}
    chosen = director_name(env, name, told.get("name"))
    return Client(socket_path(env, api, chosen, told.get("api")), revision=revision)


def director_name(env: Env, option: str | None, file: str | None = None) -> str:
    """What the command line says, else NFQLB_NAME, else the configuration file, else `main`."""
    return option or env.environ.get("NFQLB_NAME") or file or DEFAULT_NAME


def socket_path(env: Env, option: str | None, name: str, file: str | None = None) -> str:
    """What the command line says, else NFQLB_API, else the configuration file, else it follows from the name."""
    if chosen := option or env.environ.get("NFQLB_API") or file:
        return os.path.abspath(chosen)
    return api_socket(name, env.environ)
