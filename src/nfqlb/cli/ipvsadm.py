"""`nfqlb ipvsadm`: what ipvsadm takes and prints, asked of a director instead of the kernel.

Strategy: config.ipvsadm reads the arguments and makes the lines; here are the requests in between. The director is that
of NFQLB_API or NFQLB_NAME, since every argument belongs to ipvsadm. Called by the name `ipvsadm`, nfqlb is this command
(nfqlb.cli.main).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from nfqlb.api.client import Client
from nfqlb.cli.env import Env, check_text, director_name, socket_path
from nfqlb.config import ipvsadm as language
from nfqlb.config.ipvsadm import Command, Fault, Names
from nfqlb.errors import ConfigError, ExistsError, NfqlbError, NotFoundError, UnreachableError

FAILED = 255  # what ipvsadm ends with where the kernel refuses
UNSUPPORTED = "{} is not supported by nfqlb"
USAGE = """Usage:
  ipvsadm -A|E virtual-service [-s scheduler] [-p [timeout]] [-M netmask] [--pe sip] [-b sched-flags] [-o]
  ipvsadm -D virtual-service
  ipvsadm -C
  ipvsadm -R
  ipvsadm -S [-n]
  ipvsadm -a|e virtual-service -r server-address [-g|-i|-m] [-w weight] [-x uthreshold] [-y lthreshold]
  ipvsadm -d virtual-service -r server-address
  ipvsadm -L|l [virtual-service] [-n] [-c] [--timeout] [--daemon] [--stats] [--rate] [--exact]
          [--thresholds] [--persistent-conn] [--tun-info] [--nosort] [--sort]
  ipvsadm -Z [virtual-service]
  ipvsadm --set tcp tcpfin udp
  ipvsadm --start-daemon master|backup [--mcast-interface device] [--syncid id] [--sync-maxlen length]
          [--mcast-group address] [--mcast-port port] [--mcast-ttl ttl]
  ipvsadm --stop-daemon master|backup
  ipvsadm -h | -v
virtual-service: -t|-u|--sctp-service host[:port] or -f fwmark [-6]
The director is that of NFQLB_API or NFQLB_NAME; gue and gre are not supported."""


@click.command("ipvsadm", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(env: Env, arguments: tuple[str, ...]) -> None:
    """Take the arguments of ipvsadm, answer as ipvsadm does."""
    sys.exit(main(arguments, env))


def main(arguments: Sequence[str], env: Env) -> int:
    """The exit code of ipvsadm for these arguments."""
    front = Front(Client(socket_path(env, None, director_name(env, None))))
    try:
        return front.run(arguments or ["-L"])
    except Fault as fault:
        return _say(str(fault), fault.code)
    except UnreachableError as error:
        return _say(f"Can't initialize ipvs: {error}", 2)
    except BrokenPipeError:  # whoever read this has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Front:
    def __init__(self, client: Client) -> None:
        self.client = client

    def run(self, arguments: Sequence[str]) -> int:
        return self.do(_parsed(arguments))

    def do(self, asked: Command) -> int:
        match asked.name:
            case "h" | "v":
                _print([language.VERSION] if asked.name == "v" else [language.VERSION, USAGE])
                return 0
            case "R":
                return self.restore()
            case "L":
                return self.list(asked)
            case "S":
                services = language.arranged(self.client.services()["services"])
                _print(language.saved(services, Names("numeric" in asked.given)))
                return 0
        try:
            self.change(asked)
        except UnreachableError:
            raise
        except NfqlbError as error:
            return _say(self.reason(asked, error), FAILED)
        return 0

    def restore(self) -> int:
        """Do each line of stdin, once all can be read; one that is refused keeps none of the others from being done."""
        code = 0
        for asked in [*_saved(sys.stdin)]:
            code = self.do(asked) or code
        return code

    def change(self, asked: Command) -> None:
        client, end = self.client, language.endpoint(asked.real, str(asked.real_port))
        match asked.name:
            case "A":
                client.add_service({**_where(asked), **_service(asked)})
            case "E":
                client.edit_service(asked.key, _service(asked))
            case "D":
                client.delete_service(asked.key)
            case "C":
                client.clear()
            case "a":
                client.add_real(asked.key, {"address": asked.real, "port": asked.real_port, **_real(asked)})
            case "e":
                client.edit_real(asked.key, end, _real(asked))
            case "d":
                client.delete_real(asked.key, end)
            case "Z":
                client.zero(asked.key if asked.address else "")
            case "set":
                now = client.services()["timeouts"]
                names = ("tcp", "tcp_fin", "udp")
                given = {name: new for name, new in zip(names, asked.timeouts, strict=True) if new}
                client.set_timeouts({**now, **given})
            case "stop-daemon":
                self.stop_daemon(asked.daemon)
            case _:
                self.start_daemon(asked)

    def start_daemon(self, asked: Command) -> None:
        """Both roles share what one of them was started with."""
        sync = self.client.config()["sync"]
        role = sync.get("role", "both") if sync else ""
        if sync and role in ("both", asked.daemon):
            raise Fault("Daemon has already run", FAILED)
        wanted = {**(sync or {}), **asked.sync}
        if sync and any(sync.get(name, value) != value for name, value in asked.sync.items()):
            raise Fault(UNSUPPORTED.format("a second sync daemon that is not like the first"), FAILED)
        self.client.set_sync({**wanted, "role": "both" if sync else asked.daemon})

    def stop_daemon(self, role: str) -> None:
        sync = self.client.config()["sync"]
        if not sync or sync.get("role", "both") not in ("both", role):
            raise Fault("No daemon is running", FAILED)
        if sync.get("role", "both") == "both":
            self.client.set_sync({**sync, "role": "backup" if role == "master" else "master"})
        else:
            self.client.stop_sync()

    def list(self, asked: Command) -> int:
        given, names = asked.given, Names("numeric" in asked.given)
        if "connection" in given:
            _print(language.connections(self.client.connections()["connections"], given, names))
            return 0
        if "daemon" in given:
            _print(language.daemons(self.client.sync()))
            return 0
        answer = self.client.services()
        if "timeout" in given:
            _print(["Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}".format(**answer["timeouts"])])
            return 0
        services = language.arranged(answer["services"], "nosort" in given)
        head = [language.HEAD]
        if asked.address:
            head, services = [], [service for service in services if service["key"] == asked.key]
            if not services:
                return _say("No such service", 1)
        counted = {}
        if given & {"stats", "rate"}:
            counted = {service["key"]: service for service in self.client.stats()["services"]}
        _print(head + language.listing(services, counted, given, names))
        return 0

    def reason(self, asked: Command, error: NfqlbError) -> str:
        """In the words of ipvsadm, where it has some."""
        if isinstance(error, ExistsError):
            return "Service already exists" if asked.name == "A" else "Destination already exists"
        if isinstance(error, NotFoundError):
            try:
                self.client.service(asked.key)
            except NotFoundError:
                return "No such service"
            return "No such destination"
        if isinstance(error, ConfigError) and error.field == "scheduler":
            return "Scheduler or persistence engine not found"
        return str(error)


def _parsed(arguments: Sequence[str]) -> Command:
    asked = language.parse(arguments)
    for word in arguments:
        try:
            check_text(word)
        except ConfigError as error:
            raise Fault(str(error)) from None
    return asked


def _saved(lines: Iterable[str]) -> Iterator[Command]:
    import shlex

    try:
        for number, line in enumerate(lines, 1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError as error:
                raise Fault(f"line {number} of what is to be restored: {error}") from None
            words = words[words[:1] == ["ipvsadm"] :]
            if words:
                asked = _parsed(words)
                if asked.name == "R":
                    raise Fault("a saved table cannot restore another one")
                yield asked
    except UnicodeDecodeError:
        raise Fault("what is to be restored is not UTF-8 text") from None


def _where(asked: Command) -> dict[str, object]:
    if asked.mark:
        return {"fwmark": asked.mark, "address": asked.address}
    return {"address": asked.address, "port": asked.port, "last": asked.last, "protocol": asked.protocol}


def _service(asked: Command) -> dict[str, object]:
    if asked.engine not in language.ENGINES:
        raise Fault("Scheduler or persistence engine not found", FAILED)
    persistence: dict[str, Any] | None = None
    if asked.persistence:
        persistence = {"timeout": asked.persistence, "netmask": language.prefix(asked), "engine": asked.engine}
    return {
        "scheduler": asked.scheduler,
        "flags": asked.flags,
        "persistence": persistence,
        "one_packet": asked.one_packet,
    }


def _real(asked: Command) -> Mapping[str, object]:
    if asked.tunnel != "ipip":
        raise Fault(UNSUPPORTED.format(f"tunnel type {asked.tunnel}"), FAILED)
    return {"weight": asked.weight, "upper": asked.upper, "lower": asked.lower, "mode": asked.mode}


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code
