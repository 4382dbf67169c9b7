"""`nfqlb run`: check everything that can be checked, then become the holder.

Strategy: arguments and file become one RunConfig, or a refusal, before anything is touched. The holder is another
program in the same process: its configuration waits in a memory file, and whatever this one has imported is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from nfqlb.cli.env import Env, director_name, director_options, seconds, socket_path
from nfqlb.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from nfqlb.model import Intent


@click.command("run")
@click.option("--mode", metavar="nat|dr|tun", help="How packets reach the real servers [default: nat].")
@click.option(
    "--vip",
    "vips",
    multiple=True,
    metavar="ADDR:PORT[-LAST][/tcp|/udp|/sctp]",
    help="A virtual service, or fwmark:N; repeats.",
)
@click.option(
    "--real", "reals", multiple=True, metavar="ADDR[:PORT][,weight=N]", help="A real server of every --vip; repeats."
)
@click.option("--scheduler", metavar="NAME", help="How connections are spread, as in IPVS [default: wlc].")
@click.option(
    "--persistent", callback=seconds, metavar="TIME", help="5m, 2h: how long a client stays with its real server."
)
@click.option(
    "--no-server", metavar="icmp|reset|drop", help="The answer where no real server takes connections [default: icmp]."
)
@click.option(
    "--no-connection",
    metavar="pass|reset|drop",
    help="The answer to mid-stream packets without a connection [default: pass].",
)
@click.option("--sloppy-tcp", is_flag=True, help="Mid-stream TCP may begin a connection.")
@click.option("--sloppy-sctp", is_flag=True, help="Mid-stream SCTP may begin a connection.")
@click.option("--workers", type=int, metavar="N", help="Threads that take packets [default: 1].")
@click.option("--vip-dev", metavar="IF", help="Add the VIPs to this device, and remove them at the end.")
@click.option("--queue", type=int, metavar="N", help="The first queue number [default: chosen from free ones].")
@click.option("--config", "file", metavar="FILE", help="Take services and settings from a TOML file.")
@click.option("--restore", is_flag=True, help="Go on with the services that a director of this name had.")
@click.option("--takeover", is_flag=True, help="Take over from the director of this name that runs, without a gap.")
@click.option("--engine", metavar="fast|reference", help="How packets are taken [default: fast].")
@click.option("--diverter", metavar="auto|nft|iptables", help="What brings packets to the queues [default: auto].")
@click.option(
    "--firewall", metavar="accept|leave", help="Accept what is forwarded, or leave that to you [default: accept]."
)
@click.option(
    "--dr-by",
    metavar="auto|frame|route",
    help="How dr sends packets: as frames, or by a mark that the kernel routes by [default: auto].",
)
@click.option("--dr-mask", metavar="BITS", help="The bits of such a mark [default: 0xff000000].")
@click.option(
    "--offload",
    metavar="auto|off",
    help="Whether the kernel may forward what is established by itself [default: off].",
)
@click.option(
    "--on-failure",
    metavar="drop|bypass",
    help="What becomes of packets that the director does not take: dropped, or past it [default: drop].",
)
@click.option("--connections", type=int, metavar="N", help="The most connections at a time [default: 262144].")
@click.option("--metrics", metavar="ADDR:PORT", help="Serve metrics for Prometheus there [default: not at all].")
@click.option("--notify", metavar="COMMAND", help="Run it when a real server or service goes down or comes back.")
@click.option("--webhook", metavar="URL", help="Post that there as JSON.")
@click.option("--webhook-token", metavar="FILE", help="The file with the token that the webhook wants.")
@click.option("--mail-to", metavar="ADDRESS[,ADDRESS]", help="Send that as mail.")
@click.option("--mail-from", metavar="ADDRESS", help="Whom mail comes from [default: nfqlb@HOSTNAME].")
@click.option("--smtp", metavar="NAME:PORT", help="The mail server [default: localhost:25].")
@click.option("--smtp-login", metavar="FILE", help="The file with USER:PASSWORD for it.")
@click.option("--log-format", metavar="console|json", help="How lines on stderr look [default: console].")
@click.option("--script-user", metavar="NAME", help="Whom scripts run as [default: nobody].")
@director_options
@click.pass_obj
def command(
    env: Env,
    /,
    vips: tuple[str, ...],
    reals: tuple[str, ...],
    mode: str | None,
    scheduler: str | None,
    persistent: int | None,
    no_server: str | None,
    no_connection: str | None,
    sloppy_tcp: bool,
    sloppy_sctp: bool,
    file: str | None,
    restore: bool,
    takeover: bool,
    api: str | None,
    name: str | None,
    dr_mask: str | None,
    **settings: str | int | None,
) -> None:
    """Run a director in the foreground, until SIGTERM or Ctrl-C.

    Without --vip, --config and --restore it starts with no services; add them by `nfqlb service` and `nfqlb real`.
    What is given here wins over the [director] section of the file.
    """
    import nfqlb.runconfig as runconfig

    answers = {"no_server": no_server, "no_connection": no_connection, "sloppy_tcp": sloppy_tcp or None}
    answers["sloppy_sctp"] = sloppy_sctp or None
    answers = {field: value for field, value in answers.items() if value is not None}
    _check_together(
        vips,
        {"real": ", ".join(reals), "mode": mode, "scheduler": scheduler, "persistent": persistent, **answers},
        file,
        restore,
    )
    director: dict[str, Any] = {}
    intent, origin = None, "saved state" if restore else "none"
    if vips:
        intent, origin = _intent(vips, reals, mode, scheduler, persistent, answers), "command line"
    elif file is not None:
        from nfqlb.config.file import read

        (director, intent), origin = read(file), os.path.abspath(file)
    director["name"] = director_name(env, name, director.get("name"))
    director["api"] = socket_path(env, api, director["name"], director.get("api"))
    director |= {key: value for key, value in settings.items() if value is not None}
    if dr_mask is not None:
        director["dr_mask"] = _bits(dr_mask)
    config = runconfig.RunConfig(**director, intent=intent, restore=restore, origin=origin)
    if env.euid() != 0:
        raise MissingError("`nfqlb run` needs root: it changes packet rules of the kernel; use sudo or a root shell")
    _become_holder(env, runconfig.encode(config), takeover)


def _bits(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError("--dr-mask", text, "is not a number", "write it like 0xff000000") from None


def _check_together(vips: Sequence[str], about_services: Mapping[str, object], file: str | None, restore: bool) -> None:
    """Options that contradict each other, or mean nothing alone."""
    services = " and ".join(["--vip"] * bool(vips) + ["--config"] * (file is not None) + ["--restore"] * restore)
    if vips and " and " in services:
        raise ConfigError("services", services, "are given together", "choose one place that the services come from")
    if not vips:
        for option, value in about_services.items():
            if value:
                raise ConfigError(
                    f"--{option.replace('_', '-')}", value, "belongs to a --vip", "add --vip ADDRESS:PORT"
                )


def _intent(
    vips: Sequence[str],
    reals: Sequence[str],
    mode: str | None,
    scheduler: str | None,
    persistent: int | None,
    answers: Mapping[str, Any],
) -> Intent:
    from nfqlb.cli.values import persistence, service
    from nfqlb.model import Answers, Intent

    sticky = persistence(persistent)
    services = tuple(service(vip, reals, mode, scheduler, persistence=sticky) for vip in vips)
    return Intent(services, answers=Answers(**answers))


def _become_holder(env: Env, config: bytes, takeover: bool) -> None:
    fd = os.memfd_create("nfqlb-config")
    os.write(fd, config)
    os.set_inheritable(fd, True)
    # -P: a file in the current folder must not become a module of a program that runs as root
    words = [*(["--takeover"] if takeover else []), "--config-fd", str(fd)]
    env.execv(sys.executable, [sys.executable, "-P", "-m", "nfqlb.holder", *words])
