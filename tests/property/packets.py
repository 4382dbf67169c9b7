"""Strategies: ends of flows, payloads, whole packets, and packets with something wrong."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from nfqlb.testing import fragments, icmp, ip, tcp, udp

End = tuple[str, str, str]  # client, VIP, real server

payloads = st.binary(max_size=64)
options = st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4])  # whole words
ports = st.integers(1, 65535)


@st.composite
def ends(draw: st.DrawFn) -> End:
    """Three different ends of one family."""
    if draw(st.booleans()):
        found = draw(st.lists(st.integers(1, 2**32 - 1), min_size=3, max_size=3, unique=True))
        texts = [str(ipaddress.IPv4Address(number)) for number in found]
    else:
        # none that IPv4 addresses are written as
        found = draw(st.lists(st.integers(2**64, 2**128 - 1), min_size=3, max_size=3, unique=True))
        texts = [f"[{ipaddress.IPv6Address(number)}]" for number in found]
    client, vip, real = (f"{text}:{draw(ports)}" for text in texts)
    return client, vip, real


ENDS4 = "192.0.2.10:40000", "203.0.113.1:80"
ENDS6 = "[2001:db8:1::10]:40000", "[2001:db8::1]:80"
CHAINS: list[list[tuple[int, bytes]]] = [
    [(0, b"")],
    [(60, bytes(14)), (44, bytes(6))],
    [(43, bytes(22))],
    [(51, bytes(10))],
]
CORPUS = [
    *(tcp(*pair, segment, b"payload") for pair in (ENDS4, ENDS6) for segment in ("S", "A", "FA", "R", "")),
    *(udp(*pair, payload) for pair in (ENDS4, ENDS6) for payload in (b"", b"odd", bytes(40))),
    tcp(*ENDS4, options=bytes(40), ip_options=bytes(40)),
    udp(*ENDS4, room=b"behind", trailer=b"padding"),
    *(make(*ENDS6, extensions=chain) for make in (tcp, udp) for chain in CHAINS),
    *(piece for pair in (ENDS4, ENDS6) for piece in fragments(udp(*pair, bytes(40)), 24)),
    *(icmp("192.0.2.10", "203.0.113.1", kind, 1, tcp(*ENDS4[::-1], "A")[:28]) for kind in (3, 4, 11, 12, 8)),
    *(icmp("2001:db8:1::10", "2001:db8::1", kind, 0, udp(*ENDS6[::-1])) for kind in (1, 2, 3, 4, 128)),
    *(ip("192.0.2.10", "203.0.113.1", protocol, bytes(24)) for protocol in (1, 2, 47, 58, 132)),
    *(ip("2001:db8:1::10", "2001:db8::1", protocol, bytes(24)) for protocol in (1, 58, 59, 132)),
]
changes = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4)


def damage(packet: bytes, changed: list[tuple[int, int]], length: int, more: bytes) -> bytes:
    """The packet with bytes changed, lost and added."""
    data = bytearray(packet)
    for at, value in changed:
        data[at % len(data)] = value
    return bytes(data[:length]) + more


damaged = st.builds(
    damage, st.sampled_from(CORPUS), changes, st.one_of(st.just(200), st.integers(0, 120)), st.binary(max_size=4)
)
anything = st.one_of(st.binary(max_size=120), damaged, st.sampled_from(CORPUS))
