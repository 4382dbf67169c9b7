"""`nfqlb doctor`: what is wrong around a director, and what to do; without one, whether this machine could run one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from nfqlb.cli.env import Env, director_name, director_options, socket_path

if TYPE_CHECKING:
    from nfqlb.api.client import Client
    from nfqlb.kernel.doctor import Finding, Served


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Do what can make nothing worse: sysctls of the network, offloads.")
@click.option("--json", "as_json", is_flag=True, help="JSON with stable keys.")
@director_options
@click.pass_context
def command(context: click.Context, fix: bool, as_json: bool, api: str | None, name: str | None) -> None:
    """Say what is wrong, and what to do; end with 1 if anything is and stays so.

    Run it as root where the director runs. It asks the wire who else has a VIP, and how long packets to real servers
    may be. Without a director it looks at the machine only.
    """
    import os

    from nfqlb.errors import MissingError
    from nfqlb.kernel.doctor import examine, take

    env: Env = context.obj
    if env.euid() != 0:
        raise MissingError("`nfqlb doctor` needs root: it asks the kernel and the wire; use sudo or a root shell")
    chosen = director_name(env, name)
    served = _served(socket_path(env, api, chosen), chosen, os.stat("/proc/self/ns/net").st_ino)
    findings = examine(served, take(served))
    results = [(finding, _fixed(finding) if fix else None) for finding in findings]
    if as_json:
        click.echo(json.dumps({"director": served.running, "findings": [_row(*one) for one in results]}, indent=2))
    else:
        for finding, failure in results:
            _tell(finding, failure, fix)
        if not findings:
            click.echo("nothing found" if served.running else f"no director {chosen} runs; the machine can run one")
    context.exit(1 if any(failure != "" for _, failure in results) else 0)


def _fixed(finding: Finding) -> str | None:
    """Repair it: nothing said is good, None where only the operator can."""
    from nfqlb.errors import NfqlbError

    if finding.repair is None:
        return None
    try:
        finding.repair()
    except (NfqlbError, OSError) as error:
        return str(error)
    return ""


def _row(finding: Finding, failure: str | None) -> dict[str, object]:
    told = {name: getattr(finding, name) for name in ("id", "severity", "sentence", "fix")}
    return {**told, "fixable": finding.repair is not None, "fixed": failure == "", "failure": failure or None}


def _tell(finding: Finding, failure: str | None, tried: bool) -> None:
    state = finding.severity if failure != "" else "fixed"
    colour = {"error": "red", "warning": "yellow", "fixed": "green"}[state]
    click.echo(f"{click.style(f'{state:<8}', fg=colour)}{finding.sentence}")
    click.echo(f"        {finding.fix}{'   (--fix does it)' if finding.repair and not tried else ''}")
    if failure:
        click.echo(f"        that failed: {failure}")


def _served(path: str, name: str, here: int) -> Served:
    from nfqlb.api.client import Client
    from nfqlb.errors import UnreachableError
    from nfqlb.kernel.doctor import Served
    from nfqlb.paths import paths

    try:
        return _asked(Client(path), here)
    except UnreachableError:
        return Served(running=False, name=name, left=paths(name).kernel.exists())


def _asked(client: Client, here: int) -> Served:
    import os

    from nfqlb.kernel.doctor import Queue, Served
    from nfqlb.kernel.queues import RECEIVE_BUFFER

    daemon, reasons = client.daemon(), client.reasons()["reasons"]
    counted = {service["key"]: service for service in client.stats()["services"]}
    services = tuple(_service(one, counted.get(one["key"], {})) for one in client.services()["services"])
    queues = tuple(
        Queue(one["number"], one["queue_dropped"] + one["user_dropped"], one.get("buffer", RECEIVE_BUFFER))
        for one in daemon["queues"]
    )
    there = os.stat(f"/proc/{daemon['pid']}/ns/net").st_ino if os.path.exists(f"/proc/{daemon['pid']}") else here
    return Served(
        running=True,
        name=daemon["name"],
        elsewhere=daemon["pid"] if there != here else 0,
        services=services,
        queues=queues,
        reasons=reasons,
        diverter=daemon["diverter"],
        firewall=daemon["firewall"],
        role=(daemon.get("ha") or {}).get("role", ""),
    )


def _service(view: dict[str, Any], counted: dict[str, Any]) -> Any:
    from nfqlb.kernel.doctor import Service

    counters = [counted.get(key, 0) for key in ("inpkts", "outpkts", "inbytes", "outbytes")]
    vip = "" if view["fwmark"] else view["address"]
    reals = tuple(real["address"] for real in view["reals"])
    serves = any(real["weight"] and real["health"] in ("", "up", "failing") for real in view["reals"])
    serves = serves or bool((view["quorum"] or {}).get("sorry"))
    return Service(view["key"], vip, view["fwmark"], view["mode"], reals, serves, *counters)
