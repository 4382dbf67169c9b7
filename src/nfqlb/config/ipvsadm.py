"""The language of ipvsadm 1.31: its arguments, its listings and what it saves, without a director.

Strategy: `parse` reads arguments as popt and ipvsadm.c do and ends in a Command or a Fault, which carries the words and
the exit code of the original. The rest makes lines of the answers of the API. LEGALITY is the original's table, one row
per command and one column per option: `+` needed, ` ` allowed, `1` one of these, `x` illegal. Host and service names
are asked for where ipvsadm asks. The standard library only, and little of it: scripts call this thousands of times.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

VERSION = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)"
HEAD = "IP Virtual Server version 1.2.1 (size=4096)"
TITLE = "Prot LocalAddress:Port"
REMOTE = "  -> RemoteAddress:Port"
TIMEOUT_MAX = 31 * 86400
INT_MAX = 2**31 - 1
MARK_MAX = 2**32 - 1
NUMBER = re.compile(r"[ \t]*[+-]?[0-9]{1,19}")  # of strtol, as far as it fits
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
SCHEDULER, PERSISTENCE, ENGINES = "wlc", 300, ("", "sip")
METHODS = {"g": "dr", "i": "tun", "m": "nat"}
LETTERS = {mode: letter for letter, mode in METHODS.items()}
WORDS = {"nat": "Masq", "dr": "Route", "tun": "Tunnel"}
FLAGS = {
    "sh-fallback": ("sh", 1),
    "sh-port": ("sh", 2),
    "mh-fallback": ("mh", 1),
    "mh-port": ("mh", 2),
    "hrw-port": ("hrw", 2),
    "count-total": ("", 1),
    "flag-1": ("", 1),
    "flag-2": ("", 2),
    "flag-3": ("", 3),
}

COMMANDS = {
    "A": "add-service",
    "E": "edit-service",
    "D": "delete-service",
    "C": "flush",
    "L": "list",
    "a": "add-server",
    "d": "delete-server",
    "e": "edit-server",
    "set": "timeout",
    "start-daemon": "start-daemon",
    "stop-daemon": "stop-daemon",
    "R": "restore",
    "S": "save",
    "Z": "zero",
}
OPTIONS = (
    *("numeric", "connection", "service-address", "scheduler", "persistent", "netmask", "real-server"),
    *("forwarding-method", "weight", "u-threshold", "l-threshold", "mcast-interface", "timeout", "daemon", "stats"),
    *("rate", "thresholds", "persistent-conn", "nosort", "syncid", "exact", "ops", "pe", "sched-flags", "mcast-group"),
    *("mcast-port", "mcast-ttl", "sync-maxlen", "tun-info", "tun-type", "tun-port", "tun-nocsum", "tun-csum"),
    "tun-remcsum",
)
LEGALITY = {
    "A": "xx+   xxxxxxxxxxxxxxx   xxxxxxxxxx",
    "E": "xx+   xxxxxxxxxxxxxxx   xxxxxxxxxx",
    "D": "xx+xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "C": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "L": " 11xxxxxxxxx11       xxxxxxx xxxxx",
    "a": "xx+xxx+    xxxxxxxxxxxxxxxxxx     ",
    "d": "xx+xxx+xxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "e": "xx+xxx+    xxxxxxxxxxxxxxxxxx     ",
    "set": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "start-daemon": "xxxxxxxxxxx xxxxxxx xxxx    xxxxxx",
    "stop-daemon": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "R": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "S": " xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "Z": "xx xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
}
# What an option is called in full, by its letter; some have no letter. All that take a value are in VALUED.
LONG = {
    "add-service": "A",
    "edit-service": "E",
    "delete-service": "D",
    "clear": "C",
    "list": "L",
    "zero": "Z",
    "add-server": "a",
    "edit-server": "e",
    "delete-server": "d",
    "help": "h",
    "version": "v",
    "restore": "R",
    "save": "S",
    "tcp-service": "t",
    "udp-service": "u",
    "fwmark-service": "f",
    "scheduler": "s",
    "persistent": "p",
    "netmask": "M",
    "real-server": "r",
    "masquerading": "m",
    "ipip": "i",
    "gatewaying": "g",
    "weight": "w",
    "u-threshold": "x",
    "l-threshold": "y",
    "numeric": "n",
    "connection": "c",
    "ipv6": "6",
    "ops": "o",
    "sched-flags": "b",
}
PLAIN = (
    *("set", "timeout", "daemon", "stats", "rate", "thresholds", "persistent-conn", "nosort", "sort", "exact"),
    *("tun-info", "tun-nocsum", "tun-csum", "tun-remcsum"),
)
LONG_VALUED = (
    *("start-daemon", "stop-daemon", "sctp-service", "mcast-interface", "syncid", "pe", "mcast-group", "mcast-port"),
    *("mcast-ttl", "sync-maxlen", "tun-type", "tun-port"),
)
VALUED = {*LONG_VALUED, *"tufsMrwxyb"}
NAMES = {letter: name for name, letter in LONG.items()} | {
    **dict.fromkeys(("t", "u", "f", "sctp-service"), "service-address"),
    **dict.fromkeys("gim", "forwarding-method"),
}

Answer = Mapping[str, Any]


class Fault(Exception):
    """What ipvsadm says on stderr, and its exit code."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


class Command:
    """One command line. `key` names the service as the API does; `port` is 0 where none was given."""

    def __init__(self) -> None:
        self.name = ""
        self.given: set[str] = set()
        self.daemon = ""
        self.protocol, self.address, self.port, self.last, self.mark = "", "", 0, 0, 0
        self.scheduler, self.persistence, self.netmask = SCHEDULER, 0, ""
        self.flags: tuple[str, ...] = ()
        self.one_packet, self.engine = False, ""
        self.real, self.real_port = "", 0
        self.mode, self.weight, self.upper, self.lower = "dr", 1, 0, 0
        self.tunnel = "ipip"
        self.timeouts = (0, 0, 0)
        self.sync: dict[str, str | int] = {}  # fields of model.Sync that were given

    @property
    def family(self) -> int:
        return 6 if ":" in self.address else 4

    @property
    def wide(self) -> bool:
        return not self.port or bool(self.last)

    @property
    def key(self) -> str:
        if self.mark:
            return f"fwmark:{self.mark}" + ("/ipv6" if self.family == 6 else "")
        last = f"-{self.last}" if self.last else ""
        return f"{endpoint(self.address, str(self.port))}{last}/{self.protocol}"


def endpoint(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def daemons(sync: Mapping[str, Any] | None) -> list[str]:
    """What -L --daemon says of what `nfqlb sync status --json` has."""
    if not sync:
        return []
    about = "mcast={interface}, syncid={id}, maxlen={maxlen}, group={group}, port={port}, ttl={ttl}".format(**sync)
    roles = ("master", "backup") if sync["role"] == "both" else (sync["role"],)
    return [f"{role} sync daemon ({about})" for role in roles]


# --- arguments --------------------------------------------------------------------------------------------------------


def parse(args: Sequence[str], program: str = "ipvsadm") -> Command:
    """Fault, with the words of the original, if that would not take them."""
    command, rest = Command(), list(args)
    hint = f"Try `{program} -h' or '{program} --help' for more information."
    loose: list[str] = []
    options = _options(rest, loose)
    try:
        name, value = next(options, ("", ""))
    except Fault:
        raise Fault(hint, 255) from None
    name = "L" if name == "l" else name
    if name not in COMMANDS and name not in ("h", "v"):
        raise Fault(hint, 255)
    command.name = name
    if name in ("h", "v"):
        return command
    if name in ("start-daemon", "stop-daemon"):
        command.daemon = value
        if value not in ("master", "backup"):
            parameter = "start-daemon parameter" if name == "start-daemon" else "start_daemon"
            raise Fault(f"illegal {parameter} specified")
    for option, value in options:
        _take(command, option, value)
    if name == "set":
        if len(loose) < 3:
            raise Fault("--set option requires 3 timeout values")
        command.timeouts = (_timeout(loose[0], 0), _timeout(loose[1], 0), _timeout(loose[2], 0))
        del loose[:3]
    if loose:
        raise Fault(f"unexpected argument {loose[0]}")
    _check(command)
    return command


def _options(rest: list[str], loose: list[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, as popt reads them; what is none goes to `loose`."""
    while rest:
        word = rest.pop(0)
        if word == "--":
            loose += rest
            return
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = LONG.get(name, name)
            if name not in LONG and name not in PLAIN and name not in LONG_VALUED:
                raise Fault(f"{word}: unknown option", 255)
            yield option, _value(option, word, value if equals else None, rest)
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in NAMES and letter != "l":
                    raise Fault(f"-{letter}: unknown option", 255)
                if letter in VALUED or letter == "p":
                    yield letter, _value(letter, f"-{letter}", letters.removeprefix("=") or None, rest)
                    break
                yield letter, ""
        else:
            loose.append(word)


def _value(option: str, word: str, value: str | None, rest: list[str]) -> str:
    if value is not None:
        return value
    if option == "p":
        return rest.pop(0) if rest and not rest[0].startswith("-") else ""
    if option not in VALUED:
        return ""
    if not rest:
        raise Fault(f"{word}: missing argument", 255)
    return rest.pop(0)


def _take(command: Command, option: str, value: str) -> None:
    name = NAMES.get(option, option)
    if option in COMMANDS or option in ("h", "v", "l"):
        raise Fault(f"invalid option `{'-' if len(option) == 1 else '--'}{option}'")
    if option == "6":
        if "service-address" in command.given:
            if not command.mark:
                return
            command.address = "::"
            return
        raise Fault("-6 used before -f")
    if name in OPTIONS:
        if name in command.given:
            raise Fault(f"multiple '{name}' options specified")
        command.given.add(name)
    match option:
        case "t" | "u" | "sctp-service":
            command.protocol = {"t": "tcp", "u": "udp"}.get(option, "sctp")
            command.address, port = _host(value, "illegal virtual server address[:port] specified")
            first, dash, last = (port or "0").partition("-")
            command.port = _port(first, command.protocol, "illegal virtual server address[:port] specified")
            command.last = _within(last, 1, 65535, "illegal virtual server address[:port] specified") if dash else 0
        case "f":
            command.mark = _within(value, 1, MARK_MAX, f"invalid fwmark value `{value}' specified")
            command.protocol, command.address = "any", "0.0.0.0"
        case "s":
            command.scheduler = value
        case "p":
            command.persistence = _timeout(value, 1) if value else PERSISTENCE
        case "M":
            command.netmask = value
        case "o":
            command.one_packet = True
        case "pe":
            command.engine = value
        case "b":
            command.flags = tuple(value.split(","))
        case "r":
            fault = "illegal real server address[:port] specified"
            command.real, port = _host(value, fault)
            command.real_port = _port(port, command.protocol, fault) if port else command.port
        case "g" | "i" | "m":
            command.mode = METHODS[option]
        case "w":
            command.weight = _within(value, 0, 65535, "illegal weight specified")
        case "x":
            command.upper = _within(value, 0, INT_MAX, "illegal u_threshold specified")
        case "y":
            command.lower = _within(value, 0, INT_MAX, "illegal l_threshold specified")
        case "tun-type":
            if value not in ("ipip", "gue", "gre"):
                raise Fault("illegal tunnel type specified")
            command.tunnel = value
        case "syncid":
            command.sync["id"] = _within(value, 0, 255, "illegal syncid specified")
        case "sync-maxlen":
            command.sync["maxlen"] = _within(value, 1, 65535 - 28, "illegal sync-maxlen specified")
        case "mcast-interface":
            command.sync["interface"] = value
        case "mcast-group":
            command.sync["group"] = value
        case "mcast-port":
            command.sync["port"] = _within(value, 1, 65535, "illegal mcast-port specified")
        case "mcast-ttl":
            command.sync["ttl"] = _within(value, 1, 255, "illegal mcast-ttl specified")


def _check(command: Command) -> None:
    """What ipvsadm refuses before it asks the kernel."""
    row, name = LEGALITY[command.name], COMMANDS[command.name]
    one = ""
    for rule, option in zip(row, OPTIONS, strict=True):
        if option not in command.given:
            if rule == "+":
                raise Fault(f"You need to supply the '{option}' option for the '{name}' command")
        elif rule == "x":
            raise Fault(f"Illegal '{option}' option with the '{name}' command")
        elif rule == "1" and one:
            raise Fault(f"The option '{option}' conflicts with the '{one}' option in the '{name}' command")
        elif rule == "1":
            one = option
    if command.name in "AE":
        if not command.mark and not command.port and not command.persistence:
            raise Fault("Zero port specified for non-persistent service")
        if command.one_packet and command.protocol in ("tcp", "sctp"):
            raise Fault("One-Packet Scheduling is only for UDP virtual services")
        command.flags = tuple(_flag(command.scheduler, flag) for flag in command.flags)
    if command.name in "ae":
        if command.mode != "nat":
            command.real_port = 0 if command.wide else command.port
        if (":" in command.real) != (command.family == 6) and command.mode != "tun":
            raise Fault("Different address family is allowed only for tunneling servers")
        if "tun-type" in command.given and command.mode != "tun":
            raise Fault("Tunnel options conflict with forward method")
    if command.name == "L":
        special = command.given & {"connection", "timeout", "daemon"}
        if special and command.given & {"stats", "rate", "thresholds"}:
            raise Fault("options conflicts in the list command")


def _flag(scheduler: str, flag: str) -> str:
    """The flag by its proper name; flag-1 and flag-2 are those of the scheduler."""
    if flag not in FLAGS:
        raise Fault(f"invalid scheduler flag `{flag}'")
    owner, number = FLAGS[flag]
    if owner and owner != scheduler:
        raise Fault(f"incompatible scheduler flag `{flag}'")
    return next((name for name, known in FLAGS.items() if known == (scheduler, number)), flag)


def _host(text: str, fault: str) -> tuple[str, str]:
    """The address, and what stands for the port."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise Fault(fault)
        family, port = socket.AF_INET6, port[1:]
    else:
        family = socket.AF_INET
        host, _, port = text.partition(":")
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, host)), port
    except (OSError, ValueError):
        pass
    try:
        return str(socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)[0][4][0]), port
    except (OSError, UnicodeError):
        raise Fault(fault) from None


def _port(text: str, protocol: str, fault: str) -> int:
    if NUMBER.fullmatch(text):
        return _within(text, 0, 65535, fault)
    try:
        return socket.getservbyname(text, protocol)
    except (OSError, UnicodeError):
        raise Fault(fault) from None


def _within(text: str, low: int, high: int, fault: str) -> int:
    if not NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise Fault(fault)
    return int(text)


def _timeout(text: str, low: int) -> int:
    return _within(text, low, TIMEOUT_MAX, f"invalid timeout value `{text}' specified")


def prefix(command: Command) -> int | None:
    """The length of the persistence prefix; None for the whole address."""
    if not command.netmask:
        return None
    if command.family == 6:
        ones = _within(command.netmask, 1, 128, "illegal ipv6 netmask specified")
        return ones if ones < 128 else None
    fault = "illegal virtual server persistent mask specified"
    try:
        mask = int.from_bytes(socket.inet_aton(command.netmask))
    except (OSError, UnicodeError):
        raise Fault(fault) from None
    ones = mask.bit_count()
    if not ones or mask != (2**ones - 1) << (32 - ones):
        raise Fault(fault)
    return ones if ones < 32 else None


# --- listings ---------------------------------------------------------------------------------------------------------


class Names:
    """Addresses and ports as they are listed: numbers, or the names that the system knows for them."""

    def __init__(self, numeric: bool) -> None:
        self.numeric = numeric

    def __call__(self, address: str, port: int, protocol: str, last: int = 0) -> str:
        span = f"-{last}" if last else ""
        if self.numeric:
            return endpoint(address, f"{port}{span}")
        try:
            host = socket.gethostbyaddr(address)[0]
        except OSError:
            host = address
        try:
            service = socket.getservbyport(port, protocol) if protocol in PROTOCOLS and not last else f"{port}{span}"
        except OSError:
            service = str(port)
        return endpoint(address, service) if host == address else f"{host}:{service}"[: None if ":" in address else 28]


def arranged(services: Iterable[Answer], nosort: bool = False) -> list[Answer]:
    """In the order of ipvsadm; unsorted, the last real server comes first, as in the kernel."""
    if nosort:
        return [{**service, "reals": service["reals"][::-1]} for service in services]
    ordered = sorted(
        services,
        key=lambda one: (
            *(one["fwmark"], ":" in one["address"], PROTOCOLS.get(one["protocol"], 0)),
            *(_packed(one["address"]), one["port"]),
        ),
    )
    return [
        {**one, "reals": sorted(one["reals"], key=lambda real: (_packed(real["address"]), real["port"]))}
        for one in ordered
    ]


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def listing(services: Iterable[Answer], counted: Mapping[str, Answer], given: set[str], names: Names) -> list[str]:
    """The table that `given` asks for; `counted` holds the answer about counters, by service key, for some of them."""
    for option, columns in COUNTERS.items():
        if option in given:
            return _counters(services, counted, option, columns, names, "exact" in given)
    form: str
    fields: tuple[str, ...]
    if "thresholds" in given:
        title = f"{TITLE:<33} Uthreshold Lthreshold ActiveConn InActConn \n{REMOTE}"
        form, fields = "%-10u %-10u %-10u %-10u", ("upper", "lower", "active", "inactive")
    elif "persistent-conn" in given:
        title = f"{TITLE:<33} Weight    PersistConn ActiveConn InActConn \n{REMOTE}"
        form, fields = "%-9u %-11u %-10u %-10u", ("weight", "persistent", "active", "inactive")
    elif "tun-info" in given:
        title = f"{TITLE} Scheduler Flags\n{REMOTE}           Forward TunnelInfo    Weight ActiveConn InActConn"
        form, fields = "%-7s %-13s %-6d %-10u %-10u", ("forward", "tunnel", "weight", "active", "inactive")
    else:
        title = f"{TITLE} Scheduler Flags\n{REMOTE}           Forward Weight ActiveConn InActConn"
        form, fields = "%-7s %-6d %-10u %-10u", ("forward", "weight", "active", "inactive")
    lines = title.split("\n")
    for service in services:
        lines.append(f"{_virtual(service, names)} {service['scheduler']}{_words(service)}")
        for real in service["reals"]:
            tunnel = "ipip" if real["mode"] == "tun" else "n/a"
            cells = {**real, "forward": WORDS[real["mode"]], "tunnel": tunnel}
            lines.append(f"{_remote(service, real, names)} {form % tuple(cells[field] for field in fields)}")
    return lines


COUNTERS = {
    "stats": {"conns": "Conns", "inpkts": "InPkts", "outpkts": "OutPkts", "inbytes": "InBytes", "outbytes": "OutBytes"},
    "rate": {"cps": "CPS", "inpps": "InPPS", "outpps": "OutPPS", "inbps": "InBPS", "outbps": "OutBPS"},
}


def _counters(
    services: Iterable[Answer],
    counted: Mapping[str, Answer],
    option: str,
    columns: Mapping[str, str],
    names: Names,
    exact: bool,
) -> list[str]:
    lines = [f"{TITLE:<33}" + "".join(f" {column:>8}" for column in columns.values()), REMOTE]
    none = dict.fromkeys(columns, 0)
    for service in services:
        values = counted.get(service["key"], {**none, "reals": ()})
        reals = {real["endpoint"]: real for real in values["reals"]}
        lines.append(f"{_virtual(service, names):<33}" + "".join(scaled(values[key], exact) for key in columns))
        for real in service["reals"]:
            cells = [reals.get(real["endpoint"], none)[key] for key in columns]
            plain = 3 if option == "rate" else 0
            texts = [f" {cell:8}" for cell in cells[:plain]] + [scaled(cell, exact) for cell in cells[plain:]]
            lines.append(_remote(service, real, names) + "".join(texts))
    return lines


def scaled(number: int, exact: bool = False) -> str:
    """Nine characters, in thousands, millions and so on where there are more digits; all of them if `exact`."""
    if exact:
        return f" {number:8}"
    for limit, unit, letter in ((10**8, 1, ""), (10**9, 10**3, "K"), (10**11, 10**6, "M"), (10**14, 10**9, "G")):
        if number < limit:
            return f"{number // unit}{letter}".rjust(9)
    return f"{number // 10**12}T".rjust(9)


def _virtual(service: Answer, names: Names) -> str:
    if service["fwmark"]:
        return f"FWM  {service['fwmark']}" + (" IPv6" if ":" in service["address"] else "")
    where = names(service["address"], service["port"], service["protocol"], service["last"])
    return f"{service['protocol'].upper():<4} {where}"


def _remote(service: Answer, real: Answer, names: Names) -> str:
    return f"  -> {names(real['address'], real['port'], service['protocol']):<28}"


def _words(service: Answer) -> str:
    words = f" ({','.join(service['flags'])})" if service["flags"] else ""
    if persistence := service["persistence"]:
        words += f" persistent {persistence.get('timeout', PERSISTENCE)}"
        if mask := _mask(service):
            words += f" mask {mask}"
        if engine := persistence.get("engine"):
            words += f" pe {engine}"
    return words + (" ops" if service["one_packet"] else "")


def _mask(service: Answer) -> str:
    ones = service["persistence"].get("netmask")
    if not ones or ones == (128 if ":" in service["address"] else 32):
        return ""
    return str(ones) if ":" in service["address"] else socket.inet_ntoa(((2**ones - 1) << (32 - ones)).to_bytes(4))


def connections(rows: Iterable[Answer], given: set[str], names: Names) -> list[str]:
    title = f"pro expire {'state':<11} {'source':<18} {'virtual':<18} "
    engine = "persistent-conn" in given
    lines = [
        "IPVS connection entries",
        title + (f"{'destination':<18} {'pe name':<16} pe_data" if engine else "destination"),
    ]
    for row in rows:
        ends = [_end(row[field], row["protocol"], names) for field in ("client", "virtual", "destination")]
        minutes, seconds = divmod(row["expires"], 60)
        expire = f"{minutes:02}:{seconds:02}"
        client, virtual, destination = ends
        lines.append(
            f"{row['protocol'].upper():<3} {expire:<6} {row['state']:<11} {client:<18} {virtual:<18} {destination}"
        )
    return lines


def _end(text: str, protocol: str, names: Names) -> str:
    host, _, port = text.rpartition(":")
    return text if names.numeric else names(host.strip("[]"), int(port), protocol)


def saved(services: Iterable[Answer], names: Names) -> list[str]:
    """The commands that make these services; thresholds too, which the original forgets."""
    lines = []
    for service in services:
        letter = {"tcp": "-t", "udp": "-u"}.get(service["protocol"], "--sctp-service")
        if service["fwmark"]:
            where = f"-f {service['fwmark']}" + (" -6" if ":" in service["address"] else "")
        else:
            where = f"{letter} {names(service['address'], service['port'], service['protocol'], service['last'])}"
        text = f"-A {where} -s {service['scheduler']}"
        if persistence := service["persistence"]:
            text += f" -p {persistence.get('timeout', PERSISTENCE)}"
            text += f" -M {mask}" if (mask := _mask(service)) else ""
            text += f" --pe {engine}" if (engine := persistence.get("engine")) else ""
        text += " -o" if service["one_packet"] else ""
        if service["flags"] and not service["scheduler"].endswith(".py"):  # its fallback's, which has no option
            text += f" -b {','.join(service['flags'])}"
        lines.append(text)
        for real in service["reals"]:
            end = names(real["address"], real["port"], service["protocol"])
            text = f"-a {where} -r {end} -{LETTERS[real['mode']]} -w {real['weight']}"
            text += " --tun-type ipip" if real["mode"] == "tun" else ""
            text += f" -x {real['upper']} -y {real['lower']}" if real["upper"] else ""
            lines.append(text)
    return lines
