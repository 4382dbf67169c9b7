"""`nfqlb real-server`: what direct routing and tunnelling need on the machine of a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nfqlb.kernel.realserver import RealServer


MSS = "What clients are told to send at most; 0: anything [default: what fits into the tunnel]."


@click.group("real-server")
def command() -> None:
    """Set up this machine as a real server for direct routing (dr) or tunnelling (tun). Needs root, and no director."""


def mode_and_vips(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--mss", type=int, metavar="BYTES", help=MSS),
        click.option("--vip", "vips", multiple=True, required=True, metavar="ADDR", help="A VIP; repeats."),
        click.option("--mode", required=True, metavar="dr|tun", help="The forwarding method of its service."),
    ):
        function = option(function)
    return function


@command.command("setup")
@mode_and_vips
@click.option("--dev", "devices", multiple=True, metavar="IF", help="Where tunnels come in; repeats [default: all].")
@click.option("--by", default="auto", metavar="auto|kernel|bpf", help="Who takes packets out of a tunnel.")
def setup(mode: str, vips: tuple[str, ...], mss: int | None, devices: tuple[str, ...], by: str) -> None:
    """Take the VIPs without telling anybody, and for tun packets out of their tunnel. It lasts until undo or a boot."""
    mode, addresses = _checked(mode, vips, mss)
    _real_server().setup(mode, addresses, devices, by, mss)


@command.command("check")
@mode_and_vips
@click.pass_context
def check(context: click.Context, mode: str, vips: tuple[str, ...], mss: int | None) -> None:
    """Say what is missing, and end with 1 if anything is."""
    mode, addresses = _checked(mode, vips, mss)
    found = _real_server().check(mode, addresses, mss)
    for sentence in found:
        click.echo(sentence)
    context.exit(1 if found else 0)


@command.command("undo")
def undo() -> None:
    """Put everything back as it was before the first set-up."""
    _real_server().undo()


def _checked(mode: str, vips: tuple[str, ...], mss: int | None) -> tuple[str, list[str]]:
    from nfqlb.model import canonical, check_choice, check_mss

    check_choice("--mode", mode, ("dr", "tun"))
    check_mss("--mss", mss or 0)
    return mode, [canonical("--vip", vip) for vip in vips]


def _real_server() -> RealServer:
    import os

    from nfqlb.errors import MissingError
    from nfqlb.kernel.realserver import RealServer
    from nfqlb.paths import paths

    if os.geteuid() != 0:
        raise MissingError("nfqlb real-server changes addresses and sysctls: run it as root")
    namespace = Path("/proc/self/ns/net").stat().st_ino  # containers of one machine may share the folder
    return RealServer(paths(f"real-server.{namespace}").kernel)
