"""The world that fuzzing happens in: a table of 64, four configurations, and packets of every kind by their names.

It is made anew for each input, so that an input says everything about its run (but for the keys of the hashes).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.packet import view
from nfqlb._core.script import Player
from nfqlb._core.snapshot import Hop, Service, Snapshot
from nfqlb.testing import (
    AUTHENTICATION,
    DESTINATION_OPTIONS,
    FORWARD,
    FRAGMENT,
    HEAD,
    HOP_BY_HOP,
    INPUT,
    NOT_READY,
    NOT_VERIFIED,
    OUTPUT,
    PREROUTING,
    ROUTING,
    SUPER_PACKET,
    endpoint,
    fragments,
    icmp,
    ip,
    sctp,
    tcp,
    udp,
)
from tests.core.fixtures import (
    ASIDE,
    CLIENT,
    CLIENT6,
    CONFIG,
    DIRECT,
    DIRECT6,
    DNS,
    DNS6,
    DRAINED,
    DRAINED6,
    FIRST,
    FIRST6,
    HERE,
    MSS,
    NARROW,
    NARROW6,
    RESOLVER,
    RESOLVER6,
    SECOND,
    SOURCE_ROUTE,
    STEERED,
    STEERED6,
    THIN,
    TO_ZERO,
    TOO_BIG,
    TUNNEL,
    TUNNEL6,
    WAYS,
    WEB,
    WEB6,
)
from tests.core.lab import DEFAULTS, KIND, LINK, PROTOCOLS, Policy, Timeouts, Virtual

CAPACITY = 64
START = 1_000_000_000_000  # nanoseconds of CLOCK_BOOTTIME
WORKERS = 3
PORT = endpoint(CLIENT).port.to_bytes(2, "big")  # every packet's client has it


class Kind(NamedTuple):
    packet: bytes
    hook: int = PREROUTING
    flags: int = 0


# In the order that scripts count them: a new one goes to the end.
KINDS = {
    "tcp_syn": Kind(tcp(CLIENT, WEB)),
    "tcp_synack_first": Kind(tcp(FIRST, CLIENT, "SA"), FORWARD),
    "tcp_synack_second": Kind(tcp(SECOND, CLIENT, "SA"), FORWARD),
    "tcp_ack": Kind(tcp(CLIENT, WEB, "A")),
    "tcp_data": Kind(tcp(CLIENT, WEB, "PA", b"odd")),
    "tcp_data_reply": Kind(tcp(SECOND, CLIENT, "PA", b"reply"), FORWARD),
    "tcp_fin": Kind(tcp(CLIENT, WEB, "FA")),
    "tcp_fin_reply": Kind(tcp(SECOND, CLIENT, "FA"), FORWARD),
    "tcp_rst": Kind(tcp(CLIENT, WEB, "R")),
    "tcp_rst_reply": Kind(tcp(SECOND, CLIENT, "RA"), FORWARD),
    "tcp_no_flags": Kind(tcp(CLIENT, WEB, "")),
    "tcp_options": Kind(tcp(CLIENT, WEB, options=MSS)),
    "tcp_unfinished": Kind(tcp(CLIENT, WEB, check="unfinished"), flags=NOT_READY),
    "tcp_super_packet": Kind(tcp(CLIENT, WEB, "PA", bytes(1400), check="unfinished"), flags=SUPER_PACKET | NOT_READY),
    "tcp_not_verified": Kind(tcp(CLIENT, WEB), flags=NOT_VERIFIED),
    "tcp_own_client": Kind(tcp(CLIENT, WEB), OUTPUT),
    "tcp_own_client_reply": Kind(tcp(SECOND, CLIENT, "SA"), INPUT),
    "tcp_no_server": Kind(tcp(CLIENT, DRAINED)),
    "tcp_no_service": Kind(tcp(CLIENT, "203.0.113.1:82")),
    "tcp_unrelated": Kind(tcp(FIRST, "198.51.100.1:80"), FORWARD),
    "ip4_options": Kind(tcp(CLIENT, WEB, ip_options=SOURCE_ROUTE)),
    "ip4_padding": Kind(tcp(CLIENT, WEB, trailer=bytes(6))),
    "ip4_first_fragment": Kind(fragments(udp(CLIENT, DNS, bytes(64)), 32)[0]),
    "ip4_last_fragment": Kind(fragments(udp(CLIENT, DNS, bytes(64)), 32)[-1]),
    "ip4_truncated": Kind(tcp(CLIENT, WEB, "PA", b"data")[:-1]),
    "ip4_gre": Kind(ip("192.0.2.10", "203.0.113.1", 47, bytes(8))),
    "udp": Kind(udp(CLIENT, DNS, b"question")),
    "udp_reply": Kind(udp(RESOLVER, CLIENT, b"answer"), FORWARD),
    "udp_no_checksum": Kind(udp(CLIENT, DNS, check="none")),
    "udp_unfinished": Kind(udp(CLIENT, DNS, b"odd", check="unfinished"), flags=NOT_READY),
    "udp_empty": Kind(udp(CLIENT, DNS)),
    "udp_shorter_than_its_packet": Kind(udp(CLIENT, DNS, b"abc", room=b"more")),
    "udp_no_server": Kind(udp(CLIENT, DRAINED, bytes(1000))),
    "icmp_frag_needed": Kind(TOO_BIG),
    "icmp_unreachable_reply": Kind(icmp("10.0.0.1", "192.0.2.10", 3, 1, tcp(CLIENT, SECOND)[:28]), FORWARD),
    "icmp_port_unreachable_reply": Kind(icmp("10.0.0.2", "192.0.2.10", 3, 3, udp(CLIENT, RESOLVER, b"?")), INPUT),
    "icmp_of_a_fragment": Kind(icmp("192.0.2.1", "203.0.113.1", 11, 1, tcp(WEB, CLIENT, fragment=1)[:28])),
    "icmp_echo": Kind(ip("192.0.2.10", "203.0.113.1", 1, b"\x08\0\xf7\xff" + bytes(4))),
    "ip6_tcp_syn": Kind(tcp(CLIENT6, WEB6)),
    "ip6_tcp_synack": Kind(tcp(FIRST6, CLIENT6, "SA"), FORWARD),
    "ip6_udp": Kind(udp(CLIENT6, DNS6, b"abc")),
    "ip6_udp_reply": Kind(udp(RESOLVER6, CLIENT6, b"abc"), FORWARD),
    "ip6_udp_no_server": Kind(udp(CLIENT6, DRAINED6, bytes(1400))),
    "ip6_extensions": Kind(
        udp(CLIENT6, DNS6, b"abc", extensions=[(HOP_BY_HOP, b""), (DESTINATION_OPTIONS, b""), (FRAGMENT, bytes(6))])
    ),
    "ip6_nine_extensions": Kind(tcp(CLIENT6, WEB6, extensions=[(DESTINATION_OPTIONS, b"")] * 9)),
    "ip6_routing": Kind(tcp(CLIENT6, WEB6, extensions=[(ROUTING, b"\0\1")])),
    "ip6_authentication": Kind(tcp(CLIENT6, WEB6, extensions=[(AUTHENTICATION, b"")])),
    "ip6_fragment": Kind(fragments(udp(CLIENT6, DNS6, bytes(64)), 32)[0]),
    "icmp6_time_exceeded": Kind(icmp("2001:db8:2::1", "2001:db8::1", 3, 0, udp(DNS6, CLIENT6, b"abc"))),
    "icmp6_too_big_reply": Kind(
        icmp("fd00::1", "2001:db8:1::10", 2, 0, udp(CLIENT6, RESOLVER6, b"abc"), rest=b"\0\0\5\0"), FORWARD
    ),
    "udp_sum_becomes_zero": Kind(udp(CLIENT, DNS, TO_ZERO)),
    "icmp6_echo": Kind(ip("2001:db8:1::10", "2001:db8::1", 58, b"\x80\0" + bytes(6))),
    "dr_tcp_syn": Kind(tcp(CLIENT, DIRECT)),
    "dr_tcp_ack": Kind(tcp(CLIENT, DIRECT, "A")),
    "dr_udp": Kind(udp(CLIENT, DIRECT, b"odd")),
    "dr_udp_to_cut": Kind(udp(CLIENT, NARROW, bytes(1900), fragment=0, ip_options=SOURCE_ROUTE)),
    "dr_udp_too_big": Kind(udp(CLIENT, NARROW, bytes(1900))),
    "dr_tcp_last_hop": Kind(tcp(CLIENT, DIRECT, ttl=1)),
    "dr_super_packet": Kind(tcp(CLIENT, NARROW, "PA", bytes(1900), check="unfinished"), flags=SUPER_PACKET | NOT_READY),
    "dr_no_neighbour": Kind(udp(CLIENT, ASIDE)),
    "dr_local": Kind(udp(CLIENT, HERE)),
    "dr_icmp_frag_needed": Kind(icmp("192.0.2.1", "203.0.113.22", 3, 4, tcp(DIRECT, CLIENT, "A"))),
    "ip6_dr_udp_to_cut": Kind(udp(CLIENT6, NARROW6, bytes(1900), extensions=[(DESTINATION_OPTIONS, b"")])),
    "ip6_dr_tcp_syn": Kind(tcp(CLIENT6, DIRECT6)),
    "tun_tcp_syn": Kind(tcp(CLIENT, TUNNEL)),
    "tun_udp_unfinished": Kind(udp(CLIENT, TUNNEL, b"odd", check="unfinished"), flags=NOT_READY),
    "tun_udp_to_cut": Kind(udp(CLIENT, THIN, bytes(1900), fragment=0)),
    "tun_super_packet": Kind(
        tcp(CLIENT, THIN, "PA", bytes(1900), check="unfinished", options=MSS), flags=SUPER_PACKET | NOT_READY
    ),
    "tun_icmp_frag_needed": Kind(
        icmp("10.9.9.9", "10.0.0.1", 3, 4, ip("10.0.0.1", "10.0.0.32", 4, tcp(CLIENT, TUNNEL)), rest=b"\0\0\2\0"), INPUT
    ),
    "ip6_tun_tcp_syn": Kind(tcp(CLIENT6, TUNNEL6)),
    "ip6_tun_super_packet": Kind(
        tcp(CLIENT6, TUNNEL6, "PA", bytes(1900), check="unfinished"), flags=SUPER_PACKET | NOT_READY
    ),
    "ip6_tun_udp_to_cut": Kind(udp(CLIENT6, TUNNEL6, bytes(1900))),
    "icmp6_tun_unreachable": Kind(
        icmp("fd00::9", "fd00::1", 1, 0, ip("fd00::1", "fd00::32", 41, tcp(CLIENT6, TUNNEL6))), INPUT
    ),
    "mark_tcp_syn": Kind(tcp(CLIENT, STEERED)),
    "mark_super_packet": Kind(tcp(CLIENT, STEERED, "PA", bytes(1900))[:128], flags=SUPER_PACKET | NOT_READY | HEAD),
    "mark_udp": Kind(udp(CLIENT, STEERED, bytes(1900))[:128], flags=HEAD),
    "mark_icmp_frag_needed": Kind(icmp("192.0.2.1", "203.0.113.26", 3, 4, tcp(STEERED, CLIENT, "A"))),
    "ip6_mark_udp": Kind(
        udp(CLIENT6, STEERED6, bytes(1900), extensions=[(DESTINATION_OPTIONS, b"")])[:128], flags=HEAD
    ),
    "nat_udp_head": Kind(udp(CLIENT, DNS, bytes(1900))[:128], flags=HEAD),
    "dr_udp_head": Kind(udp(CLIENT, DIRECT, bytes(1900))[:128], flags=HEAD),
    "tun_super_packet_head": Kind(tcp(CLIENT, THIN, "PA", bytes(1900))[:128], flags=SUPER_PACKET | NOT_READY | HEAD),
    "udp_no_server_head": Kind(udp(CLIENT, DRAINED, bytes(1900))[:128], flags=HEAD),
    "sctp_init": Kind(sctp(CLIENT, WEB)),
    "sctp_init_ack": Kind(sctp(SECOND, CLIENT, "INIT ACK"), FORWARD),
    "sctp_cookie_echo": Kind(sctp(CLIENT, WEB, [("COOKIE ECHO", b"cookie"), "ABORT"])),
    "sctp_data": Kind(sctp(CLIENT, WEB, [("DATA", b"odd bytes")])),
    "sctp_unfinished": Kind(sctp(CLIENT, WEB, [("DATA", b"odd")], check="unfinished"), flags=NOT_READY),
    "sctp_abort": Kind(sctp(SECOND, CLIENT, "ABORT"), FORWARD),
    "ip6_dr_sctp": Kind(sctp(CLIENT6, DIRECT6, "INIT")),
    "sctp_no_server": Kind(sctp(CLIENT, DRAINED, "INIT")),
}


class Configuration(NamedTuple):
    services: tuple[Virtual, ...]
    timeouts: Timeouts = DEFAULTS
    policy: Policy = KIND


CONFIGURATIONS = (
    Configuration(CONFIG),
    Configuration(
        (
            Virtual(WEB, {FIRST: 3, SECOND: 1}, "wrr", mss=1400),
            Virtual(DNS, {RESOLVER: 1, "10.0.0.3:5353": 2}, "wlc", protocol="udp"),
            Virtual(DRAINED, {FIRST: 0}, "wrr"),
            Virtual(WEB6, {FIRST6: 1, "[fd00::3]:8080": 2}, "lc"),
        ),
        Timeouts(1, 1, 1),
        Policy("reset", "reset"),
    ),
    Configuration((Virtual(WEB, {FIRST: 1}),), Timeouts(3600, 2, 30), Policy("drop", "drop", sloppy=True)),
    Configuration((), Timeouts(2147483, 2147483, 2147483)),  # the longest
    Configuration(
        (
            Virtual(WEB, {FIRST: (1, 3, 1), SECOND: 2}, "lblcr", persistence=2, mask=b"\xff" * 15 + b"\0"),
            Virtual(DNS, {RESOLVER: 1, "10.0.0.3:5353": 2}, "twos", protocol="udp", one_packet=True),
            Virtual(WEB6, {FIRST6: 1, "[fd00::3]:8080": 2}, "mh", flags=("mh-port",), persistence=60),
            Virtual(DNS6.replace(":53", ":50"), {"[fd00::2]:0": 1}, "sh", protocol="udp", last=60, persistence=1),
            Virtual(DIRECT.replace(":80", ":0"), {"10.0.0.12:0": 1}, "lblc", mode="dr", persistence=1),
        ),
        Timeouts(2, 1, 1),
    ),
    Configuration(
        (
            Virtual(WEB, {FIRST: 1, SECOND: 2}, "wlc", protocol="sctp", persistence=3),
            Virtual(DIRECT6, {"[fd00::12]:80": 1}, protocol="sctp", mode="dr"),
            Virtual(DRAINED, {FIRST: 0}, protocol="sctp"),
        ),
        policy=Policy("reset", "reset", sloppy_sctp=True, expire_nodest_conn=True),
    ),
)


def base(kind: Kind) -> tuple[bytes, int, int, int, int]:
    """With the places of the client's port, wherever it stands first, and of a checksum over it that is right."""
    packet, hook, flags = kind
    seen = view(packet)
    if flags & HEAD:  # what its checksum covers is not there
        return packet, hook, flags, max(packet.find(PORT, 20), 0), 0
    port_at = max(packet.find(PORT, 20), 0)
    check_at = seen.transport + {6: 16, 17: 6}.get(seen.protocol, 2) if seen.reason in (None, "icmp") else 0
    right = check_at and not flags & NOT_READY and packet[check_at : check_at + 2] != bytes(2)
    return packet, hook, flags, port_at, check_at if right else 0


BASES = [base(kind) for kind in KINDS.values()]
NUMBERS = {name: number for number, name in enumerate(KINDS)}


# address, port, weight, forwarding method, where frames go, thresholds
Real = tuple[bytes, int, int, str, Hop | None, tuple[int, ...]]


def plan(virtual: Virtual) -> tuple[int, bytes, int, str, list[Real], dict[str, Any]]:
    """What a service is made of, without texts."""
    reals: list[Real] = []
    for real, given in virtual.reals.items():
        weight, *thresholds = (given,) if isinstance(given, int) else given
        reals.append((*endpoint(real), weight, virtual.mode, WAYS.get(real, LINK), tuple(thresholds)))
    protocol = 0 if virtual.mark else PROTOCOLS[virtual.protocol]
    return protocol, *endpoint(virtual.vip), virtual.scheduler, reals, virtual.more


PLANS = [(list(map(plan, c.services)), c.timeouts, c.policy._asdict()) for c in CONFIGURATIONS]


def world(fd: int = -1) -> Player:
    """A player on a new table, or on that of the file."""
    table = Table(fd, CAPACITY, START)
    datapath = Datapath(table)
    snapshots = []
    for services, timeouts, policy in PLANS:
        compiled = []
        for protocol, vip, port, scheduler, reals, more in services:
            servers = []
            for address, real_port, weight, method, hop, thresholds in reversed(reals):
                slot = table.slot(protocol, vip, port, address, real_port, more["last"], more["mark"])
                servers.append((slot, address, real_port, weight, method, *thresholds))
                if method != "nat":
                    datapath.aim(slot, hop)
            compiled.append(Service(protocol, vip, port, scheduler, servers, **more))
        snapshots.append(Snapshot(compiled, *timeouts, **policy))
    datapath.publish(snapshots[0])
    return Player(datapath, [datapath.worker() for _ in range(WORKERS)], snapshots, BASES, START)
