"""The table of packet fixtures: what the network sees, row by row.

A row is a configuration, the packets that went before, one packet, and what becomes of it: verdict, reason, bytes.
The expected bytes come from the builders in nfqlb.testing, which sum up their checksums from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfqlb._core.snapshot import Hop
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
    tcp,
    udp,
)
from tests.core.lab import KIND, Policy, Virtual, clients

CLIENT, WEB, FIRST, SECOND = "192.0.2.10:40000", "203.0.113.1:80", "10.0.0.2:8080", "10.0.0.3:8080"
DNS, RESOLVER = "203.0.113.1:53", "10.0.0.2:5353"
CLIENT6, WEB6, FIRST6 = "[2001:db8:1::10]:40000", "[2001:db8::1]:80", "[fd00::2]:8080"
DNS6, RESOLVER6 = "[2001:db8::1]:53", "[fd00::2]:5353"

OWN, OWN_REAL = "203.0.113.36:80", "10.0.0.36:8080"  # NAT to this machine

DRAINED, DRAINED6 = "203.0.113.1:81", "[2001:db8::1]:81"

# direct routing: one server is there, one answers no ARP, one is this machine, one is behind a narrow link
DIRECT, ASIDE, HERE, NARROW = (f"203.0.113.{number}:80" for number in (22, 23, 24, 25))
TUNNEL, THIN, TUNNEL6 = "203.0.113.32:80", "203.0.113.35:80", "[2001:db8::32]:80"
MODEST, MODEST6, MODEST_DIRECT, MODEST_TUNNEL = (
    "203.0.113.7:80",
    "[2001:db8::7]:80",
    "203.0.113.27:80",
    "203.0.113.37:80",
)
STEERED, STEERED6 = "203.0.113.26:80", "[2001:db8::6]:80"  # by a mark
DIRECT6, NARROW6 = "[2001:db8::2]:80", "[2001:db8::5]:80"
WAYS = {
    "10.0.0.13:80": None,
    "10.0.0.14:80": Hop(0, 0, local=True),
    OWN_REAL: Hop(0, 0, local=True),
    "10.0.0.15:80": Hop(7, 600, b"server", b"source"),
    "[fd00::15]:80": Hop(7, 1280, b"server", b"source"),
    "10.0.0.16:80": Hop(0, 0, mark=0x300, mask=0xFF00),
    "[fd00::16]:80": Hop(0, 0, mark=0x300, mask=0xFF00),
    "10.0.0.32:80": Hop(7, 1500, b"server", b"source", endpoint("10.0.0.1:0").address),
    "10.0.0.35:80": Hop(7, 620, b"server", b"source", endpoint("10.0.0.1:0").address),
    "[fd00::32]:80": Hop(7, 1500, b"server", b"source", endpoint("[fd00::1]:0").address),
}

WEB_SERVICE = Virtual(WEB, {FIRST: 1, SECOND: 1})  # the second, being newer, is asked first
DNS_SERVICE = Virtual(DNS, {RESOLVER: 1}, protocol="udp")
CONFIG = (
    WEB_SERVICE,
    DNS_SERVICE,
    Virtual(DRAINED, {FIRST: 0, SECOND: 0}, "wlc"),
    Virtual(DRAINED, {}, protocol="udp"),
    Virtual(DRAINED6, {}, protocol="udp"),
    Virtual(WEB6, {FIRST6: 1}),
    Virtual(OWN, {OWN_REAL: 1}),
    Virtual(DNS6, {RESOLVER6: 1}, protocol="udp"),
    Virtual(MODEST, {SECOND: 1}, mss=1400),
    Virtual(MODEST6, {FIRST6: 1}, mss=1400),
    Virtual(MODEST_DIRECT, {"10.0.0.12:80": 1}, mode="dr", mss=1400),
    Virtual(MODEST_TUNNEL, {"10.0.0.32:80": 1}, mode="tun", mss=1400),
    *(
        Virtual(vip, {real: 1}, protocol=protocol, mode="dr")
        for protocol in ("tcp", "udp")
        for vip, real in (
            (DIRECT, "10.0.0.12:80"),
            (ASIDE, "10.0.0.13:80"),
            (HERE, "10.0.0.14:80"),
            (NARROW, "10.0.0.15:80"),
            (DIRECT6, "[fd00::12]:80"),
            (NARROW6, "[fd00::15]:80"),
            (STEERED, "10.0.0.16:80"),
            (STEERED6, "[fd00::16]:80"),
        )
    ),
    *(
        Virtual(vip, {real: 1}, protocol=protocol, mode="tun")
        for protocol in ("tcp", "udp")
        for vip, real in ((TUNNEL, "10.0.0.32:80"), (THIN, "10.0.0.35:80"), (TUNNEL6, "[fd00::32]:80"))
    ),
)
Sent = tuple[bytes, int]  # a packet and its hook
HANDSHAKE: tuple[Sent, ...] = (
    (tcp(CLIENT, WEB, "S"), PREROUTING),
    (tcp(SECOND, CLIENT, "SA"), FORWARD),
    (tcp(CLIENT, WEB, "A"), PREROUTING),
)
ASKED: tuple[Sent, ...] = ((udp(CLIENT, DNS, b"?"), PREROUTING),)
ASKED6: tuple[Sent, ...] = ((udp(CLIENT6, DNS6, b"?"), PREROUTING),)
CLOSED = (*HANDSHAKE, (tcp(CLIENT, WEB, "FA"), PREROUTING), (tcp(SECOND, CLIENT, "FA"), FORWARD))
FULL: tuple[Sent, ...] = tuple((udp(end, DNS), PREROUTING) for end in clients(64))


def swapped(packet: bytes, checksum_of: bytes, at: int) -> bytes:
    """The packet with the transport checksum of another."""
    return packet[:at] + checksum_of[at : at + 2] + packet[at + 2 :]


# with this payload the datagram to the resolver sums up to zero, which is sent as ones (RFC 768)
TO_ZERO = udp(CLIENT, RESOLVER, b"\0\0")[26:28]
TOO_BIG = icmp("192.0.2.1", "203.0.113.1", 3, 4, tcp(WEB, CLIENT, "A", b"reply"), rest=b"\0\0\5\0")
# the quoted segment keeps its checksum
TOO_BIG_INSIDE = icmp(
    "192.0.2.1",
    "10.0.0.3",
    3,
    4,
    swapped(tcp(SECOND, CLIENT, "A", b"reply"), tcp(WEB, CLIENT, "A", b"reply"), 36),
    rest=b"\0\0\5\0",
)
BULK = bytes(range(256)) * 200  # a super-packet: the checksum field holds the sum of the pseudo header
MSS = b"\2\4\5\xb4\1\3\3\7"
LESS = b"\2\4\5\x78\1\3\3\7"  # 1400 for 1460
SOURCE_ROUTE = b"\x83\x07\x04\xc6\x33\x64\x01\0"


@dataclass(frozen=True)
class Row:
    """One packet and its fate. `then` replaces the configuration after the packets `before`: connections of servers
    that are not in it have this `fate`. `answer` is sent back.
    """

    name: str
    packet: bytes
    verdict: str
    reason: str
    out: bytes | None = None
    before: tuple[Sent, ...] = ()
    then: tuple[Virtual, ...] | None = None
    hook: int = PREROUTING
    flags: int = 0
    behind: bool = False  # the director takes less than comes
    policy: Policy = KIND
    answer: bytes | None = None
    fate: str = "remove"
    standby: bool = False  # the director is a backup, and a real server


def forwarded(name: str, packet: bytes, out: bytes, *before: Sent, hook: int = PREROUTING, flags: int = 0) -> Row:
    return Row(name, packet, "rewrite", "forwarded", out, before, hook=hook, flags=flags)


def returned(name: str, packet: bytes, out: bytes, *before: Sent, hook: int = FORWARD, flags: int = 0) -> Row:
    return Row(name, packet, "rewrite", "returned", out, before, hook=hook, flags=flags)


def accepted(name: str, reason: str, packet: bytes, *before: Sent, hook: int = PREROUTING) -> Row:
    return Row(name, packet, "accept", reason, None, before, hook=hook)


def dropped(name: str, reason: str, packet: bytes, *before: Sent, then: tuple[Virtual, ...] | None = None) -> Row:
    return Row(name, packet, "drop", reason, None, before, then)


def routed(name: str, packet: bytes, out: bytes, *before: Sent, hook: int = PREROUTING, flags: int = 0) -> Row:
    return Row(name, packet, "transmit", "routed", out, before, hook=hook, flags=flags)


def marked(name: str, packet: bytes, *before: Sent, flags: int = 0) -> Row:
    return Row(name, packet, "mark", "marked", None, before, flags=flags)


def tunnelled(name: str, packet: bytes, inner: bytes, *before: Sent, flags: int = 0, **outer: int) -> Row:
    if inner[0] >> 4 == 4:
        real = "10.0.0.35" if inner[16:20] == b"\xcb\0\x71\x23" else "10.0.0.32"
        out = ip("10.0.0.1", real, 4, inner, identification=0, **outer)  # type: ignore[arg-type]
    else:
        out = ip("fd00::1", "fd00::32", 41, inner, **outer)  # type: ignore[arg-type]
    return Row(name, packet, "transmit", "tunnelled", out, before, flags=flags)


def told(name: str, reason: str, packet: bytes, answer: bytes) -> Row:
    return Row(name, packet, "drop", reason, answer=answer)


def refused(name: str, packet: bytes, answer: bytes | None, *before: Sent, policy: Policy = KIND) -> Row:
    reason = "no_server" if policy.no_connection == "pass" else "refused"
    return Row(name, packet, "drop", reason, None, before, policy=policy, answer=answer)


def error(name: str, kind: str, packet: bytes, out: bytes, *before: Sent, hook: int) -> Row:
    return Row(name, packet, "rewrite", f"error_{kind}", out, before, hook=hook)


def announced(name: str, options: bytes, out: bytes, segment: str = "S", *before: Sent) -> Row:
    packet, changed = (tcp(CLIENT, MODEST, segment, options=options), tcp(CLIENT, SECOND, segment, options=out))
    return forwarded(f"mss, {name}", packet, changed, *before)


def tcp_options(**kind: bytes) -> tuple[bytes, bytes]:
    return tcp(CLIENT, WEB, "S", **kind), tcp(CLIENT, SECOND, "S", **kind)  # type: ignore[arg-type]


ROWS = [
    # -- from the client, TCP
    forwarded("tcp syn to the vip goes to the newest server", tcp(CLIENT, WEB), tcp(CLIENT, SECOND)),
    forwarded(
        "the next client's syn goes to the other", tcp("192.0.2.11:1", WEB), tcp("192.0.2.11:1", FIRST), *HANDSHAKE
    ),
    forwarded("tcp options pass", *tcp_options(options=MSS)),
    forwarded("ipv4 options pass", *tcp_options(ip_options=SOURCE_ROUTE)),
    forwarded("ethernet padding passes", *tcp_options(trailer=bytes(6))),
    forwarded("ttl is left to the kernel's forwarding", tcp(CLIENT, WEB, ttl=1), tcp(CLIENT, SECOND, ttl=1)),
    forwarded("odd payload", tcp(CLIENT, WEB, "PA", b"odd"), tcp(CLIENT, SECOND, "PA", b"odd"), *HANDSHAKE),
    forwarded("retransmitted syn", tcp(CLIENT, WEB), tcp(CLIENT, SECOND), *HANDSHAKE[:1]),
    forwarded("syn on a closed connection, new server", tcp(CLIENT, WEB), tcp(CLIENT, FIRST), *CLOSED),
    forwarded("rst on an open connection", tcp(CLIENT, WEB, "R"), tcp(CLIENT, SECOND, "R"), *HANDSHAKE),
    forwarded("the director's own client", tcp(CLIENT, WEB), tcp(CLIENT, SECOND), hook=OUTPUT),
    forwarded("ipv6 tcp syn", tcp(CLIENT6, WEB6), tcp(CLIENT6, FIRST6)),
    # -- a service that holds the segment size down
    announced("a syn announces no more than the service allows", MSS, LESS),
    announced("less is left as it is", b"\2\4\2\x18", b"\2\4\2\x18"),
    announced("behind an odd number of bytes", b"\1" + MSS[:4] + bytes(3), b"\1" + LESS[:4] + bytes(3)),
    announced("behind other options", b"\x04\2\3\3\7" + MSS[:4] + bytes(3), b"\x04\2\3\3\7" + LESS[:4] + bytes(3)),
    announced("no option, none is made", b"", b""),
    announced("behind the end of the options", b"\0\0\0\0" + MSS, b"\0\0\0\0" + MSS),
    announced("an option of no length ends the search", b"\x08\0" + MSS[:4] + bytes(2), b"\x08\0" + MSS[:4] + bytes(2)),
    announced("an option longer than the header", b"\x08\x63\0\0" + MSS, b"\x08\x63\0\0" + MSS),
    announced("of another length", b"\2\3\5\xb4", b"\2\3\5\xb4"),
    announced("its kind as the last byte", b"\1\1\1\2", b"\1\1\1\2"),
    announced("another segment is left as it is", MSS, MSS, "PA", (tcp(CLIENT, MODEST), PREROUTING)),
    forwarded("mss, ipv6", tcp(CLIENT6, MODEST6, options=MSS), tcp(CLIENT6, FIRST6, options=LESS)),
    forwarded(
        "mss, an unfinished checksum",
        tcp(CLIENT, MODEST, options=MSS, check="unfinished"),
        tcp(CLIENT, SECOND, options=LESS),
        flags=NOT_READY,
    ),
    returned(
        "mss, the server's syn/ack",
        tcp(SECOND, CLIENT, "SA", options=MSS),
        tcp(MODEST, CLIENT, "SA", options=LESS),
        (tcp(CLIENT, MODEST), PREROUTING),
    ),
    routed(
        "mss, direct", tcp(CLIENT, MODEST_DIRECT, options=MSS, ttl=9), tcp(CLIENT, MODEST_DIRECT, options=LESS, ttl=8)
    ),
    routed(
        "mss, direct, an unfinished checksum is left to the card",
        tcp(CLIENT, MODEST_DIRECT, options=MSS, check="unfinished", ttl=9),
        tcp(CLIENT, MODEST_DIRECT, options=LESS, check="unfinished", ttl=8),
        flags=NOT_READY,
    ),
    tunnelled(
        "mss, tunnelled",
        tcp(CLIENT, MODEST_TUNNEL, options=MSS),
        tcp(CLIENT, MODEST_TUNNEL, options=LESS, ttl=63),
        ttl=63,
    ),
    # -- from the client, UDP
    forwarded("udp datagram", udp(CLIENT, DNS, b"question"), udp(CLIENT, RESOLVER, b"question")),
    forwarded("udp datagram of odd length", udp(CLIENT, DNS, b"odd"), udp(CLIENT, RESOLVER, b"odd")),
    forwarded("empty udp datagram", udp(CLIENT, DNS), udp(CLIENT, RESOLVER)),
    forwarded(
        "udp datagram shorter than its packet",
        udp(CLIENT, DNS, b"abc", room=b"more"),
        udp(CLIENT, RESOLVER, b"abc", room=b"more"),
    ),
    forwarded("the longest udp datagram", udp(CLIENT, DNS, bytes(65507)), udp(CLIENT, RESOLVER, bytes(65507))),
    forwarded("ipv6 udp datagram", udp(CLIENT6, DNS6, b"abc"), udp(CLIENT6, RESOLVER6, b"abc")),
    forwarded(
        "ipv6 udp behind options and an atomic fragment",
        udp(CLIENT6, DNS6, b"abc", extensions=[(HOP_BY_HOP, b""), (DESTINATION_OPTIONS, b""), (FRAGMENT, bytes(6))]),
        udp(
            CLIENT6, RESOLVER6, b"abc", extensions=[(HOP_BY_HOP, b""), (DESTINATION_OPTIONS, b""), (FRAGMENT, bytes(6))]
        ),
    ),
    # -- every state of a checksum that NFQUEUE reports
    forwarded("tcp checksum not verified", tcp(CLIENT, WEB), tcp(CLIENT, SECOND), flags=NOT_VERIFIED),
    forwarded("tcp checksum unfinished", tcp(CLIENT, WEB, check="unfinished"), tcp(CLIENT, SECOND), flags=NOT_READY),
    forwarded(
        "tcp checksum unfinished, payload of odd length",
        tcp(CLIENT, WEB, "PA", b"odd", check="unfinished"),
        tcp(CLIENT, SECOND, "PA", b"odd"),
        *HANDSHAKE,
        flags=NOT_READY,
    ),
    forwarded(
        "tcp super-packet keeps its checksum field",
        tcp(CLIENT, WEB, "PA", BULK, check="unfinished"),
        swapped(tcp(CLIENT, SECOND, "PA", BULK), tcp(CLIENT, WEB, "PA", BULK, check="unfinished"), 36),
        *HANDSHAKE,
        flags=SUPER_PACKET | NOT_READY,
    ),
    returned(
        "tcp super-packet from the server, not marked unfinished",
        tcp(SECOND, CLIENT, "PA", BULK, check="unfinished"),
        swapped(tcp(WEB, CLIENT, "PA", BULK), tcp(SECOND, CLIENT, "PA", BULK, check="unfinished"), 36),
        *HANDSHAKE,
        flags=SUPER_PACKET,
    ),
    forwarded(
        "tcp super-packet to this machine is finished, since nobody cuts it",
        tcp(CLIENT, OWN, "PA", BULK, check="unfinished"),
        tcp(CLIENT, OWN_REAL, "PA", BULK),
        (tcp(CLIENT, OWN), PREROUTING),
        flags=SUPER_PACKET | NOT_READY,
    ),
    returned(
        "tcp super-packet to the director's own client is finished",
        tcp(SECOND, CLIENT, "PA", BULK, check="unfinished"),
        tcp(WEB, CLIENT, "PA", BULK),
        *HANDSHAKE,
        hook=INPUT,
        flags=SUPER_PACKET | NOT_READY,
    ),
    forwarded("udp checksum not verified", udp(CLIENT, DNS), udp(CLIENT, RESOLVER), flags=NOT_VERIFIED),
    forwarded("udp checksum unfinished", udp(CLIENT, DNS, check="unfinished"), udp(CLIENT, RESOLVER), flags=NOT_READY),
    forwarded("no udp checksum stays none", udp(CLIENT, DNS, check="none"), udp(CLIENT, RESOLVER, check="none")),
    forwarded(
        "udp checksum updated to zero is sent as ones", udp(CLIENT, DNS, TO_ZERO), udp(CLIENT, RESOLVER, TO_ZERO)
    ),
    forwarded(
        "udp checksum computed as zero is sent as ones",
        udp(CLIENT, DNS, TO_ZERO, check="unfinished"),
        udp(CLIENT, RESOLVER, TO_ZERO),
        flags=NOT_READY,
    ),
    forwarded("ipv6 tcp unfinished", tcp(CLIENT6, WEB6, check="unfinished"), tcp(CLIENT6, FIRST6), flags=NOT_READY),
    forwarded("ipv6 udp unfinished", udp(CLIENT6, DNS6, check="unfinished"), udp(CLIENT6, RESOLVER6), flags=NOT_READY),
    # -- from the server
    returned("syn/ack comes from the vip", tcp(SECOND, CLIENT, "SA"), tcp(WEB, CLIENT, "SA"), *HANDSHAKE[:1]),
    returned("data comes from the vip", tcp(SECOND, CLIENT, "PA", b"odd"), tcp(WEB, CLIENT, "PA", b"odd"), *HANDSHAKE),
    returned(
        "to the director's own client", tcp(SECOND, CLIENT, "SA"), tcp(WEB, CLIENT, "SA"), *HANDSHAKE[:1], hook=INPUT
    ),
    returned("at another hook", tcp(SECOND, CLIENT, "A"), tcp(WEB, CLIENT, "A"), *HANDSHAKE, hook=PREROUTING),
    returned("udp answer", udp(RESOLVER, CLIENT, b"abc"), udp(DNS, CLIENT, b"abc"), *ASKED),
    returned(
        "udp answer without checksum", udp(RESOLVER, CLIENT, check="none"), udp(DNS, CLIENT, check="none"), *ASKED
    ),
    returned(
        "udp answer unfinished", udp(RESOLVER, CLIENT, check="unfinished"), udp(DNS, CLIENT), *ASKED, flags=NOT_READY
    ),
    returned("ipv6 udp answer", udp(RESOLVER6, CLIENT6, b"abc"), udp(DNS6, CLIENT6, b"abc"), *ASKED6),
    # -- not ours, or not to be helped
    accepted("to a port without a service", "no_service", tcp(CLIENT, "203.0.113.1:82")),
    accepted("udp to a tcp service", "no_service", udp(CLIENT, WEB)),
    accepted("to an address without a service", "no_service", tcp(CLIENT, "203.0.113.2:80")),
    accepted("mid-stream tcp without a connection", "no_connection", tcp(CLIENT, WEB, "A")),
    accepted("rst without a connection", "no_connection", tcp(CLIENT, WEB, "R")),
    accepted("syn with rst", "no_connection", tcp(CLIENT, WEB, "SR")),
    accepted("from a real server on its own account", "unrelated", tcp(FIRST, "198.51.100.1:80"), hook=FORWARD),
    accepted(
        "from a real server to a client of another", "unrelated", tcp(FIRST, CLIENT, "A"), *HANDSHAKE, hook=FORWARD
    ),
    accepted("from another port of the server", "unrelated", tcp("10.0.0.3:81", CLIENT, "A"), *HANDSHAKE, hook=FORWARD),
    accepted("ping of the vip", "icmp", ip("192.0.2.10", "203.0.113.1", 1, b"\x08\0\xf7\xff" + bytes(4))),
    accepted("ping of the ipv6 vip", "icmp", ip("2001:db8:1::10", "2001:db8::1", 58, b"\x80\0" + bytes(6))),
    accepted("gre to the vip", "other_protocol", ip("192.0.2.10", "203.0.113.1", 47, bytes(8))),
    accepted("dccp to the vip", "other_protocol", ip("192.0.2.10", "203.0.113.1", 33, bytes(12))),
    accepted(
        "ah covers what nat would change", "other_protocol", tcp(CLIENT6, WEB6, extensions=[(AUTHENTICATION, b"")])
    ),
    accepted(
        "routing header with more to visit", "other_protocol", tcp(CLIENT6, WEB6, extensions=[(ROUTING, b"\0\1")])
    ),
    # -- icmp errors, in the direction of the connection against which they travel
    error(
        "from behind the director about a request",
        "returned",
        icmp("10.0.0.1", "192.0.2.10", 3, 1, tcp(CLIENT, SECOND)[:28]),
        icmp("203.0.113.1", "192.0.2.10", 3, 1, tcp(CLIENT, WEB)[:24] + tcp(CLIENT, SECOND)[24:28]),
        *HANDSHAKE,
        hook=FORWARD,
    ),
    error(
        "from the server to the director's own client",
        "returned",
        icmp("10.0.0.2", "192.0.2.10", 3, 3, udp(CLIENT, RESOLVER, b"?")),
        icmp("203.0.113.1", "192.0.2.10", 3, 3, swapped(udp(CLIENT, DNS, b"?"), udp(CLIENT, RESOLVER, b"?"), 26)),
        *ASKED,
        hook=INPUT,
    ),
    error("from the client's side about a reply", "forwarded", TOO_BIG, TOO_BIG_INSIDE, *HANDSHAKE, hook=PREROUTING),
    error(
        "ipv6 time exceeded about a reply",
        "forwarded",
        icmp("2001:db8:2::1", "2001:db8::1", 3, 0, udp(DNS6, CLIENT6, b"abc")),
        icmp(
            "2001:db8:2::1", "fd00::2", 3, 0, swapped(udp(RESOLVER6, CLIENT6, b"abc"), udp(DNS6, CLIENT6, b"abc"), 46)
        ),
        *ASKED6,
        hook=PREROUTING,
    ),
    error(
        "ipv6 packet too big about a request",
        "returned",
        icmp("fd00::1", "2001:db8:1::10", 2, 0, udp(CLIENT6, RESOLVER6, b"abc"), rest=b"\0\0\5\0"),
        icmp(
            "2001:db8::1",
            "2001:db8:1::10",
            2,
            0,
            swapped(udp(CLIENT6, DNS6, b"abc"), udp(CLIENT6, RESOLVER6, b"abc"), 46),
            rest=b"\0\0\5\0",
        ),
        *ASKED6,
        hook=FORWARD,
    ),
    accepted("an error about no connection", "icmp", TOO_BIG),
    accepted("an error that quotes too little", "icmp", icmp("192.0.2.1", "203.0.113.1", 3, 4, bytes(19)), *HANDSHAKE),
    accepted(
        "an error about a later fragment",
        "icmp",
        icmp("192.0.2.1", "203.0.113.1", 11, 1, tcp(WEB, CLIENT, fragment=1)[:28]),
        *HANDSHAKE,
    ),
    # -- direct routing: nothing changes but the time to live
    routed("direct syn", tcp(CLIENT, DIRECT, ttl=9), tcp(CLIENT, DIRECT, ttl=8)),
    routed("direct, ipv4 options", *(tcp(CLIENT, DIRECT, ip_options=SOURCE_ROUTE, ttl=ttl) for ttl in (9, 8))),
    routed("direct, the last time to live that goes on", tcp(CLIENT, DIRECT, ttl=2), tcp(CLIENT, DIRECT, ttl=1)),
    routed("direct, ipv6", tcp(CLIENT6, DIRECT6, ttl=255), tcp(CLIENT6, DIRECT6, ttl=254)),
    routed("direct, udp without checksum", *(udp(CLIENT, DIRECT, b"?", check="none", ttl=ttl) for ttl in (9, 8))),
    routed(
        "direct, an unfinished checksum is left to the card",
        tcp(CLIENT, DIRECT, check="unfinished", ttl=9),
        tcp(CLIENT, DIRECT, check="unfinished", ttl=8),
        flags=NOT_READY,
    ),
    routed(
        "direct, a super-packet is cut on its way",
        tcp(CLIENT, NARROW, "PA", BULK, check="unfinished", ttl=9),
        tcp(CLIENT, NARROW, "PA", BULK, check="unfinished", ttl=8),
        (tcp(CLIENT, NARROW), PREROUTING),
        flags=NOT_READY | SUPER_PACKET,
    ),
    routed(
        "direct, too long and may be cut",
        udp(CLIENT, NARROW, bytes(2000), fragment=0, ttl=9),
        udp(CLIENT, NARROW, bytes(2000), fragment=0, ttl=8),
    ),
    routed("direct, a long datagram over ipv6", *(udp(CLIENT6, NARROW6, bytes(2000), ttl=ttl) for ttl in (9, 8))),
    Row(
        "direct, an error about a reply",
        icmp("192.0.2.1", "203.0.113.22", 3, 4, tcp(DIRECT, CLIENT, "A", b"reply"), rest=b"\0\0\5\0", ttl=9),
        "transmit",
        "error_routed",
        icmp("192.0.2.1", "203.0.113.22", 3, 4, tcp(DIRECT, CLIENT, "A", b"reply"), rest=b"\0\0\5\0", ttl=8),
        ((tcp(CLIENT, DIRECT), PREROUTING),),
    ),
    accepted("direct, what the server sends is its own", "unrelated", tcp("10.0.0.12:80", CLIENT, "A"), hook=FORWARD),
    accepted("direct, to this machine", "local", tcp(CLIENT, HERE, ttl=1)),
    dropped("direct, the server answers no arp", "no_neighbour", tcp(CLIENT, ASIDE)),
    told(
        "direct, the time to live ends",
        "ttl_exceeded",
        tcp(CLIENT, DIRECT, ttl=1),
        icmp("203.0.113.22", "192.0.2.10", 11, 0, tcp(CLIENT, DIRECT, ttl=1), identification=0),
    ),
    told(
        "direct, the hop limit ends",
        "ttl_exceeded",
        tcp(CLIENT6, DIRECT6, ttl=1),
        icmp("2001:db8::2", "2001:db8:1::10", 3, 0, tcp(CLIENT6, DIRECT6, ttl=1)),
    ),
    told(
        "direct, too long and not to be cut",
        "too_big",
        udp(CLIENT, NARROW, bytes(2000)),
        icmp(
            "203.0.113.25",
            "192.0.2.10",
            3,
            4,
            udp(CLIENT, NARROW, bytes(2000))[:548],
            rest=(600).to_bytes(4),
            identification=0,
        ),
    ),
    told(
        "direct, too long a segment over ipv6",
        "too_big",
        tcp(CLIENT6, NARROW6, "S", bytes(2000)),
        icmp(
            "2001:db8::5",
            "2001:db8:1::10",
            2,
            0,
            tcp(CLIENT6, NARROW6, "S", bytes(2000))[:1232],
            rest=(1280).to_bytes(4),
        ),
    ),
    # -- direct routing by a mark: the kernel sees to everything, and keeps the payload
    marked("by a mark, syn", tcp(CLIENT, STEERED)),
    marked("by a mark, ipv6", tcp(CLIENT6, STEERED6)),
    marked("by a mark, the time to live is the kernel's", udp(CLIENT, STEERED, b"?", ttl=1)),
    marked("by a mark, the head of a super-packet", tcp(CLIENT, STEERED, "S", BULK)[:128], flags=HEAD | SUPER_PACKET),
    marked("by a mark, the head of a datagram", udp(CLIENT, STEERED, bytes(2000))[:28], flags=HEAD),
    marked("by a mark, the head of an ipv6 datagram", udp(CLIENT6, STEERED6, bytes(2000))[:128], flags=HEAD),
    Row(
        "by a mark, an error about a reply",
        icmp("192.0.2.1", "203.0.113.26", 3, 4, tcp(STEERED, CLIENT, "A", b"reply"), rest=b"\0\0\5\0"),
        "mark",
        "error_marked",
        before=((tcp(CLIENT, STEERED), PREROUTING),),
    ),
    *(
        Row(f"a head alone, {name}", packet, "drop", "truncated", flags=HEAD)
        for name, packet in (
            ("for nat", udp(CLIENT, DNS, bytes(2000))[:128]),
            ("for a frame", udp(CLIENT, DIRECT, bytes(2000))[:128]),
            ("for a tunnel", udp(CLIENT, TUNNEL, bytes(2000))[:128]),
            ("without its transport header", tcp(CLIENT, STEERED)[:39]),
            ("without its ports", udp(CLIENT, STEERED)[:27]),
            ("of extensions", udp(CLIENT6, STEERED6, extensions=[(DESTINATION_OPTIONS, bytes(100))])[:45]),
            ("of an icmp error", icmp("192.0.2.1", "203.0.113.26", 3, 4, tcp(STEERED, CLIENT, "A"))[:48]),
        )
    ),
    Row(
        "a head alone, and nobody to take it",
        udp(CLIENT, DRAINED, bytes(2000))[:128],
        "drop",
        "no_server",
        flags=HEAD,
        answer=icmp("203.0.113.1", "192.0.2.10", 3, 3, udp(CLIENT, DRAINED, bytes(2000))[:128], identification=0),
    ),
    # -- tunnelling: a header in front, TTL and DF as inside
    tunnelled("tunnelled syn", tcp(CLIENT, TUNNEL, ttl=9), tcp(CLIENT, TUNNEL, ttl=8), ttl=8),
    tunnelled(
        "tunnelled, and may be cut", *(udp(CLIENT, TUNNEL, fragment=0, ttl=ttl) for ttl in (9, 8)), ttl=8, fragment=0
    ),
    tunnelled("tunnelled, ipv6", *(tcp(CLIENT6, TUNNEL6, ttl=ttl) for ttl in (9, 8)), ttl=8),
    tunnelled(
        "tunnelled, an unfinished checksum is finished",
        udp(CLIENT, TUNNEL, b"odd", check="unfinished", ttl=9),
        udp(CLIENT, TUNNEL, b"odd", ttl=8),
        flags=NOT_READY,
        ttl=8,
    ),
    tunnelled(
        "tunnelled, a super-packet is cut later",
        tcp(CLIENT, TUNNEL, "PA", BULK, check="unfinished", ttl=9),
        tcp(CLIENT, TUNNEL, "PA", BULK, check="unfinished", ttl=8),
        (tcp(CLIENT, TUNNEL), PREROUTING),
        flags=NOT_READY | SUPER_PACKET,
        ttl=8,
    ),
    tunnelled("tunnelled, as long as can be", *(udp(CLIENT, THIN, bytes(572), ttl=ttl) for ttl in (9, 8)), ttl=8),
    told(
        "tunnelled, too long by one",
        "too_big",
        udp(CLIENT, THIN, bytes(573)),
        icmp(
            "203.0.113.35",
            "192.0.2.10",
            3,
            4,
            udp(CLIENT, THIN, bytes(573))[:548],
            rest=(600).to_bytes(4),
            identification=0,
        ),
    ),
    Row(
        "an error about a packet in a tunnel",
        icmp(
            "10.9.9.9", "10.0.0.1", 3, 4, ip("10.0.0.1", "10.0.0.32", 4, tcp(CLIENT, TUNNEL)), rest=(1400).to_bytes(4)
        ),
        "accept",
        "error_reissued",
        before=((tcp(CLIENT, TUNNEL), PREROUTING),),
        hook=INPUT,
        answer=icmp("203.0.113.32", "192.0.2.10", 3, 4, tcp(CLIENT, TUNNEL), rest=(1380).to_bytes(4), identification=0),
    ),
    Row(
        "an ipv6 error about a packet in a tunnel",
        icmp("fd00::9", "fd00::1", 1, 0, ip("fd00::1", "fd00::32", 41, tcp(CLIENT6, TUNNEL6))),
        "accept",
        "error_reissued",
        before=((tcp(CLIENT6, TUNNEL6), PREROUTING),),
        hook=INPUT,
        answer=icmp("2001:db8::32", "2001:db8:1::10", 1, 0, tcp(CLIENT6, TUNNEL6)),
    ),
    accepted(
        "an error about a tunnel of somebody else",
        "icmp",
        icmp("10.9.9.9", "10.0.0.1", 3, 1, ip("10.0.0.1", "10.0.0.32", 4, tcp(CLIENT, TUNNEL))),
        hook=INPUT,
    ),
    # -- nobody is there
    refused(
        "no server has a weight",
        tcp(CLIENT, DRAINED),
        icmp("203.0.113.1", "192.0.2.10", 3, 3, tcp(CLIENT, DRAINED), identification=0),
    ),
    refused(
        "no server, a long packet is quoted in part",
        udp(CLIENT, DRAINED, bytes(2000)),
        icmp("203.0.113.1", "192.0.2.10", 3, 3, udp(CLIENT, DRAINED, bytes(2000))[:548], identification=0),
    ),
    refused(
        "no server, ipv6",
        udp(CLIENT6, DRAINED6, bytes(2000)),
        icmp("2001:db8::1", "2001:db8:1::10", 1, 4, udp(CLIENT6, DRAINED6, bytes(2000))[:1232]),
    ),
    refused(
        "no server, the syn is reset",
        tcp(CLIENT, DRAINED, "S", b"early", seq=2**32 - 3),
        tcp(DRAINED, CLIENT, "RA", seq=0, ack=3, window=0, identification=0),
        policy=Policy("reset"),
    ),
    refused("no server, and nobody is told", tcp(CLIENT, DRAINED), None, policy=Policy("drop")),
    refused(
        "no server, but from nowhere",
        udp("0.0.0.0:40000", DRAINED),
        None,
    ),
    refused(
        "mid-stream tcp is reset",
        tcp(CLIENT, WEB, "A", ack=77),
        tcp(WEB, CLIENT, "R", seq=77, window=0, identification=0),
        policy=Policy(no_connection="reset"),
    ),
    refused("mid-stream tcp is dropped", tcp(CLIENT, WEB, "A"), None, policy=Policy(no_connection="drop")),
    refused("a reset is not answered", tcp(CLIENT, WEB, "R"), None, policy=Policy(no_connection="reset")),
    Row(
        "mid-stream tcp begins a connection",
        tcp(CLIENT, WEB, "A"),
        "rewrite",
        "forwarded",
        tcp(CLIENT, SECOND, "A"),
        policy=Policy(sloppy=True),
    ),
    # -- dropped
    dropped("an icmp error damaged on its way", "bad_checksum", TOO_BIG[:-1] + b"!", *HANDSHAKE),
    Row("a new connection, while more comes than can be taken", tcp(CLIENT, WEB), "drop", "shed", behind=True),
    Row("a new flow of datagrams, then", udp(CLIENT, DNS), "drop", "shed", behind=True),
    Row(
        "a connection that is there goes on",
        tcp(CLIENT, WEB, "PA", b"data"),
        "rewrite",
        "forwarded",
        tcp(CLIENT, SECOND, "PA", b"data"),
        HANDSHAKE,
        behind=True,
    ),
    Row(
        "a new connection, while drop_packet is up",
        tcp(CLIENT, WEB),
        "drop",
        "drop_packet",
        policy=Policy(drop_packet=3, am_droprate=1),
    ),
    Row(
        "a new connection, while there are as many as there may be",
        tcp(CLIENT, WEB),
        "drop",
        "limited",
        None,
        ((tcp("192.0.2.11:1", WEB), PREROUTING),),
        policy=Policy(connections_max=1),
    ),
    Row(
        "a first datagram of SIP without a Call-ID",
        udp(CLIENT, DNS, b"OPTIONS sip:a SIP/2.0\r\n"),
        "drop",
        "no_call_id",
        then=(Virtual(DNS, {RESOLVER: 1}, protocol="udp", persistence=60, by_call=True),),
    ),
    Row("first of a connection, to a backup", tcp(CLIENT, DIRECT), "accept", "standby", standby=True),
    Row("datagram to a backup", udp(CLIENT, DNS), "accept", "standby", standby=True),
    Row("mid-stream, to a backup", tcp(CLIENT, DIRECT, "A"), "accept", "standby", standby=True),
    Row("another server's, to a backup", tcp(CLIENT, WEB, "A"), "drop", "not_master", None, HANDSHAKE, standby=True),
    Row("another server's, begun anew", tcp(CLIENT, WEB), "accept", "standby", None, HANDSHAKE, standby=True),
    Row(
        "icmp error to a backup",
        icmp("192.0.2.1", "203.0.113.22", 3, 4, tcp(DIRECT, CLIENT, "A", b"reply"), rest=b"\0\0\5\0", ttl=9),
        "accept",
        "icmp",
        None,
        ((tcp(CLIENT, DIRECT), PREROUTING),),
        standby=True,
    ),
    Row(
        "a reply of nat, through a backup",
        tcp(SECOND, CLIENT, "A"),
        "rewrite",
        "returned",
        tcp(WEB, CLIENT, "A"),
        HANDSHAKE,
        hook=FORWARD,
        standby=True,
    ),
    dropped("the table is full", "table_full", tcp(CLIENT, WEB), *FULL),
    dropped(
        "the server was removed", "server_gone", tcp(CLIENT, WEB, "A"), *HANDSHAKE, then=(Virtual(WEB, {FIRST: 1}),)
    ),
    Row(
        "the server is down, and its clients are reset",
        tcp(CLIENT, WEB, "PA", b"x", ack=77),
        "drop",
        "server_down",
        None,
        HANDSHAKE,
        (Virtual(WEB, {FIRST: 1}),),
        answer=tcp(WEB, CLIENT, "R", seq=77, window=0, identification=0),
        fate="reset",
    ),
    dropped("the service was removed", "server_gone", tcp(CLIENT, WEB, "A"), *HANDSHAKE, then=(DNS_SERVICE,)),
    dropped("first fragment", "fragment", fragments(udp(CLIENT, DNS, bytes(64)), 32)[0]),
    dropped("last fragment", "fragment", fragments(udp(CLIENT, DNS, bytes(64)), 32)[-1]),
    dropped("ipv6 fragment", "fragment", fragments(udp(CLIENT6, DNS6, bytes(64)), 32)[0]),
    dropped("cut off", "truncated", tcp(CLIENT, WEB, "PA", b"data")[:-1]),
    dropped("tcp header cut off", "truncated", tcp(CLIENT, WEB)[:30]),
    dropped("no bytes", "malformed", b""),
    dropped("half an ip header", "malformed", tcp(CLIENT, WEB)[:10]),
    dropped("udp longer than its packet", "malformed", udp(CLIENT, DNS)[:24] + b"\0\x09" + udp(CLIENT, DNS)[26:]),
    dropped("nine extension headers", "malformed", tcp(CLIENT6, WEB6, extensions=[(DESTINATION_OPTIONS, b"")] * 9)),
]
