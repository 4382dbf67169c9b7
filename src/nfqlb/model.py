"""What an operator asks for, as frozen values.

Strategy: text comes in at the edges (command line, file, API) and becomes these values there, once; everything
behind them trusts what it gets. A value that cannot be right cannot be built: the constructors raise ConfigError
with the field, the value and the fix. Addresses are text in canonical form (RFC 5952 for IPv6), ports are host
order, times are whole seconds. No I/O, no clock.

Real servers stand in the order in which they were added. Schedulers walk them the other way round, newest first,
as the kernel does (net/netfilter/ipvs/ip_vs_ctl.c, __ip_vs_update_dest); compile turns the order, nobody else.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
import shlex
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from nfqlb.errors import ConfigError, meant

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
ANY_PROTOCOL = "any"  # of a service by firewall mark
ANY_ADDRESS = {4: "0.0.0.0", 6: "::"}  # likewise: only the family counts
MODES = ("nat", "dr", "tun")
IPVS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos")
SCHEDULERS = (*IPVS, "p2c", "ewma", "hrw")
FLAGS = {  # by scheduler
    **dict.fromkeys(("lc", "wlc", "lblc", "lblcr", "twos"), ("count-total",)),
    "sh": ("sh-fallback", "sh-port"),
    "mh": ("mh-fallback", "mh-port"),
    "hrw": ("hrw-port",),
}
HASHES = ("dh", "sh", "mh", "hrw")  # choose by a hash of an address
HASH_KEY = 32  # hexadecimal digits
SUDDEN = ("rr", "lc", "dh", "sh", "mh")  # pass over weights, or would move clients with each step of a ramp
SLOW_START_MAX = 86400  # seconds
MAGLEV_MIN, MAGLEV_SIZE, MAGLEV_MAX = 251, 4093, 655373  # primes: the kernel's smallest, its default, Google's largest
SCRIPT = ".py"  # how the name of a scheduler in Python ends
BUDGET_MAX = 1_000_000  # microseconds
NO_SERVER = ("icmp", "reset", "drop")
NO_CONNECTION = ("pass", "reset", "drop")
WEIGHT_MAX = 2**31 - 1
NAME_MAX = 15
LABEL_MAX = 200
TIMEOUT_MAX = 2**31 // 1000  # seconds
QUIESCENT = ("keep", "move")
PERSISTENCE_ENGINES = ("sip",)  # of persistence
PORT_MAX = 65535
REAL_OPTIONS = ("weight", "upper", "lower", "mode", "agent_port")
MARK_MAX = 2**32 - 1
THRESHOLD_MAX = 2**32 - 1
PLACES_MAX = 2**32 - 1
DROPRATE_MAX = 2**31 - 1
HTTP = ("http", "https")
DIALOGUES = ("smtp", "imap", "ftp")  # where the server speaks first
ASKED = ("tcp", *HTTP, "udp", "dns", *DIALOGUES, "ping")  # over the network
CHECKS = (*ASKED, "script", "file", "agent")
CHECK_FIELDS = {  # what means something to some types only
    "port": (*(one for one in ASKED if one != "ping"), "agent"),
    "source": (*ASKED, "agent"),
    "through": ("tcp", "ping"),
    "path": HTTP,
    "host": (*HTTP, "tcp", *DIALOGUES),
    "status": HTTP,
    "headers": HTTP,
    "version": HTTP,
    "digest": HTTP,
    "tls": ("tcp", *DIALOGUES),
    "verify": ("https", "tcp", *DIALOGUES),
    "sni": ("https", "tcp", *DIALOGUES),
    "ca": ("https", "tcp", *DIALOGUES),
    "cert": ("https", "tcp", *DIALOGUES),
    "key": ("https", "tcp", *DIALOGUES),
    "send": ("tcp", "udp", "agent"),
    "payload": ("tcp", "udp"),
    "expect": ("tcp", "udp", *HTTP, "dns", *DIALOGUES),
    "query": ("dns",),
    "record": ("dns",),
    "script": ("script",),
    "exit": ("script",),
    "file": ("file",),
    "factor": ("file",),
}
TLS = ("off", "on", "start")
HTTP_VERSIONS = ("1.0", "1.1", "2")
EXITS = ("plain", "weight", "nagios")
REQUIRE = ("all", "any")
THROUGH = ("server", "vip")
ON_DOWN = ("remove", "keep", "reset", "move", "quiesce")
HOLD_MAX = 86400.0  # seconds
ANNOUNCE = ("always", "quorum")
STATUSES = re.compile(r"[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?)*", re.ASCII)
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\x20-\x7e]*", re.ASCII)  # RFC 9110, 5.1
HOST_MAX = 255
HOST = re.compile(rf"[!-~]{{0,{HOST_MAX}}}")
DNS_LABEL, DNS_NAME_MAX = re.compile(r"[!-\[\]-~]{1,63}", re.ASCII), 253  # RFC 1035, 2.3.4; no escapes
RECORD = re.compile(r"[A-Z][A-Z0-9-]{0,15}", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}", re.ASCII)  # MD5 as keepalived has it, SHA-256
CHECK_SECONDS = 0.01, 86400.0
MSS_MIN, MSS_MAX = 536, 65495  # what every host takes (RFC 9293, 3.7.1), and what the longest IPv4 packet holds
TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)")
TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
TIME_DIGITS = 10  # three centuries
NUMBER, DIGITS_MAX = re.compile(r"-?[0-9]+"), 20
OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# what IPv4 servers have, canonical as it is: ipaddress takes ten times as long, and files have many
UNICAST = re.compile(rf"(?:[1-9]|[1-9]\d|1\d\d|2[01]\d|22[0-3])(?:\.{OCTET}){{3}}", re.ASCII)


SYNC_ROLES = ("both", "master", "backup")
SYNC_GROUP, SYNC_PORT = "224.0.0.81", 8848  # net/netfilter/ipvs/ip_vs_sync.c
SYNC_LEAST = 480  # bytes of a message: the longest record, and a seal
SYNC_RANGES = (
    ("id", 0, 255),
    ("version", 0, 1),
    ("port", 1, 65535),
    ("ttl", 1, 255),
    ("threshold", 0, 1_000_000),
    ("period", 0, 1_000_000),
    ("refresh_period", 0, 86400),
    ("retries", 0, 3),
)


def parse_time(field: str, text: str, fix: str = "write 2, 1.5s, 500ms or 5m") -> float:
    """Seconds, which need not be whole."""
    found = TIME.fullmatch(text)
    if not found:
        raise ConfigError(field, text, "is not a time", fix)
    if len(found[1]) > TIME_DIGITS:
        raise ConfigError(field, text, "is too long", f"use at most {TIME_DIGITS} digits")
    return float(found[1]) / 1000 if found[2] == "ms" else float(found[1]) * TIME_UNITS[found[2]]


def parse_seconds(field: str, text: str) -> int:
    """A whole number of them."""
    fix = "write 90, 90s, 5m, 2h or 1d"
    seconds = round(parse_time(field, text, fix), 6)
    if seconds % 1:
        raise ConfigError(field, text, "is not a time", fix)
    return int(seconds)


def check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(field, value, "out of range", f"use {low} to {high}")


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(field, value, "is not known", f"{meant(value, choices)}choose from {', '.join(choices)}")


def check_scheduler(field: str, value: str) -> None:
    """A built-in one, or a file in Python by name or path."""
    if not is_script(value):
        check_choice(field, value, SCHEDULERS)
    elif value == SCRIPT or any(c.isspace() for c in value) or ("/" in value and not value.startswith("/")):
        raise ConfigError(field, value, "is no name of a file", "write NAME.py, or its whole path from / on")


def check_prime(field: str, value: int, low: int, high: int) -> None:
    check_range(field, value, low, high)
    if not is_prime(value):
        below = next(number for number in range(value, low - 1, -1) if is_prime(number))
        above = next(number for number in range(value, high + 1) if is_prime(number))
        raise ConfigError(field, value, "is no prime", f"the next ones are {below} and {above}")


def is_prime(value: int) -> bool:
    return value > 1 and all(value % at for at in range(2, math.isqrt(value) + 1))


def is_script(scheduler: str) -> bool:
    return scheduler.endswith(SCRIPT)


def check_mss(field: str, value: int) -> None:
    """0 leaves the segment size as it is."""
    if value and not MSS_MIN <= value <= MSS_MAX:
        raise ConfigError(field, value, "out of range", f"use {MSS_MIN} to {MSS_MAX} bytes, or 0 for any")


class Key(NamedTuple):
    """The identity of a virtual service: what a packet must carry to belong to it.

    `last` ends a range of ports that `port` begins, 0 where there is one port only; port 0 is every port. With `mark`
    the packet's netfilter mark decides, and of the address only the family counts.
    """

    protocol: str
    address: str
    port: int
    last: int = 0
    mark: int = 0

    @property
    def ports(self) -> tuple[int, int]:
        """The first and the last port."""
        return (self.port, self.last or self.port) if self.port else (0, PORT_MAX)

    @property
    def wide(self) -> bool:
        """Whether it has more than one port."""
        return not self.port or bool(self.last)

    def __str__(self) -> str:
        if self.mark:
            return f"fwmark:{self.mark}" + ("/ipv6" if family(self.address) == 6 else "")
        last = f"-{self.last}" if self.last else ""
        return f"{endpoint(self.address, self.port)}{last}/{self.protocol}"


class Persistence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A client stays with its real server until `timeout` seconds after its last connection began, whatever the
    server's weight; with `quiescent` "move" it leaves one of weight 0. `netmask` is the length of the prefix that makes
    clients one (None: the whole address). With `engine` "sip" each call is on its own: UDP datagrams of one client with
    the same Call-ID stay together, and a first one without it is dropped (ip_vs_pe_sip.c).
    """

    timeout: int = 300
    netmask: int | None = None
    quiescent: str = "keep"
    engine: str = ""

    def __post_init__(self) -> None:
        check_range("persistence timeout", self.timeout, 1, TIMEOUT_MAX)
        if self.netmask is not None:
            check_range("persistence netmask", self.netmask, 1, 128)
        check_choice("persistence quiescent", self.quiescent, QUIESCENT)
        if self.engine:
            check_choice("persistence engine", self.engine, PERSISTENCE_ENGINES)


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One question to a real server: every `interval` seconds, for `timeout` seconds at most. After `fall` failures in
    a row it is down, until `rise` checks have passed. While the last results do not suffice for such a change, the next
    check comes after `retry_delay` seconds; the first one at a random moment of `warmup`. 0: both as `interval`.

    `port` is asked, 0: the real server's own; from the address `source`. With `through` "vip" the VIP is asked on this
    server, by a frame or a packet of the way that clients' packets take, for a connection or a ping.

    HTTP asks for `path` in the name of `host` with `headers` ("Name: value"), wants a `status` ("200", "200-399",
    several with commas) and a body of that `digest`. `tls`: "on" from the first byte, "start" as the protocol has it,
    in the name of `sni` (else `host`), with the client's certificate in the files `cert` and `key`; with `verify` the
    server's must be valid, by the file `ca` where that is given. Over tcp and udp `send` is sent, or the bytes
    `payload` (hexadecimal). `expect` is a regular expression that the answer or the body must match, `query` and
    `record` a name and a type for dns.

    `script` is a command; `exit` says what its code means: 0 is well ("plain"), 2 to 255 are, too, and the weight less
    2 ("weight"), 0 and 1 are ("nagios"). `file` holds a number: 0 is well, or, with a `factor`, so many times that is
    added to the weight.
    """

    type: str = "tcp"
    port: int = 0
    interval: float = 2
    timeout: float = 1
    rise: int = 2
    fall: int = 3
    retry_delay: float = 0
    warmup: float = 0
    source: str = ""
    through: str = "server"
    path: str = "/"
    host: str = ""
    status: str = "200-399"
    headers: tuple[str, ...] = ()
    version: str = "1.1"
    digest: str = ""
    tls: str = "off"
    verify: bool = False
    sni: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    send: str = ""
    payload: str = ""
    expect: str = ""
    query: str = ""
    record: str = ""
    script: str = ""
    exit: str = "plain"
    file: str = ""
    factor: int = 0

    def __post_init__(self) -> None:
        check_choice("health type", self.type, CHECKS)
        self._check_times()
        for field, types in CHECK_FIELDS.items():
            if self.type not in types and getattr(self, field) != DEFAULTS[field]:
                fix = f"it is for {', '.join(types)}"
                value = getattr(self, field)
                text = ", ".join(value) if isinstance(value, tuple) else value
                raise ConfigError(f"health {field}", text, f"means nothing to {self.type}", fix)
        check_range("health port", self.port, 0, PORT_MAX)
        if self.source:
            msgspec.structs.force_setattr(self, "source", canonical("health source", self.source))
        check_choice("health through", self.through, THROUGH)
        for field in ("send", "payload", "expect", "tls") if self.through == "vip" else ():
            if getattr(self, field) != DEFAULTS[field]:
                fix = "have another check for what is said over it"
                raise ConfigError(f"health {field}", getattr(self, field), "comes too late for through = vip", fix)
        self._check_http()
        self._check_tls()
        self._check_texts()
        if self.type == "script":
            command("health script", self.script)
        check_choice("health exit", self.exit, EXITS)
        if self.type == "file" and not self.file.startswith("/"):
            raise ConfigError("health file", self.file, "is not an absolute path", "write it like /run/weights/web1")
        if self.type == "agent" and not self.port:
            raise ConfigError("health port", 0, "is not that of an agent", "give the port that it listens on")
        check_range("health factor", self.factor, -WEIGHT_MAX, WEIGHT_MAX)

    def _check_times(self) -> None:
        low, high = CHECK_SECONDS
        for field in ("interval", "timeout", "retry_delay", "warmup"):
            value = getattr(self, field)
            if not low <= value <= high and (value or field in ("interval", "timeout")):
                raise ConfigError(f"health {field}", f"{value:g}", "out of range", f"use {low:g} to {high:.0f}")
        check_range("health rise", self.rise, 1, 1000)
        check_range("health fall", self.fall, 1, 1000)

    def _check_http(self) -> None:
        if not self.path.startswith("/") or any(c.isspace() for c in self.path):
            raise ConfigError("health path", self.path, "is not a path", "write it like /healthz")
        if not STATUSES.fullmatch(self.status):
            raise ConfigError("health status", self.status, "is not a list of statuses", "write it like 200,301-302")
        for span in self.status.split(","):
            first, dash, last = span.partition("-")
            if dash and last < first:
                raise ConfigError("health status", span, "ends before it begins", f"write {last}-{first}")
        if not HOST.fullmatch(self.host):
            raise ConfigError("health host", self.host[:HOST_MAX], "is no name of a host", "write it like example.com")
        for header in self.headers:
            if not HEADER.fullmatch(header):
                raise ConfigError("health headers", header, "is not a header", "write it like 'X-Probe: nfqlb'")
        check_choice("health version", self.version, HTTP_VERSIONS)
        if self.digest and not DIGEST.fullmatch(self.digest):
            fix = "write 32 hexadecimal digits of MD5, or 64 of SHA-256"
            raise ConfigError("health digest", self.digest, "is no digest", fix)

    def _check_tls(self) -> None:
        check_choice("health tls", self.tls, TLS)
        if self.tls == "start" and self.type == "tcp":
            raise ConfigError("health tls", self.tls, "means nothing to tcp", f"it is for {', '.join(DIALOGUES)}")
        if self.type != "https" and self.tls == "off":
            for field in ("verify", "sni", "ca", "cert", "key"):
                if getattr(self, field):
                    raise ConfigError(f"health {field}", getattr(self, field), "is about no TLS", 'write tls = "on"')
        if bool(self.cert) != bool(self.key):
            field, other = ("cert", "key") if self.cert else ("key", "cert")
            raise ConfigError(f"health {field}", getattr(self, field), f"is there without {other}", "give both")
        if self.ca and not self.verify:
            raise ConfigError("health ca", self.ca, "is not looked at", "write verify = true")
        if self.verify and not (self.sni or self.host):
            raise ConfigError("health verify", "true", "has no name to be valid for", "give host")

    def _check_texts(self) -> None:
        try:
            re.compile(self.expect.encode())
        except re.error as error:
            raise ConfigError("health expect", self.expect, f"is no regular expression: {error}") from None
        try:
            bytes.fromhex(self.payload)
        except ValueError:
            fix = "write pairs of digits, as in 00ff10"
            raise ConfigError("health payload", self.payload, "is not hexadecimal", fix) from None
        if self.payload and self.send:
            raise ConfigError("health payload", self.payload, "is there with send", "give one of them")
        labels = self.query.removesuffix(".").split(".") if self.query not in ("", ".") else []
        if len(self.query) > DNS_NAME_MAX or not all(DNS_LABEL.fullmatch(label) for label in labels):
            fix = f"write it like example.com, {DNS_NAME_MAX} characters at most, 63 between dots"
            raise ConfigError("health query", self.query[: DNS_NAME_MAX + 1], "is no name of DNS", fix)
        if self.record and not RECORD.fullmatch(self.record):
            raise ConfigError("health record", self.record, "is no type of record", "write it like AAAA")

    @property
    def question(self) -> bytes:
        """What is sent first."""
        return bytes.fromhex(self.payload) or self.send.encode()

    def accepts(self, status: int) -> bool:
        """Whether this HTTP status is one of those wanted."""
        spans = (span.partition("-") for span in self.status.split(","))
        return any(int(first) <= status <= int(last or first) for first, _, last in spans)


DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Check)}


class Health(Check, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """How each real server of a service is asked whether it serves: by one check, or by those in `checks`, of which
    `require` "all" or "any" must be well.

    `on_down` is what becomes of a server's connections when it is down. Datagrams, persistent clients and SYNs on old
    ports go elsewhere; TCP segments of old connections are dropped ("remove"), sent on ("keep"), answered by a reset
    ("reset"), or given to another server ("move"). "quiesce" is weight 0, no more.

    `panic`: where less than this percentage of the servers is up, checks are not believed, and all get connections. One
    that goes down again stays out for `hold` seconds each time that it went down before, `hold_max` at most; it has to
    be up for so long until they are forgotten.

    With `passive` one of which so many handshakes failed, on end and more than were answered, is ejected: for `eject`
    seconds each time, `hold_max` at most, and never more than `max_ejected` percent together.

    `notify_up` and `notify_down` are commands for when a server is up again or down.
    """

    checks: tuple[Check, ...] = msgspec.field(name="check", default=())
    require: str = "all"
    on_down: str = "remove"
    panic: int = 0
    hold: float = 0
    hold_max: float = 300
    passive: int = 0
    eject: float = 30
    max_ejected: int = 50
    notify_up: str = ""
    notify_down: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, default in DEFAULTS.items() if self.checks else ():
            if getattr(self, field) != default:
                problem, fix = "stands beside checks of their own", "give it to those that it is for"
                raise ConfigError(f"health {field}", getattr(self, field), problem, fix)
        check_choice("health require", self.require, REQUIRE)
        if [check.type for check in self.each].count("agent") > 1:
            raise ConfigError("health check", "agent", "is there twice", "ask one agent")
        check_choice("health on_down", self.on_down, ON_DOWN)
        check_range("health panic", self.panic, 0, 100)
        if not 0 <= self.hold <= HOLD_MAX:
            raise ConfigError("health hold", f"{self.hold:g}", "out of range", f"use 0 to {HOLD_MAX:g} seconds")
        check_range("health passive", self.passive, 0, 1_000_000)
        check_range("health max_ejected", self.max_ejected, 1, 100)
        if not 0.1 <= self.eject <= HOLD_MAX:
            raise ConfigError("health eject", f"{self.eject:g}", "out of range", f"use 0.1 to {HOLD_MAX:g} seconds")
        if not self.hold <= self.hold_max <= HOLD_MAX:
            fix = f"use {self.hold:g} (hold) to {HOLD_MAX:g} seconds"
            raise ConfigError("health hold_max", f"{self.hold_max:g}", "out of range", fix)

    @property
    def kind(self) -> str:
        """The types of its checks, for people."""
        return (" and " if self.require == "all" else " or ").join(check.type for check in self.each)

    @cached_property
    def each(self) -> tuple[Check, ...]:
        """The checks, also where there is but one."""
        return self.checks or (Check(**{field: getattr(self, field) for field in DEFAULTS}),)


class Quorum(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much of a service must be well. It loses its quorum when the weights of its servers that are up are less than
    `weight` - `hysteresis` together, and has it again from `weight` + `hysteresis` on (keepalived, ipwrapper.c).

    Meanwhile `sorry`, ADDR[:PORT][,weight=N][,mode=MODE], gets all new connections. When the others are back it loses
    those that it has, unless it is kept with weight 0 (`sorry_inhibit`). `up` and `down` are commands for when the
    quorum is back or lost. `announce` "quorum": the VIP is on its device only with a quorum.
    """

    weight: int = 1
    hysteresis: int = 0
    sorry: str = ""
    sorry_inhibit: bool = False
    up: str = ""
    down: str = ""
    announce: str = "always"

    def __post_init__(self) -> None:
        check_range("quorum weight", self.weight, 1, WEIGHT_MAX)
        if not 0 <= self.hysteresis < self.weight:
            fix = f"use 0 to {self.weight - 1}, less than weight"
            raise ConfigError("quorum hysteresis", self.hysteresis, "out of range", fix)
        check_choice("quorum announce", self.announce, ANNOUNCE)
        if self.sorry_inhibit and not self.sorry:
            raise ConfigError("quorum sorry_inhibit", "true", "is about no server", "give sorry, too")


class Real(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A real server of one virtual service; `weight` 0 means quiesced: no new connections, old ones go on. Port 0 is
    that of the packet, for services with more than one.

    From `upper` connections on, active or not, it gets no new ones until there are fewer than `lower` (0: three
    quarters of `upper`); 0 is no limit. `mode` is how packets get there, if not as the service says. At `agent_port`
    its agent listens, if not where the check says.
    """

    address: str
    port: int
    weight: int = 1
    upper: int = 0
    lower: int = 0
    mode: str = ""
    agent_port: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "address", canonical("real", self.address))
        check_range("agent_port", self.agent_port, 0, PORT_MAX)
        check_range("real port", self.port, 0, PORT_MAX)
        if not 0 <= self.weight <= WEIGHT_MAX:
            raise ConfigError(
                "weight", self.weight, "out of range", f"use 0 to {WEIGHT_MAX}, 0 takes no new connections"
            )
        check_range("upper", self.upper, 0, THRESHOLD_MAX)
        check_range("lower", self.lower, 0, THRESHOLD_MAX)
        if self.lower > self.upper:
            raise ConfigError("lower", self.lower, f"is above upper ({self.upper})", "use at most as many")
        if self.mode:
            check_choice("mode", self.mode, MODES)

    def __str__(self) -> str:
        return endpoint(self.address, self.port)


class OwnTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Timeouts of one service; 0 where it has that of all (Timeouts)."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0
    tcp_syn_sent: int = 0
    tcp_syn_recv: int = 0
    tcp_time_wait: int = 0
    tcp_close: int = 0
    tcp_close_wait: int = 0
    tcp_last_ack: int = 0
    tcp_listen: int = 0
    tcp_synack: int = 0
    tcp_none: int = 0
    sctp: int = 0
    sctp_none: int = 0
    sctp_init1: int = 0
    sctp_init: int = 0
    sctp_cookie_sent: int = 0
    sctp_cookie_replied: int = 0
    sctp_cookie_wait: int = 0
    sctp_cookie: int = 0
    sctp_cookie_echoed: int = 0
    sctp_shutdown_sent: int = 0
    sctp_shutdown_received: int = 0
    sctp_shutdown_ack_sent: int = 0
    sctp_rejected: int = 0
    sctp_closed: int = 0

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            if not 0 <= getattr(self, field) <= TIMEOUT_MAX:
                fix = f"use 1 to {TIMEOUT_MAX} seconds, or 0 for that of all services"
                raise ConfigError(f"timeout {field}", getattr(self, field), "out of range", fix)


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A virtual service and its real servers, in the order in which they were added; `name` is for people, `flags` are
    those of the scheduler (FLAGS), or of the `fallback` of one in Python. With `one_packet` each datagram is scheduled
    on its own.

    Either `address`, `port` (0: every port; up to `last`, if that is given) and `protocol`, or `fwmark`: then it takes
    what bears this netfilter mark, of TCP, UDP and SCTP, and of the family of `address`, which is 0.0.0.0 or ::.

    `mss`: bytes that a SYN through the director may announce at most, 0 for any. `offload`: the kernel may forward what
    is established by itself. `timeouts` stand in the place of those of all services.
    `connections_max`: so many connections it may have, 0 for any number. `slow_start`: seconds in which a real server
    that begins to get connections works up to its weight, 0 for none. `maglev_size`: places of mh's table, a prime.

    A `scheduler` that ends with .py is a file in Python; it may take `budget` microseconds for a choice, and where it
    says nothing that counts, `fallback` chooses. `shadow` is another scheduler that is only compared with it.
    """

    address: str = ""
    port: int = 0
    protocol: str = ""
    mode: str = "nat"
    scheduler: str = "wlc"
    reals: tuple[Real, ...] = ()
    name: str = ""
    last: int = 0
    fwmark: int = 0
    flags: tuple[str, ...] = ()
    persistence: Persistence | None = None
    one_packet: bool = False
    mss: int = 0
    health: Health | None = None
    offload: bool = True
    quorum: Quorum | None = None
    fallback: str = "wlc"
    budget: int = 1000
    shadow: str = ""
    timeouts: OwnTimeouts | None = None
    connections_max: int = 0
    slow_start: int = 0
    maglev_size: int = MAGLEV_SIZE

    def __post_init__(self) -> None:
        if self.fwmark:
            self._check_mark()
        else:
            msgspec.structs.force_setattr(self, "address", canonical("vip", self.address))
            msgspec.structs.force_setattr(self, "protocol", self.protocol or "tcp")
            check_choice("protocol", self.protocol, tuple(PROTOCOLS))
            check_range("vip port", self.port, 0, PORT_MAX)
            if self.last and not 0 < self.port < self.last <= PORT_MAX:
                raise ConfigError(
                    "vip port", f"{self.port}-{self.last}", "is not a range", f"write FIRST-LAST, in 1 to {PORT_MAX}"
                )
        if len(self.name) > LABEL_MAX or not self.name.isprintable():
            fix = f"use at most {LABEL_MAX} characters"
            raise ConfigError("name", self.name[:LABEL_MAX], "is no short line", fix)
        check_choice("mode", self.mode, MODES)
        check_scheduler("scheduler", self.scheduler)
        check_choice("fallback", self.fallback, SCHEDULERS)
        check_range("budget", self.budget, 1, BUDGET_MAX)
        if self.shadow:
            check_scheduler("shadow", self.shadow)
            if self.shadow == self.scheduler:
                raise ConfigError("shadow", self.shadow, "is the scheduler itself", "name another one to compare")
        known = FLAGS.get(self.built_in, ())
        for flag in self.flags:
            if flag not in known:
                fix = f"it knows {', '.join(known)}" if known else "it knows none"
                raise ConfigError("flags", flag, f"is not a flag of scheduler {self.built_in}", fix)
        msgspec.structs.force_setattr(self, "flags", tuple(flag for flag in known if flag in self.flags))
        if self.one_packet and self.protocol not in ("udp", ANY_PROTOCOL):
            raise ConfigError("one_packet", "true", f"is not for {self.protocol}", "it is for UDP and firewall marks")
        if self.persistence and self.persistence.netmask is not None and family(self.address) == 4:
            check_range("persistence netmask", self.persistence.netmask, 1, 32)
        if self.persistence and self.persistence.engine and self.protocol not in ("udp", ANY_PROTOCOL):
            raise ConfigError(
                "persistence engine", "sip", f"is not for {self.protocol}", "it is for UDP and firewall marks"
            )
        check_mss("mss", self.mss)
        if self.mss and self.protocol in ("udp", "sctp"):
            raise ConfigError("mss", self.mss, f"is nothing that {self.protocol} has", "give it to a service of tcp")
        check_range("connections_max", self.connections_max, 0, PLACES_MAX)
        if self.maglev_size != MAGLEV_SIZE:
            self._check_maglev_size()
        check_range("slow_start", self.slow_start, 0, SLOW_START_MAX)
        if self.slow_start and self.scheduler in SUDDEN:
            fix = "choose one that goes by weight, as wlc, or use 0"
            raise ConfigError("slow_start", self.slow_start, f"is nothing that scheduler {self.scheduler} has", fix)
        if self.timeouts == OwnTimeouts():
            msgspec.structs.force_setattr(self, "timeouts", None)
        if self.timeouts:
            self._check_timeouts(self.timeouts)
        if self.health:
            self._check_health(self.health)
        seen: set[tuple[str, int]] = set()
        for real in self.reals:
            self._check_real(real)
            if (real.address, real.port) in seen:
                raise ConfigError("real", real, "is there twice", "name each real server once and give it a weight")
            seen.add((real.address, real.port))
        if "mh" in (self.built_in, self.shadow) and len(self.reals) > self.maglev_size:
            problem = f"is too small for {len(self.reals)} real servers"
            fix = "use a prime of so many places at least, about a hundred for each server make shares even"
            raise ConfigError("maglev_size", self.maglev_size, problem, fix)
        if self.quorum and self.quorum.sorry:
            self._check_sorry(seen)
        if self.quorum and self.quorum.announce == "quorum" and self.fwmark:
            raise ConfigError("quorum announce", "quorum", "needs a VIP", "a service by mark has none: leave it out")

    def _check_maglev_size(self) -> None:
        check_prime("maglev_size", self.maglev_size, MAGLEV_MIN, MAGLEV_MAX)
        if "mh" not in (self.scheduler, self.fallback, self.shadow):
            problem = f"is nothing that scheduler {self.scheduler} has"
            raise ConfigError("maglev_size", self.maglev_size, problem, f"use mh, or {MAGLEV_SIZE}, the default")

    def _check_sorry(self, reals: set[tuple[str, int]]) -> None:
        try:
            sorry = self._sorry
            self._check_real(sorry)
            if not sorry.weight:
                raise ConfigError("weight", 0, "takes no connections", "leave it out")
        except ConfigError as error:
            raise ConfigError("quorum sorry", str(error.value), error.problem, error.fix) from None
        if (sorry.address, sorry.port) in reals:
            raise ConfigError("quorum sorry", str(sorry), "is a real server of the service", "name another one")

    def _check_health(self, health: Health) -> None:
        for check in health.each:
            asks = "port" if check.type in CHECK_FIELDS["port"] else ""
            if asks and not check.port and self.key.wide and any(real.port == 0 for real in self.reals):
                raise ConfigError("health port", 0, "is that of every packet", "give the port that is to be asked")
            if check.through == "vip":
                self._check_through(check)
            if self.protocol == "sctp" and asks and (not check.port or check.through == "vip"):
                fix = "give the port of something else that it serves, or use ping, script, file or agent"
                raise ConfigError("health type", check.type, "does not speak SCTP", fix)
            if check.source and family(check.source) != family(self.address):
                fix = "name an address of the director's, of that family"
                raise ConfigError("health source", check.source, f"is not of the VIP's family ({self.address})", fix)

    def _check_through(self, check: Check) -> None:
        if self.fwmark:
            raise ConfigError("health through", check.through, "is of no use to a fwmark", "it has no VIP to ask")
        if natted := next((real for real in self.reals if self.mode_of(real) == "nat"), None):
            fix = "real servers of dr and tun have it"
            raise ConfigError("health through", check.through, f"is of no use to nat ({natted})", fix)

    def _check_mark(self) -> None:
        check_range("fwmark", self.fwmark, 1, MARK_MAX)
        if self.protocol not in ("", ANY_PROTOCOL) or self.port or self.last:
            raise ConfigError("fwmark", self.fwmark, "has a port or a protocol", "leave out one or the other")
        if self.address not in ("", *ANY_ADDRESS.values()):
            raise ConfigError("fwmark", self.fwmark, f"has the VIP {self.address}", "leave out one or the other")
        msgspec.structs.force_setattr(self, "address", self.address or ANY_ADDRESS[4])
        msgspec.structs.force_setattr(self, "protocol", ANY_PROTOCOL)

    def _check_timeouts(self, timeouts: OwnTimeouts) -> None:
        """A service has timeouts of its own protocol."""
        for field in timeouts.__struct_fields__:
            owner = field.partition("_")[0]
            if getattr(timeouts, field) and self.protocol not in (owner, ANY_PROTOCOL):
                problem, fix = f"is nothing that {self.protocol} has", f"give it to a service of {owner}"
                raise ConfigError(f"timeouts {field}", getattr(timeouts, field), problem, fix)

    @property
    def built_in(self) -> str:
        """The scheduler that chooses, or that stands behind one in Python."""
        return self.fallback if is_script(self.scheduler) else self.scheduler

    def mode_of(self, real: Real) -> str:
        return real.mode or self.mode

    def _check_real(self, real: Real) -> None:
        mode = self.mode_of(real)
        if family(real.address) != family(self.address):
            raise ConfigError(
                "real",
                real,
                f"is not of the VIP's family ({self.address})",
                f"mode {mode} cannot mix IPv4 and IPv6",
            )
        if real.port == 0 and not self.key.wide:
            raise ConfigError("real", real, "has no port", f"write {endpoint(real.address, self.port)}")
        if mode != "nat" and real.port != (0 if self.key.wide else self.port):
            fix = "leave it out" if self.key.wide else f"use {self.port}"
            raise ConfigError("real port", real.port, "is not the service's", f"mode {mode} changes no port: {fix}")
        if real.address == self.address and (real.port == self.port or self.key.wide):
            raise ConfigError("real", real, "is the virtual service itself", "name the address of a real server")

    @cached_property
    def key(self) -> Key:
        return Key(self.protocol, self.address, self.port, self.last, self.fwmark)

    @cached_property
    def ends(self) -> frozenset[tuple[str, int]]:
        """The addresses and ports of its real servers."""
        return frozenset((real.address, real.port) for real in self.reals)

    @cached_property
    def sorry(self) -> Real | None:
        """The real server for when there is no quorum."""
        return self._sorry if self.quorum and self.quorum.sorry else None

    @property
    def _sorry(self) -> Real:
        return parse_real(self.quorum.sorry if self.quorum else "", self.key)

    @cached_property
    def furnished(self) -> Service:
        """The same with the sorry server as one of its real servers: all that packets may go to."""
        return msgspec.structs.replace(self, reals=(*self.reals, self.sorry), quorum=None) if self.sorry else self


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that a connection may be silent: established TCP, TCP after a FIN of the server's, UDP, as in `ipvsadm
    --set`; then TCP in its other states, and SCTP (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts;
    ip_vs_proto_sctp.c, sctp_timeouts).
    """

    tcp: int = 900
    tcp_fin: int = 120
    udp: int = 300
    tcp_syn_sent: int = 120
    tcp_syn_recv: int = 60
    tcp_time_wait: int = 120
    tcp_close: int = 10
    tcp_close_wait: int = 60
    tcp_last_ack: int = 30
    tcp_listen: int = 120
    tcp_synack: int = 120
    tcp_none: int = 2
    sctp: int = 900
    sctp_none: int = 2
    sctp_init1: int = 4
    sctp_init: int = 61
    sctp_cookie_sent: int = 61
    sctp_cookie_replied: int = 61
    sctp_cookie_wait: int = 61
    sctp_cookie: int = 61
    sctp_cookie_echoed: int = 61
    sctp_shutdown_sent: int = 61
    sctp_shutdown_received: int = 61
    sctp_shutdown_ack_sent: int = 61
    sctp_rejected: int = 4
    sctp_closed: int = 61

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            if not 1 <= getattr(self, field) <= TIMEOUT_MAX:
                fix = f"use 1 to {TIMEOUT_MAX} seconds"
                raise ConfigError(f"timeout {field}", getattr(self, field), "out of range", fix)


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients hear that no real server gets.

    `no_server`: the service has no real server with a weight: "icmp" (port unreachable), "reset" (for TCP) or "drop".
    `no_connection`: a TCP segment that neither belongs to a connection nor begins one: "pass" (the local stack answers
    where the VIP is local), "reset" or "drop". With `sloppy_tcp` such a segment begins one, unless it is a reset;
    `sloppy_sctp` is the same for SCTP, whose reset is an ABORT.
    """

    no_server: str = "icmp"
    no_connection: str = "pass"
    sloppy_tcp: bool = False
    sloppy_sctp: bool = False

    def __post_init__(self) -> None:
        check_choice("no_server", self.no_server, NO_SERVER)
        check_choice("no_connection", self.no_connection, NO_CONNECTION)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How connections end and begin anew, and how the table defends itself, named as net.ipv4.vs.*
    (Documentation/networking/ipvs-sysctl.rst).

    `conn_reuse_mode`: a SYN on a connection that closes is scheduled anew, 0 never, 1 in TIME_WAIT and CLOSE, 2 and 3
    also in FIN_WAIT, where a connection of dr and tun ends. `expire_nodest_conn`: the TCP connections of a real server
    that is removed end at once, and a SYN on a connection with one of weight 0 is scheduled anew.
    `expire_quiescent_template`: persistent clients leave one of weight 0. `expire_quiescent_udp`: datagrams do, too, as
    they leave one that is removed or down in any case.

    `drop_entry`, `drop_packet` and `secure_tcp` are never (0), while places are few (1 and 2) or always (3) used: what
    never came about is ended before its time; of first packets one of so many is dropped, of `am_droprate` in mode 3; a
    handshake counts when the real server's part of it was seen. Few are less than `amemthresh`, 0: a sixteenth of the
    table. `connections_max`: no more connections of all services than these begin, 0: as many as the table has places.

    `hash_key`: 128 bits in hexadecimal digits with which dh, sh, mh and hrw hash addresses, the same on all directors
    that should agree. Without it their hashes are the kernel's, and anybody can work out who gets which real server.

    `backup_only`: while this director is a backup, requests are for the local stack: it is a real server of the master.
    """

    conn_reuse_mode: int = 3
    expire_nodest_conn: bool = False
    expire_quiescent_template: bool = False
    expire_quiescent_udp: bool = False
    drop_entry: int = 0
    drop_packet: int = 0
    secure_tcp: int = 0
    am_droprate: int = 10
    amemthresh: int = 0
    connections_max: int = 0
    hash_key: str = ""
    backup_only: bool = False

    def __post_init__(self) -> None:
        for field in ("conn_reuse_mode", "drop_entry", "drop_packet", "secure_tcp"):
            check_range(field, getattr(self, field), 0, 3)
        check_range("am_droprate", self.am_droprate, 1, DROPRATE_MAX)
        check_range("amemthresh", self.amemthresh, 0, PLACES_MAX)
        check_range("connections_max", self.connections_max, 0, PLACES_MAX)
        if self.hash_key and not re.fullmatch(rf"[0-9a-fA-F]{{{HASH_KEY}}}", self.hash_key):
            fix = f"use {HASH_KEY} of them, as `openssl rand -hex {HASH_KEY // 2}` writes"
            raise ConfigError("hash_key", "(secret)", f"is not {HASH_KEY} hexadecimal digits", fix)
        msgspec.structs.force_setattr(self, "hash_key", self.hash_key.lower())


class Sync(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What peers are told of connections, and what is believed of what they tell (docs/sync.md).

    As "master" this director tells, as "backup" it is told, as "both" it does both, at the same time. Datagrams go to
    the multicast `group` over `interface`, with `ttl`, or to each of `peers`; `port` is also that of TCP, for whole
    tables. `id` is in every message; one with another is not heard, 0 hears any. `version` 0 is for kernels before 3.1.
    `maxlen`: bytes of a message, 0: what the interface takes. `key_file` has the secret of the group.

    The rest is the kernel's: a connection is told at its `threshold`th packet of every `period`, or each
    `refresh_period` seconds, `retries` times more in it; with `persist_mode` those of persistent clients are not.
    """

    role: str = "both"
    interface: str = ""
    id: int = 0
    version: int = 1
    group: str = SYNC_GROUP
    port: int = SYNC_PORT
    ttl: int = 1
    maxlen: int = 0
    peers: tuple[str, ...] = ()
    key_file: str = ""
    threshold: int = 3
    period: int = 50
    refresh_period: int = 0
    retries: int = 0
    persist_mode: bool = False

    def __post_init__(self) -> None:
        check_choice("role", self.role, SYNC_ROLES)
        for field, low, high in SYNC_RANGES:
            check_range(field, getattr(self, field), low, high)
        if self.maxlen:
            check_range("maxlen", self.maxlen, SYNC_LEAST, PORT_MAX - 28)
        if self.period and self.threshold >= self.period:
            raise ConfigError("threshold", self.threshold, "is never reached", "make it less than period")
        if len(self.interface) > NAME_MAX or any(c.isspace() or c == "/" for c in self.interface):
            raise ConfigError("interface", self.interface, "is no name of an interface", "write it like eth1")
        if self.key_file and not self.key_file.startswith("/"):
            raise ConfigError("key_file", self.key_file, "is not an absolute path", "write it like /etc/nfqlb/sync.key")
        msgspec.structs.force_setattr(self, "peers", tuple(canonical("peers", peer) for peer in self.peers))
        if self.peers:
            if len({family(peer) for peer in self.peers}) > 1:
                raise ConfigError("peers", ", ".join(self.peers), "are of two families", "name all of one")
            return
        try:
            group = ipaddress.ip_address(self.group)
        except ValueError:
            group = None
        if group is None or not group.is_multicast:
            fix = f"use one like {SYNC_GROUP}, or name peers"
            raise ConfigError("group", self.group, "is no multicast address", fix)
        if not self.interface:
            fix = "name the interface that leads to the peers, or name peers"
            raise ConfigError("interface", "", "is not given", fix)


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Everything one director should do; the whole of what `state.toml` keeps."""

    services: tuple[Service, ...] = ()
    timeouts: Timeouts = Timeouts()
    answers: Answers = Answers()
    options: Options = Options()
    sync: Sync | None = None

    def __post_init__(self) -> None:
        names = [name for service in self.services if (name := service.name)]
        if len(names) != len(set(names)):
            twice = next(name for at, name in enumerate(names) if name in names[:at])
            raise ConfigError("name", twice, "is there twice", "give each service a name of its own")
        keys = [service.key for service in self.services]
        if len(keys) != len(self.by_key):
            key = next(key for at, key in enumerate(keys) if key in keys[:at])
            raise ConfigError("vip", key, "is there twice", "put all its real servers into one service")
        ranges: dict[tuple[str, str], list[Key]] = {}
        for key in keys:
            if key.last:
                ranges.setdefault((key.protocol, key.address), []).append(key)
        for keys in ranges.values():
            keys.sort(key=lambda key: key.port)
            for one, other in itertools.pairwise(keys):
                if other.port <= one.last:
                    raise ConfigError("vip", other, f"has ports of {one}, too", "give each port to one service")

    @cached_property
    def by_key(self) -> Mapping[Key, Service]:
        return {service.key: service for service in self.services}

    @cached_property
    def direct(self) -> tuple[Service, ...]:
        """The services of direct routing."""
        return tuple(service for service in self.services if service.mode == "dr")

    @cached_property
    def furnished(self) -> Intent:
        """The same with every sorry server as a real server."""
        if not any(service.quorum for service in self.services):
            return self
        return msgspec.structs.replace(self, services=tuple(service.furnished for service in self.services))


def canonical(field: str, text: str) -> str:
    """The address as the rest of nfqlb writes it; refuses what no server can have."""
    if UNICAST.fullmatch(text):
        return text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(field, text, "is not an IP address", "write it as 10.0.0.1 or [2001:db8::1]") from None
    nowhere = address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255"
    if nowhere or getattr(address, "scope_id", None):
        raise ConfigError(field, text, "cannot be the address of a server", "use a unicast address without a zone")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ConfigError(field, text, "is an IPv4 address in IPv6 notation", f"write {address.ipv4_mapped}")
    return str(address)


def command(field: str, text: str) -> list[str]:
    """The words of a command line, as a shell has them; no variables, no globs. It begins with an absolute path."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(field, text, f"is no command: {error}") from None
    if not words or not words[0].startswith("/"):
        raise ConfigError(field, text, "begins with no absolute path", "write it like /usr/local/bin/check 80")
    return words


def family(address: str) -> int:
    """4 or 6, for an address in canonical form."""
    return 6 if ":" in address else 4


def endpoint(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[2001:db8::1]:80`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_vip(text: str) -> Key:
    """Read ADDR:PORT or ADDR:FIRST-LAST, with /tcp, /udp or /sctp behind it, or fwmark:N[/ipv6]; IPv6 as [addr]:port,
    port 0 is every one.
    """
    rest, slash, tail = text.partition("/")
    if rest.startswith("fwmark:"):
        if slash:
            check_choice("family", tail, ("ipv4", "ipv6"))
        return key_of_mark(parse_number("fwmark", rest.removeprefix("fwmark:")), 6 if tail == "ipv6" else 4)
    address, ports = _split("vip", rest)
    if not ports:
        raise ConfigError("vip", text, "has no port", "write ADDRESS:PORT, as in 203.0.113.10:80")
    first, dash, last = ports.partition("-")
    if slash:
        check_choice("protocol", tail, tuple(PROTOCOLS))
    span = parse_number("vip port", first), parse_number("vip port", last) if dash else 0
    return Key(tail or "tcp", canonical("vip", address), *span)


def key_of_mark(mark: int, version: int) -> Key:
    """The service of all packets of IP `version` that bear this netfilter mark."""
    check_range("fwmark", mark, 1, MARK_MAX)
    return Key(ANY_PROTOCOL, ANY_ADDRESS[version], 0, mark=mark)


def parse_real(text: str, service: Key) -> Real:
    """Read ADDR[:PORT] and further fields, as in ",weight=N"; the port is the service's where none is given, that
    of the packet if it has many.
    """
    where, *options = text.split(",")
    address, port = _split("real", where)
    values: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in REAL_OPTIONS:
            fix = f"{', '.join(f'{known}=' for known in REAL_OPTIONS)} can follow the address"
            raise ConfigError("real", text, f"has the unknown option {name!r}", fix)
        if name in values:
            raise ConfigError("real", text, f"has {name} twice", "give each option once")
        values[name] = value if name == "mode" else parse_number(name, value)
    return Real(address, parse_number("real port", port) if port else 0 if service.wide else service.port, **values)


def parse_listener(field: str, text: str) -> tuple[str, int]:
    """Read ADDRESS:PORT to listen on; 0.0.0.0 and :: are every address."""
    address, digits = _split(field, text)
    if not digits:
        raise ConfigError(field, text, "has no port", "write ADDRESS:PORT, as in 127.0.0.1:9105")
    port = parse_number(f"{field} port", digits)
    check_range(f"{field} port", port, 1, PORT_MAX)
    return address if address in ANY_ADDRESS.values() else canonical(field, address), port


def parse_name(text: str) -> str:
    """The name of a director: it becomes part of set, table and file names, so it is short and plain."""
    if not (
        0 < len(text) <= NAME_MAX and text[0].isalpha() and all(c.isascii() and (c.isalnum() or c == "-") for c in text)
    ):
        raise ConfigError(
            "name", text, "cannot be used", f"use a letter, then letters, digits and '-', at most {NAME_MAX} in all"
        )
    return text


def _split(field: str, text: str) -> tuple[str, str]:
    """The address and what stands for the port, empty where there is nothing."""
    if text.startswith("["):
        address, bracket, tail = text[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ConfigError(field, text, "is not [ADDRESS]:PORT", "close the bracket before the port")
        return address, tail[1:]
    if text.count(":") > 1:
        return text, ""
    address, _, port = text.partition(":")
    return address, port


def parse_number(field: str, text: str) -> int:
    """A whole number in decimal digits; no signs of other languages, no blanks, no underscores."""
    if not NUMBER.fullmatch(text):
        raise ConfigError(field, text, "is not a whole number")
    if len(text) > DIGITS_MAX:
        raise ConfigError(field, text, "is out of every range", f"use at most {DIGITS_MAX} digits")
    return int(text)
