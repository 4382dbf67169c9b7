"""`nfqlb service`: virtual services of a running director."""

from __future__ import annotations

import click

from nfqlb.cli.env import Env, change_options, client, known_vips, seconds


@click.group("service")
def command() -> None:
    """Add, edit or delete a virtual service of a running director.

    VIP is ADDRESS:PORT[/tcp|/udp|/sctp], IPv6 as [ADDRESS]:PORT; ADDRESS:FIRST-LAST is a range of ports, port 0 every
    one. fwmark:N[/ipv6] takes the packets (TCP, UDP, SCTP) that your rules in mangle PREROUTING mark with N.
    """


@command.command("add")
@click.argument("vip")
@click.option("--label", metavar="NAME", help="The service's name, for people.")
@click.option("--mode", metavar="nat|dr|tun", help="How packets reach the real servers [default: nat].")
@click.option("--scheduler", metavar="NAME", help="How connections are spread; FILE.py: in Python [default: wlc].")
@click.option("--fallback", metavar="NAME", help="The scheduler where one in Python fails [default: wlc].")
@click.option("--budget", type=int, metavar="MICROSECONDS", help="That one in Python may take [default: 1000].")
@click.option("--shadow", metavar="NAME", help="A scheduler to compare with the other, for no packet.")
@click.option(
    "--flag", "flags", multiple=True, metavar="FLAG", help="count-total, sh-fallback, sh-port and so on; repeats."
)
@click.option("--persistent", callback=seconds, metavar="TIME", help="5m, 2h: how long a client stays with its server.")
@click.option("--netmask", type=int, metavar="LENGTH", help="With it: clients of one prefix are one client.")
@click.option("--persistence-engine", metavar="NAME", help="With it: sip keeps calls together, not clients.")
@click.option(
    "--quiescent", metavar="keep|move", help="With it: at weight 0 its clients stay, or leave [default: keep]."
)
@click.option("--one-packet", is_flag=True, help="Each datagram is scheduled on its own.")
@click.option("--mss", type=int, metavar="BYTES", help="What a SYN may announce at most; 0: anything [default: 0].")
@click.option("--offload/--no-offload", default=None, help="The kernel may forward what is established [default: yes].")
@click.option(
    "--timeout", "timeouts", multiple=True, metavar="NAME=TIME", help="Of its own, as in [timeouts]; repeats."
)
@click.option("--connections-max", type=int, metavar="N", help="Connections that it may have; 0: any number.")
@click.option(
    "--slow-start", callback=seconds, metavar="TIME", help="30s, 2m: in which a server works up to its weight; 0: none."
)
@click.option("--maglev-size", type=int, metavar="PRIME", help="Places of mh's table, 251 to 655373 [4093].")
@click.option("--real", "reals", multiple=True, metavar="ADDR[:PORT][,weight=N]", help="A real server; repeats.")
@change_options
@click.pass_obj
def add(
    env: Env,
    vip: str,
    label: str | None,
    mode: str | None,
    scheduler: str | None,
    fallback: str | None,
    budget: int | None,
    shadow: str | None,
    flags: tuple[str, ...],
    persistent: int | None,
    netmask: int | None,
    persistence_engine: str | None,
    quiescent: str | None,
    one_packet: bool,
    mss: int | None,
    offload: bool | None,
    timeouts: tuple[str, ...],
    connections_max: int | None,
    slow_start: int | None,
    maglev_size: int | None,
    reals: tuple[str, ...],
    api: str | None,
    name: str | None,
) -> None:
    """Add a virtual service, with its real servers or without."""
    import msgspec

    from nfqlb.cli.values import own_timeouts, persistence, service

    more: dict[str, object] = {
        "persistence": persistence(persistent, netmask=netmask, engine=persistence_engine, quiescent=quiescent),
        "one_packet": one_packet,
    }
    more |= {"mss": mss, "name": label, "offload": offload, "fallback": fallback, "budget": budget, "shadow": shadow}
    more |= {"timeouts": own_timeouts(timeouts), "connections_max": connections_max, "slow_start": slow_start}
    more |= {"maglev_size": maglev_size}
    client(env, api, name).add_service(msgspec.to_builtins(service(vip, reals, mode, scheduler, flags, **more)))


@command.command("edit")
@click.argument("vip", shell_complete=known_vips)
@click.option("--label", metavar="NAME", help="The service's name, for people.")
@click.option("--mode", metavar="nat|dr|tun", help="How packets of new connections reach the real servers.")
@click.option("--scheduler", metavar="NAME", help="How connections are spread from now on; FILE.py: in Python.")
@click.option("--fallback", metavar="NAME", help="The scheduler where one in Python fails.")
@click.option("--budget", type=int, metavar="MICROSECONDS", help="That one in Python may take for a choice.")
@click.option("--shadow", metavar="NAME", help="A scheduler to compare with the other, for no packet; '': none.")
@click.option(
    "--flag", "flags", multiple=True, metavar="FLAG", help="All the flags that it is to have; repeats; '' for none."
)
@click.option(
    "--persistent", callback=seconds, metavar="TIME", help="5m, 2h: how long a client stays with its server; 0 ends it."
)
@click.option("--netmask", type=int, metavar="LENGTH", help="With it: clients of one prefix are one client.")
@click.option("--persistence-engine", metavar="NAME", help="With it: sip keeps calls together; '': clients.")
@click.option("--quiescent", metavar="keep|move", help="With it: at weight 0 its clients stay, or leave.")
@click.option("--one-packet/--no-one-packet", default=None, help="Each datagram is scheduled on its own.")
@click.option("--mss", type=int, metavar="BYTES", help="What a SYN may announce at most; 0: anything.")
@click.option("--offload/--no-offload", default=None, help="The kernel may forward what is established.")
@click.option(
    "--timeout", "timeouts", multiple=True, metavar="NAME=TIME", help="All that it is to have of its own; repeats."
)
@click.option("--connections-max", type=int, metavar="N", help="Connections that it may have; 0: any number.")
@click.option(
    "--slow-start", callback=seconds, metavar="TIME", help="30s, 2m: in which a server works up to its weight; 0: none."
)
@click.option("--maglev-size", type=int, metavar="PRIME", help="Places of mh's table, 251 to 655373 [4093].")
@change_options
@click.pass_obj
def edit(
    env: Env,
    vip: str,
    label: str | None,
    mode: str | None,
    scheduler: str | None,
    fallback: str | None,
    budget: int | None,
    shadow: str | None,
    flags: tuple[str, ...],
    persistent: int | None,
    netmask: int | None,
    persistence_engine: str | None,
    quiescent: str | None,
    one_packet: bool | None,
    mss: int | None,
    offload: bool | None,
    timeouts: tuple[str, ...],
    connections_max: int | None,
    slow_start: int | None,
    maglev_size: int | None,
    api: str | None,
    name: str | None,
) -> None:
    """Change how connections are spread; those that are there stay where they are."""
    import msgspec

    from nfqlb.cli.values import given, own_timeouts, persistence
    from nfqlb.model import parse_vip

    changed = given(
        scheduler=scheduler,
        fallback=fallback,
        budget=budget,
        shadow=shadow,
        flags=[flag for flag in flags if flag] if flags else None,
        persistent=persistent,
        netmask=netmask,
        persistence_engine=persistence_engine,
        quiescent=quiescent,
        one_packet=one_packet,
        mss=mss,
        offload=offload,
        mode=mode,
        label=label,
        timeouts=timeouts or None,
        connections_max=connections_max,
        slow_start=slow_start,
        maglev_size=maglev_size,
    )
    if "label" in changed:
        changed["name"] = changed.pop("label")
    if "timeouts" in changed:
        changed["timeouts"] = msgspec.to_builtins(own_timeouts(timeouts))
    director, key = client(env, api, name), str(parse_vip(vip))
    if asked := {field for field in ("persistent", "netmask", "persistence_engine", "quiescent") if field in changed}:
        before = director.service(key)["persistence"] if persistent != 0 else None
        changed = {field: value for field, value in changed.items() if field not in asked}
        changed["persistence"] = msgspec.to_builtins(
            persistence(persistent or None, before, netmask=netmask, engine=persistence_engine, quiescent=quiescent)
        )
    director.edit_service(key, changed)


@command.command("delete")
@click.argument("vip", shell_complete=known_vips)
@change_options
@click.pass_obj
def delete(env: Env, vip: str, api: str | None, name: str | None) -> None:
    """Delete a virtual service with its real servers."""
    from nfqlb.model import parse_vip

    client(env, api, name).delete_service(str(parse_vip(vip)))
