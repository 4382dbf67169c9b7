"""A small world in which random things happen to the core and to the model alike.

Few clients, few services, few servers and a small table, so that what is rare in life is frequent here: reused ports,
full tables, servers that are gone. Each step is one call; `Twin` makes it on both sides and compares what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from nfqlb._core.datapath import Result
from nfqlb._core.snapshot import Hop
from nfqlb.testing import (
    CHUNKS,
    FORWARD,
    INPUT,
    OUTPUT,
    PREROUTING,
    SUPER_PACKET,
    Check,
    Endpoint,
    Network,
    checksum,
    endpoint,
    icmp,
    sctp,
    tcp,
    udp,
)
from tests.core.lab import KIND, PROTOCOLS, Lab, Policy, Timeouts, Virtual
from tests.model import BY_MARK, OWN4, OWN6, Entry, Model

CAPACITY = 64
HOOKS = [PREROUTING] * 8 + [FORWARD] * 8 + [INPUT, OUTPUT]
WEIGHTS = [1, 1, 1, 2, 3, 4, 6, 0]
SCHEDULERS = ["rr", "wrr", "lc", "wlc"]
SEGMENTS = ["S"] * 4 + ["SA", "A", "A", "PA", "FA", "FA", "F", "R", "RA", "", "SF"]
PAYLOADS = [b"", b"x", b"odd", bytes(range(40))]
SECONDS = [0.0, 0.01, 0.1, 0.1, 1, 9.9, 10, 31, 60, 119.9, 120, 300, 900]
# each service's servers have ports of their own: what they send tells which service it belongs to
NAT = {
    ("tcp", "203.0.113.1:80"): "10.0.0.{}:8080",
    ("tcp", "203.0.113.1:81"): "10.0.0.{}:8081",
    ("udp", "203.0.113.1:80"): "10.0.0.{}:5353",
    ("sctp", "203.0.113.1:80"): "10.0.0.{}:8082",
    ("tcp", "[2001:db8::1]:80"): "[fd00::{}]:8080",
    ("udp", "[2001:db8::1]:53"): "[fd00::{}]:5353",
}
DIRECT = {
    ("tcp", "203.0.113.2:80"): "10.0.1.{}:80",
    ("udp", "203.0.113.2:53"): "10.0.1.{}:53",
    ("tcp", "[2001:db8::2]:80"): "[fd00:1::{}]:80",
    ("sctp", "[2001:db8::2]:81"): "[fd00:1::{}]:81",
    ("udp", "[2001:db8::2]:53"): "[fd00:1::{}]:53",
}
TUNNELS = {
    ("tcp", "203.0.113.3:80"): "10.0.2.{}:80",
    ("udp", "203.0.113.3:53"): "10.0.2.{}:53",
    ("tcp", "[2001:db8::3]:80"): "[fd00:2::{}]:80",
    ("udp", "[2001:db8::3]:53"): "[fd00:2::{}]:53",
}
VIPS = NAT | DIRECT | TUNNELS
MODES = dict.fromkeys(NAT, "nat") | dict.fromkeys(DIRECT, "dr") | dict.fromkeys(TUNNELS, "tun")
SERVERS = range(2, 7)
MTUS = {
    2: None,
    3: 0,
    4: 59,
    5: 70,
    6: BY_MARK,
}  # of the way to each server: none, this machine, narrow, with direct routing by a mark; else 1500


@dataclass
class Step:
    """What may happen, drawn from a source of chance."""

    chance: Random

    def client(self, vip: str) -> str:
        host = self.chance.choice(
            ["[2001:db8:1::10]", "[2001:db8:1::11]"] if "[" in vip else ["192.0.2.10", "192.0.2.11"]
        )
        return f"{host}:{self.chance.randrange(1000, 1020)}"

    def packet(self, known: Sequence[Entry]) -> tuple[bytes, int, int]:
        """(bytes, hook, flags) of a packet between a client and a VIP or one of its servers, often of a known flow."""
        chance = self.chance
        (protocol, vip), real = chance.choice(list(VIPS.items()))
        client, real = self.client(vip), real.format(chance.choice(SERVERS))
        if chance.random() < 0.03:
            vip = vip.rpartition(":")[0] + ":99"  # no service there
        elif known and chance.random() < 0.4:
            entry = chance.choice(known)
            protocol = {6: "tcp", 17: "udp", 132: "sctp"}[entry.protocol]
            client, vip, real = (str(Endpoint(*end)) for end in (entry.client, entry.vip, entry.server))
        from_server = chance.random() < 0.4
        source, destination = (real, client) if from_server else (client, vip)
        hook = chance.choice(HOOKS) if chance.random() < 0.2 else FORWARD if from_server else PREROUTING
        check: Check = chance.choice(["right", "right", "unfinished", "none" if protocol == "udp" else "right"])
        flags = (
            chance.choice([1, 1, 3] if protocol == "tcp" else [1]) if check == "unfinished" else chance.choice([0, 4])
        )
        payload = chance.choice(PAYLOADS)
        network = Network(ttl=chance.choice([64, 64, 64, 2, 1]), fragment=chance.choice([0x4000, 0x4000, 0]))
        if chance.random() < 0.06:
            return self.error(protocol, client, vip, real, payload), hook, 0
        if protocol == "udp":
            return udp(source, destination, payload, check=check, **network), hook, flags
        if protocol == "sctp":
            chunks = [(chance.choice(["INIT", "INIT", *CHUNKS]), payload), *chance.choice([[], [], ["ABORT"]])]
            return sctp(source, destination, chunks, check=check, **network), hook, flags
        segment = chance.choice(SEGMENTS)
        if check == "unfinished" and not flags & SUPER_PACKET:
            return tcp(source, destination, segment, payload, check=check, trailer=b"pad", **network), hook, flags
        return tcp(source, destination, segment, payload, check=check, **network), hook, flags

    def error(self, protocol: str, client: str, vip: str, real: str, payload: bytes) -> bytes:
        """An ICMP error about a request behind the director, or about a reply in front of it; sometimes damaged."""
        chance = self.chance
        make = {"udp": udp, "tcp": tcp, "sctp": sctp}[protocol]
        source, destination = (client, real) if chance.random() < 0.5 else (vip, client)
        more: list[Any] = ["A", payload] if make is tcp else [payload if make is udp else "DATA"]
        quoted = make(source, destination, *more)
        wide = "[" in vip
        kind = chance.choice([1, 2, 3, 4, 128] if wide else [3, 11, 12, 4, 8])
        ends = [end.rpartition(":")[0].strip("[]") for end in (chance.choice([client, destination]), source)]
        message = icmp(ends[0], ends[1], kind, chance.randrange(5), quoted[: chance.choice([200, 200, 48, 28, 20])])
        if chance.random() < 0.1:
            message = message[:-1] + bytes([message[-1] ^ 1])
        return message

    def policy(self) -> Policy:
        chance = self.chance
        answers = (
            chance.choice(["icmp", "reset", "drop"]),
            chance.choice(["pass", "pass", "drop", "reset"]),
        )
        options = (chance.randrange(4), *(chance.random() < 0.3 for _ in range(3)))
        return Policy(*answers, chance.random() < 0.2, chance.random() < 0.2, *options)

    def configuration(self, old: dict[tuple[str, str], Virtual]) -> dict[tuple[str, str], Virtual]:
        """One change: a service added, deleted, or given another scheduler; a server added, deleted, or edited."""
        chance, new = self.chance, dict(old)
        key = chance.choice(list(VIPS))
        protocol, vip = key
        if key not in new:
            reals = {VIPS[key].format(at): chance.choice(WEIGHTS) for at in SERVERS if chance.random() < 0.6}
            new[key] = Virtual(vip, reals, chance.choice(SCHEDULERS), protocol, MODES[key])
            return new
        virtual, reals = new[key], dict(new[key].reals)
        real = VIPS[key].format(chance.choice(SERVERS))
        what = chance.random()
        if what < 0.05:
            del new[key]
        elif what < 0.1:
            new[key] = virtual._replace(scheduler=chance.choice(SCHEDULERS))
        elif real in reals and what < 0.5:
            del reals[real]
            new[key] = virtual._replace(reals=reals)
        else:
            reals[real] = chance.choice(WEIGHTS)
            new[key] = virtual._replace(reals=reals)
        return new

    def timeouts(self) -> Timeouts:
        return Timeouts(*(self.chance.choice([1, 30, 120, 300, 900, 3600]) for _ in Timeouts._fields))


def plain(result: Result) -> Result:
    """Without the checksum of an outer IPv4 header, which has to be right."""
    packet = result.packet
    if result.verdict != "transmit" or packet is None or packet[0] != 0x45 or packet[9] != 4:
        return result
    assert checksum(packet[:20]) == 0
    return result._replace(packet=packet[:10] + bytes(2) + packet[12:])


class Twin:
    """The core, with several workers, and the model."""

    def __init__(self, workers: int = 3) -> None:
        ways = {
            VIPS[key].format(server): 1500 if mtu == BY_MARK and key not in DIRECT else mtu
            for key in VIPS
            for server in SERVERS
            for mtu in [MTUS.get(server, 1500)]
        }
        hops = {
            real: None
            if mtu is None
            else Hop(0, 0, mark=0x300, mask=0xFF00)
            if mtu == BY_MARK
            else Hop(7, mtu, b"server", b"source", OWN6 if "[" in real else OWN4, mtu == 0)
            for real, mtu in ways.items()
        }
        self.lab = Lab(capacity=CAPACITY, workers=workers, ways=hops)
        self.model = Model(capacity=CAPACITY, ways={endpoint(real): mtu for real, mtu in ways.items()})
        self.virtuals: dict[tuple[str, str], Virtual] = {}
        self.timeouts = Timeouts()
        self.policy = KIND

    def send(self, packet: bytes, hook: int, flags: int, worker: int = 0) -> str:
        """The reason that both agree on."""
        now = self.lab.clock()
        got = self.lab.send(packet, hook=hook, flags=flags, worker=worker % len(self.lab.workers))
        expected = self.model.process(packet, now, hook, flags)
        assert plain(got) == expected, f"{packet.hex()} at hook {hook}, flags {flags}"
        answers = self.lab.workers[worker % len(self.lab.workers)].outgoing()
        assert not answers or got.reason in ("no_server", "refused", "ttl_exceeded", "too_big")
        return got.reason

    def configure(
        self, virtuals: dict[tuple[str, str], Virtual], timeouts: Timeouts, policy: Policy | None = None
    ) -> None:
        self.virtuals, self.timeouts, self.policy = virtuals, timeouts, policy or self.policy
        self.lab.configure(*virtuals.values(), timeouts=timeouts, policy=self.policy)
        self.model.configure(*virtuals.values(), timeouts=timeouts, policy=self.policy)

    def compare(self) -> None:
        """Connection list, ActiveConn and InActConn of every server that ever was."""
        now = self.lab.clock()
        self.lab.workers[0].expire(now)
        expected = self.model.connections(now)
        assert sorted(self.lab.connections()) == sorted(expected)
        assert self.lab.table.used == len(expected)
        self.model.entries = [entry for entry in self.model.entries if entry.expires > now // 10**8]
        for protocol, vip, real in self.lab.slots:
            key = PROTOCOLS[protocol], endpoint(vip)
            assert self.lab.load(real, vip, protocol) == self.model.load(key, endpoint(real)), (protocol, vip, real)
