"""What `nfqlb run` hands to the holder and the director: one frozen value, as JSON on an inherited memory file.

The holder reads it with the standard library's json, the director with `decode`; the keys are the field names.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from nfqlb.errors import ConfigError
from nfqlb.logs import FORMATS
from nfqlb.model import Intent, canonical, check_choice, check_range, family, parse_listener, parse_name

ENGINES = ("fast", "reference")
DIVERTERS = ("auto", "nft", "iptables")
FIREWALLS = ("accept", "leave")
ON_FAILURE = ("drop", "bypass")
DR_BY = ("auto", "frame", "route")
OFFLOADS = ("auto", "off")
WORKERS_MAX = 64
QUEUES = ("gso", "plain", "head", "syn")  # the classes of a worker's queues
QUEUES_PER_WORKER = len(QUEUES)
CONNECTIONS_MIN, CONNECTIONS_MAX = 64, 2**26
DEVICE = re.compile(r"[^/\s]{1,15}")  # IFNAMSIZ - 1
USER = re.compile(r"[a-z_][a-z0-9_.-]*", re.IGNORECASE)
MAIL = re.compile(r"[^@\s,<>]+@[^@\s,<>]+")
SOCKET_PATH_MAX = 107  # sun_path without its zero byte
KEEPALIVED = ("start", "join")
VRRP_DEVICE = re.compile(r"[\w.:@-]{1,15}", re.ASCII)  # nothing that means something to keepalived's parser
ADVERT_SECONDS = 0.01, 40.95  # twelve bits of centiseconds (RFC 9568, 5.2.7)
PREEMPT_DELAY_MAX, PATIENCE_MAX = 1000, 60


class Ha(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """This director and others have the VIPs in turn, by VRRP version 3 on `interface`, which keepalived speaks.

    Of those that are ready the one with the highest `priority` is master: it has the VIPs, or `addresses`, on `device`
    (that of VRRP where none is given), and what its real servers send replies to, the `gateways` (ADDRESS[%DEVICE]).
    Adverts come every `interval` seconds, to `peers` or to the multicast group, from `source`; its family, or that of
    the peers, is the one of VRRP. A director that comes back takes over from one of lower priority after
    `preempt_delay` seconds, and not at all without `preempt`. One that crashed has `patience` seconds to be there again
    before another takes over.

    keepalived: "start" one for this director, or "join" the one of this machine, whose process stands in `pid_file`.
    """

    interface: str
    vrid: int
    priority: int = 100
    interval: float = 1
    peers: tuple[str, ...] = ()
    source: str = ""
    preempt: bool = True
    preempt_delay: int = 0
    patience: float = 1
    addresses: tuple[str, ...] = ()
    device: str = ""
    gateways: tuple[str, ...] = ()
    keepalived: str = "start"
    pid_file: str = "/run/keepalived.pid"

    def __post_init__(self) -> None:
        for field in ("interface", "device"):
            name = getattr(self, field)
            if not VRRP_DEVICE.fullmatch(name) and (name or field == "interface"):
                raise ConfigError(f"ha {field}", name, "is not the name of a network device", "see `ip link`")
        check_range("ha vrid", self.vrid, 1, 255)
        check_range("ha priority", self.priority, 1, 254)
        _check_seconds("ha interval", self.interval, *ADVERT_SECONDS)
        _check_seconds("ha patience", self.patience, 0, PATIENCE_MAX)
        check_range("ha preempt_delay", self.preempt_delay, 0, PREEMPT_DELAY_MAX)
        if self.preempt_delay and not self.preempt:
            raise ConfigError(
                "ha preempt_delay", self.preempt_delay, "is there without preempt", "leave out one of them"
            )
        for field in ("peers", "addresses"):
            found = tuple(canonical(f"ha {field}", one) for one in getattr(self, field))
            msgspec.structs.force_setattr(self, field, found)
        msgspec.structs.force_setattr(self, "gateways", tuple(map(_gateway, self.gateways)))
        if self.source:
            msgspec.structs.force_setattr(self, "source", canonical("ha source", self.source))
        for peer in self.peers:
            if family(peer) != self.family:
                other = self.source or self.peers[0]
                fix = "VRRP speaks one of them; VIPs may be of both"
                raise ConfigError("ha peers", peer, f"is not of the family of {other}", fix)
        if self.source in self.peers and self.source:
            raise ConfigError("ha peers", self.source, "is this director's own source", "name the others only")
        check_choice("ha keepalived", self.keepalived, KEEPALIVED)
        if not self.pid_file.startswith("/"):
            raise ConfigError(
                "ha pid_file", self.pid_file, "is not an absolute path", "write it like /run/keepalived.pid"
            )

    @property
    def family(self) -> int:
        """Of VRRP itself."""
        known = (self.source, *self.peers)
        return family(next(filter(None, known), "0.0.0.0"))


def _gateway(text: str) -> str:
    address, mark, device = text.partition("%")
    if mark and not VRRP_DEVICE.fullmatch(device):
        raise ConfigError("ha gateways", text, "does not end with a device", "write it like 10.0.0.1%eth1")
    return canonical("ha gateways", address) + mark + device


def _check_seconds(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(field, f"{value:g}", "out of range", f"use {low:g} to {high:g} seconds")


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one director runs; `intent` is None where it starts empty or restores the saved one."""

    name: str = "main"
    api: str  # absolute path of the socket
    intent: Intent | None = None
    origin: str = "none"  # of the intent: "none", "command line", "saved state" or the file's path
    restore: bool = False
    vip_dev: str | None = None
    queue: int | None = None
    workers: int = 1
    engine: str = "fast"
    diverter: str = "auto"
    firewall: str = "accept"
    on_failure: str = "drop"  # what becomes of packets that nobody takes
    connections: int = 262_144
    dr_by: str = "auto"
    dr_mask: int = 0xFF000000
    offload: str = "off"
    metrics: str = ""  # ADDRESS:PORT to serve them on, nothing for not at all
    log_format: str = "console"
    script_user: str = "nobody"  # whom scripts run as, nothing for none at all
    notify: str = ""  # the command that hears of real servers and services that go down or come back
    webhook: str = ""  # the URL that does
    webhook_token: str = ""  # the file with the token that it wants
    mail_to: str = ""  # addresses, with commas
    mail_from: str = ""
    smtp: str = "localhost:25"
    smtp_login: str = ""  # the file with USER:PASSWORD
    ha: Ha | None = None  # how it has the VIPs in turn with others

    def __post_init__(self) -> None:
        parse_name(self.name)
        check_socket_path(self.api)
        if self.vip_dev is not None and not DEVICE.fullmatch(self.vip_dev):
            raise ConfigError("vip_dev", self.vip_dev, "is not the name of a network device", "see `ip link`")
        check_range("workers", self.workers, 1, WORKERS_MAX)
        if self.queue is not None:
            check_range("queue", self.queue, 0, 65536 - QUEUES_PER_WORKER * self.workers)
        check_choice("engine", self.engine, ENGINES)
        check_choice("diverter", self.diverter, DIVERTERS)
        check_choice("firewall", self.firewall, FIREWALLS)
        check_choice("on_failure", self.on_failure, ON_FAILURE)
        check_choice("dr_by", self.dr_by, DR_BY)
        check_mask("dr_mask", self.dr_mask)
        check_choice("offload", self.offload, OFFLOADS)
        check_range("connections", self.connections, CONNECTIONS_MIN, CONNECTIONS_MAX)
        if self.metrics:
            parse_listener("metrics", self.metrics)
        check_choice("log_format", self.log_format, FORMATS)
        if self.script_user and not USER.fullmatch(self.script_user):
            raise ConfigError("script_user", self.script_user, "is not the name of a user", "see /etc/passwd")
        self._check_notices()
        if self.ha and self.vip_dev:
            fix = "keepalived adds the VIPs on the master alone: leave it out, or give it as device of [ha]"
            raise ConfigError("vip_dev", self.vip_dev, "is there with [ha]", fix)

    def _check_notices(self) -> None:
        if self.webhook:
            parts = urlsplit(self.webhook)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError("webhook", self.webhook, "is no URL", "write it like https://example.com/path")
            if parts.password or parts.username:
                fix = "put the token into a file, and name that as webhook_token"
                raise ConfigError("webhook", parts.hostname, "has a user or password in its URL", fix)
        elif self.webhook_token:
            raise ConfigError("webhook_token", self.webhook_token, "is for no webhook", "give webhook, too")
        for field, text in (("mail_to", self.mail_to), ("mail_from", self.mail_from)):
            for one in filter(None, text.split(",")):
                if not MAIL.fullmatch(one.strip()):
                    raise ConfigError(field, one.strip(), "is no mail address", "write it like ops@example.com")
        if not self.mail_to and (self.mail_from or self.smtp_login):
            raise ConfigError("mail_to", "", "is nobody", "say who gets the mail")
        parse_address("smtp", self.smtp, 25)


SETTINGS = tuple(name for name in RunConfig.__struct_fields__ if name not in ("intent", "origin", "restore"))


def encode(config: RunConfig) -> bytes:
    return msgspec.json.encode(config)


def decode(data: bytes) -> RunConfig:
    return msgspec.json.decode(data, type=RunConfig)


def parse_address(field: str, text: str, port: int) -> tuple[str, int]:
    """Read NAME[:PORT] or [IPV6]:PORT; the name is looked up when it is needed."""
    parts = urlsplit(f"//{text}")
    try:
        found = parts.port
    except ValueError:
        found = -1
    if not parts.hostname or found == -1 or parts.path or parts.username is not None:
        raise ConfigError(field, text, "is no NAME:PORT", f"write it like mail.example.com:{port}")
    return parts.hostname, found or port


def check_mask(field: str, mask: int) -> None:
    """Bits of a netfilter mark that follow each other."""
    if not 0 < mask < 1 << 32 or (mask // (mask & -mask)) & (mask // (mask & -mask) + 1):
        text = f"{mask:#x}"
        raise ConfigError(field, text, "is no block of bits of a 32-bit mark", "write it like 0xff000000")


def check_socket_path(path: str) -> None:
    if len(path.encode()) > SOCKET_PATH_MAX:
        raise ConfigError("api", path, "is too long for a socket", f"use at most {SOCKET_PATH_MAX} bytes")
