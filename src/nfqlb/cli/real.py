"""`nfqlb real`: the real servers of a service of a running director."""

from __future__ import annotations

import click

from nfqlb.cli import drain
from nfqlb.cli.env import Env, change_options, client, director_options, known_reals, known_vips


@click.group("real")
def command() -> None:
    """Add, edit, drain or delete a real server of a service, or take it out for maintenance.

    VIP is ADDRESS:PORT[-LAST][/tcp|/udp|/sctp] or fwmark:N[/ipv6], REAL is ADDRESS[:PORT]; IPv6 as [ADDRESS]:PORT.
    Without a port it is the VIP's, or that of the packet where the VIP has many.
    """


command.add_command(drain.command)


@command.command("add")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", metavar="REAL[,weight=N][,upper=N][,lower=N][,mode=nat|dr|tun][,agent_port=N]")
@change_options
@click.pass_obj
def add(env: Env, vip: str, real: str, api: str | None, name: str | None) -> None:
    """Add a real server; it gets new connections from now on.

    From `upper` connections on it gets no new ones, until there are fewer than `lower`. With `mode` packets get there
    otherwise than the service says. At `agent_port` its agent listens, if not at the port of the check.
    """
    import msgspec

    from nfqlb.model import parse_real, parse_vip

    key = parse_vip(vip)
    client(env, api, name).add_real(str(key), msgspec.to_builtins(parse_real(real, key)))


@command.command("edit")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", shell_complete=known_reals)
@click.option("--weight", type=int, metavar="N", help="0 takes no new connections, old ones go on.")
@click.option("--upper", type=int, metavar="N", help="Connections from which on it gets no new ones; 0: no limit.")
@click.option("--lower", type=int, metavar="N", help="Below these it gets some again; 0: three quarters of --upper.")
@click.option("--mode", metavar="nat|dr|tun", help="How packets of new connections get there.")
@click.option("--agent-port", type=int, metavar="N", help="Where its agent listens; 0: at the port of the check.")
@change_options
@click.pass_obj
def edit(
    env: Env,
    vip: str,
    real: str,
    weight: int | None,
    upper: int | None,
    lower: int | None,
    mode: str | None,
    agent_port: int | None,
    api: str | None,
    name: str | None,
) -> None:
    """Change the weight, the thresholds, the mode or the agent's port of a real server."""
    from nfqlb.cli.values import given
    from nfqlb.model import parse_real, parse_vip

    key = parse_vip(vip)
    changed = given(weight=weight, upper=upper, lower=lower, mode=mode, agent_port=agent_port)
    client(env, api, name).edit_real(str(key), str(parse_real(real, key)), changed)


@command.command("delete")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", shell_complete=known_reals)
@change_options
@click.pass_obj
def delete(env: Env, vip: str, real: str, api: str | None, name: str | None) -> None:
    """Delete a real server."""
    from nfqlb.model import parse_real, parse_vip

    key = parse_vip(vip)
    client(env, api, name).delete_real(str(key), str(parse_real(real, key)))


@command.command("maint")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", shell_complete=known_reals)
@click.option("--why", default="", metavar="TEXT", help="For those who look: `nfqlb show services` tells it.")
@director_options
@click.pass_obj
def maint(env: Env, vip: str, real: str, why: str, api: str | None, name: str | None) -> None:
    """Take a real server out until it is `ready`.

    It gets no new connections, those of persistent clients and datagrams included; TCP connections go on. It stays so
    through restarts of the director and new configurations, which say nothing of it.
    """
    _maintain(env, vip, real, True, why, api, name)


@command.command("ready")
@click.argument("vip", shell_complete=known_vips)
@click.argument("real", shell_complete=known_reals)
@director_options
@click.pass_obj
def ready(env: Env, vip: str, real: str, api: str | None, name: str | None) -> None:
    """Take a real server back in after its maintenance."""
    _maintain(env, vip, real, False, "", api, name)


def _maintain(env: Env, vip: str, real: str, on: bool, why: str, api: str | None, name: str | None) -> None:
    from nfqlb.model import parse_real, parse_vip

    key = parse_vip(vip)
    client(env, api, name).maintain(str(key), str(parse_real(real, key)), on, why)
