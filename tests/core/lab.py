"""A director without a kernel: a table, a data path, a clock, and services written as text.

Tests say what they want in a `Virtual`; the lab compiles it the way the director does: an unchanged service stays the
same object, a changed one follows its predecessor, real servers are walked newest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nfqlb._core.advisor import Advisor
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath, Drained, Result
from nfqlb._core.snapshot import Hop, Service, Snapshot
from nfqlb._core.tracking import ASSOCIATION_NAMES, STATE_NAMES
from nfqlb.testing import FORWARD, PREROUTING, FakeClock, endpoint, tcp

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
TICK = 0.1  # seconds
LINK = Hop(7, 1500, b"server", b"source")  # where frames go unless a test says something else
CLIENT, VIP, REAL = "192.0.2.10:40000", "203.0.113.1:80", "10.0.0.2:8080"


class Virtual(NamedTuple):
    """A virtual service (see snapshot.Service); `reals` maps ADDRESS:PORT to the weight, or to weight and thresholds,
    in the order in which they were added.
    """

    vip: str
    reals: Mapping[str, int | tuple[int, int, int]]
    scheduler: str = "rr"
    protocol: str = "tcp"
    mode: str = "nat"
    last: int = 0  # of a range of ports
    mark: int = 0
    flags: tuple[str, ...] = ()
    persistence: int = 0
    mask: bytes = b"\xff" * 16
    moves_quiesced: bool = False
    by_call: bool = False
    one_packet: bool = False
    mss: int = 0
    advisor: Advisor | None = None
    shadow: str = ""  # a built-in scheduler
    candidate: Advisor | None = None  # in Python, before that
    timeouts: tuple[int, ...] = ()
    connections_max: int = 0
    maglev_size: int = 4093
    hash_key: bytes = b""

    @property
    def more(self) -> dict[str, Any]:
        """What snapshot.Service takes by name."""
        names = (
            "last",
            "mark",
            "flags",
            "persistence",
            "mask",
            "moves_quiesced",
            "by_call",
            "one_packet",
            "mss",
            "advisor",
        )
        names = (*names, "timeouts", "connections_max", "maglev_size", "hash_key")
        return {name: getattr(self, name) for name in names}


class Timeouts(NamedTuple):
    """Seconds (tracking.TIMEOUT_KINDS)."""

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


DEFAULTS = Timeouts()


class Policy(NamedTuple):
    """What becomes of packets that no real server gets, and how connections end and begin anew (Snapshot)."""

    no_server: str = "icmp"
    no_connection: str = "pass"
    sloppy: bool = False
    sloppy_sctp: bool = False
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


KIND = Policy()


class Connection(NamedTuple):
    """A row of the connection list."""

    protocol: int
    client: bytes
    cport: int
    vip: bytes
    vport: int
    server: bytes
    sport: int
    state: int
    left: int  # seconds
    template: bool = False

    @property
    def name(self) -> str:
        return ASSOCIATION_NAMES[self.state] if self.protocol == 132 else STATE_NAMES[self.state]


class Lab:
    """One director's data path, told what time it is."""

    def __init__(
        self,
        *virtuals: Virtual,
        capacity: int = 1024,
        fd: int = -1,
        workers: int = 1,
        clock: FakeClock | None = None,
        timeouts: Timeouts = DEFAULTS,
        policy: Policy = KIND,
        ways: Mapping[str, Hop | None] | None = None,
    ) -> None:
        self.ways = ways or {}
        self.clock = clock or FakeClock()
        self.table = Table(fd, capacity, self.clock())
        self.datapath = Datapath(self.table)
        self.workers = [self.datapath.worker(seed=at) for at in range(workers)]
        self.slots: dict[tuple[str, str, str], int] = {}
        self._compiled: dict[tuple[str, str, int], tuple[Virtual, Service]] = {}
        self.configure(*virtuals, timeouts=timeouts, policy=policy)

    def configure(
        self,
        *virtuals: Virtual,
        timeouts: Timeouts = DEFAULTS,
        policy: Policy = KIND,
        gone: Sequence[int] = (),
        fate: str = "remove",
    ) -> None:
        """Publish exactly these services; the slots of real servers that are down are `gone`, with this `fate` for
        their connections.
        """
        self._compiled = {(v.protocol, v.vip, v.mark): (v, self._compile(v)) for v in virtuals}
        self.services = [service for _, service in self._compiled.values()]
        self.datapath.publish(Snapshot(self.services, *timeouts, **policy._asdict(), gone=dict.fromkeys(gone, fate)))

    def send(self, packet: bytes, *, hook: int = PREROUTING, worker: int = 0, **about: int) -> Result:
        return self.workers[worker].process(packet, self.clock(), hook=hook, **about)

    def open(self, client: str = CLIENT, vip: str = VIP) -> str:
        """Shake hands; returns the real server's end as text, for IPv4."""
        result = self.send(tcp(client, vip, "S"))
        assert result.packet is not None, result
        address, port = result.packet[16:20], int.from_bytes(result.packet[22:24], "big")
        real = f"{'.'.join(map(str, address))}:{port}"
        assert self.send(tcp(real, client, "SA"), hook=FORWARD).reason == "returned"
        assert self.send(tcp(client, vip, "A")).reason == "forwarded"
        return real

    def load(self, real: str, vip: str = VIP, protocol: str = "tcp") -> tuple[int, int]:
        """(ActiveConn, InActConn)."""
        return self.table.load(self.slots[protocol, vip, real])

    def connections(self) -> list[Connection]:
        return [Connection(*row) for row in self.table.connections(self.clock())]

    def state(self) -> tuple[str, int] | None:
        """(state, seconds left) of the only connection; None when there is none."""
        rows = self.connections()
        assert len(rows) <= 1, rows
        return (rows[0].name, rows[0].left) if rows else None

    def drain(self) -> Drained:
        return self.datapath.drain()

    def reasons(self) -> dict[str, int]:
        """Those that were counted."""
        return {name: count for name, count in self.drain().reasons.items() if count}

    def _compile(self, virtual: Virtual) -> Service:
        before, made = self._compiled.get((virtual.protocol, virtual.vip, virtual.mark), (None, None))
        if made is not None and before == virtual:
            return made
        protocol, vip = 0 if virtual.mark else PROTOCOLS[virtual.protocol], endpoint(virtual.vip)
        servers = []
        for real, given in reversed(list(virtual.reals.items())):
            weight, *thresholds = (given,) if isinstance(given, int) else given
            end = endpoint(real)
            slot = self.table.slot(protocol, *vip, *end, virtual.last, virtual.mark)
            self.slots[virtual.protocol, virtual.vip, real] = slot
            servers.append((slot, *end, weight, virtual.mode, *thresholds))
            if virtual.mode != "nat" or real in self.ways:
                self.datapath.aim(slot, self.ways.get(real, LINK))
        shadow = None
        if virtual.shadow:
            last = made and made.shadow
            shadow = Service(protocol, *vip, virtual.shadow, servers, last, advisor=virtual.candidate)
        return Service(protocol, *vip, virtual.scheduler, servers, made, **virtual.more, shadow=shadow)


def clients(count: int, first: int = 20000) -> Iterator[str]:
    """Client ends, each with another port and, now and then, another address."""
    return (f"192.0.2.{1 + at % 250}:{first + at % 40000}" for at in range(count))


def served(lab: Lab, ends: Sequence[str], vip: str = VIP) -> list[str]:
    """The real server that each client gets."""
    return [lab.open(client, vip) for client in ends]
