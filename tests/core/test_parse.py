"""Bytes to a checked packet, against literal bytes: what each field is, and what every wrong length comes to."""

from __future__ import annotations

import pytest

from nfqlb._core.packet import view
from nfqlb.testing import HOP_BY_HOP, endpoint, fragments, ip, tcp, udp

# 192.0.2.10:40000 -> 203.0.113.1:80, SYN, no options, 40 bytes
TCP4 = bytes.fromhex(
    "45000028 00014000 4006 3cc3 c000020a cb007101"  # IPv4
    "9c40 0050 000003e8 00000000 5002 faf0 166d 0000"  # TCP
)
# the same with an IPv4 router alert option and a maximum segment size
TCP4_OPTIONS = bytes.fromhex(
    "46000030 00014000 4006 a7b6 c000020a cb007101 940400009c40 0050 000003e8 00000000 6002 faf0 fead 0000 020405b4"
)
# 192.0.2.10:5353 -> 203.0.113.1:53, "abc": an odd length
UDP4 = bytes.fromhex("4500001f 00014000 4011 3cc1 c000020a cb007101  14e9 0035 000b 284b 616263")
# [2001:db8::10]:40000 -> [2001:db8::1]:443, ACK, four bytes
TCP6 = bytes.fromhex(
    "60000000 0018 06 40 20010db8000000000000000000000010 20010db8000000000000000000000001"
    "9c40 01bb 00000001 00000002 5010 0400 1234 0000 61626364"
)
# [2001:db8::10]:5353 -> [2001:db8::1]:53 behind hop-by-hop options, destination options and an atomic fragment
UDP6_EXTENSIONS = bytes.fromhex(
    "60000000 002a 00 40 20010db8000000000000000000000010 20010db8000000000000000000000001"
    "3c00 0104 00000000"
    "2c01 010c 00000000 00000000 00000000"
    "1100 0000 00000007"
    "14e9 0035 000a 0000 6869"
)
PACKETS = {
    "ipv4 tcp": TCP4,
    "ipv4 tcp with options": TCP4_OPTIONS,
    "ipv4 udp of odd length": UDP4,
    "ipv6 tcp": TCP6,
    "ipv6 udp behind extension headers": UDP6_EXTENSIONS,
    "ipv4 fragment": fragments(udp("192.0.2.1:1", "192.0.2.2:2", bytes(64)), 32)[0],
    "ipv6 fragment": fragments(udp("[2001:db8::1]:1", "[2001:db8::2]:2", bytes(64)), 32)[1],
    "ipv4 echo": ip("192.0.2.1", "192.0.2.2", 1, bytes(8)),
    "ipv6 echo": ip("2001:db8::1", "2001:db8::2", 58, bytes(8)),
    "ipv4 gre": ip("192.0.2.1", "192.0.2.2", 47, bytes(4)),
    "ipv6 behind a routing header": tcp("[2001:db8::1]:1", "[2001:db8::2]:2", extensions=[(43, b"\0\1" + bytes(20))]),
}


def edited(packet: bytes, at: int, text: str) -> bytes:
    new = bytes.fromhex(text)
    return packet[:at] + new + packet[at + len(new) :]


@pytest.mark.parametrize("packet", [TCP4, TCP4 + b"\0" * 6], ids=["exact", "padded by ethernet"])
def test_ipv4_tcp(packet: bytes) -> None:
    seen = view(packet)
    assert seen.reason is None
    assert (seen.version, seen.protocol, seen.length, seen.transport) == (4, 6, 40, 20)
    assert seen.source == bytes.fromhex("00000000000000000000ffffc000020a")
    assert seen.destination == bytes.fromhex("00000000000000000000ffffcb007101")
    assert (seen.sport, seen.dport, seen.segment) == (40000, 80, 2)


def test_ipv4_tcp_with_options_in_both_headers() -> None:
    seen = view(TCP4_OPTIONS)
    assert (seen.reason, seen.length, seen.transport) == (None, 48, 24)
    assert (seen.sport, seen.dport, seen.segment) == (40000, 80, 2)


def test_ipv4_udp_of_odd_length() -> None:
    seen = view(UDP4)
    assert (seen.reason, seen.protocol, seen.length, seen.transport) == (None, 17, 31, 20)
    assert (seen.sport, seen.dport, seen.segment) == (5353, 53, 0)


def test_ipv6_tcp() -> None:
    seen = view(TCP6)
    assert seen.reason is None
    assert (seen.version, seen.protocol, seen.length, seen.transport) == (6, 6, 64, 40)
    assert seen.source == bytes.fromhex("20010db8000000000000000000000010")
    assert seen.destination == bytes.fromhex("20010db8000000000000000000000001")
    assert (seen.sport, seen.dport, seen.segment) == (40000, 443, 16)


def test_ipv6_udp_behind_extension_headers_and_an_atomic_fragment() -> None:
    seen = view(UDP6_EXTENSIONS)
    assert (seen.reason, seen.protocol, seen.length, seen.transport) == (None, 17, 82, 72)
    assert (seen.sport, seen.dport) == (5353, 53)


@pytest.mark.parametrize("name", PACKETS)
def test_every_truncation_is_malformed_or_truncated(name: str) -> None:
    packet = PACKETS[name]
    assert view(packet).reason not in ("malformed", "truncated")
    least = 20 if packet[0] >> 4 == 4 else 40
    for length in range(len(packet)):
        assert view(packet[:length]).reason == ("malformed" if length < least else "truncated"), length


@pytest.mark.parametrize("name", ["ipv4 tcp", "ipv4 tcp with options", "ipv4 udp of odd length", "ipv6 tcp"])
def test_an_ip_length_too_short_for_the_headers_is_malformed(name: str) -> None:
    """The bytes are there, but the IP header says that they are not of this packet."""
    packet = PACKETS[name]
    at, base = (2, 0) if packet[0] >> 4 == 4 else (4, 40)
    seen = view(packet)
    least = seen.transport + (packet[seen.transport + 12] >> 4) * 4 if seen.protocol == 6 else seen.length
    for length in range(least - base):
        assert view(edited(packet, at, f"{length:04x}")).reason == "malformed", length
    assert view(edited(packet, at, f"{least - base:04x}")).reason is None


CHANGED = {
    "no bytes": (b"", "malformed"),
    "ip version 5": (edited(TCP4, 0, "55"), "malformed"),
    "ipv4 header of 16 bytes": (edited(TCP4, 0, "44"), "malformed"),
    "ipv4 header of 60 bytes in a packet of 40": (edited(TCP4, 0, "4f"), "malformed"),
    "tcp header of 16 bytes": (edited(TCP4, 32, "40"), "malformed"),
    "tcp header behind the end": (edited(TCP4, 32, "60"), "malformed"),
    "one byte short of the ip length": (edited(TCP4, 2, "0029"), "truncated"),
    "more fragments": (edited(TCP4, 6, "2000"), "fragment"),
    "fragment offset": (edited(TCP4, 6, "0001"), "fragment"),
    "the reserved bit beside the fragment offset": (edited(TCP4, 6, "8000"), None),
    "icmp": (edited(TCP4, 9, "01"), "icmp"),
    "icmpv6 in ipv4": (edited(TCP4, 9, "3a"), "other_protocol"),
    "dccp": (edited(TCP4, 9, "21"), "other_protocol"),
    "datagram longer than its room": (edited(UDP4, 24, "000c"), "malformed"),
    "datagram shorter than its own header": (edited(UDP4, 24, "0007"), "malformed"),
    "datagram of length 0": (edited(UDP4, 24, "0000"), "malformed"),
    "datagram shorter than its room": (edited(UDP4, 24, "0008"), None),
    "no next header": (edited(TCP6, 6, "3b"), "other_protocol"),
    "icmpv6": (edited(TCP6, 6, "3a"), "icmp"),
    "icmp in ipv6": (edited(TCP6, 6, "01"), "other_protocol"),
    "authentication header, which covers addresses and ports": (edited(TCP6, 6, "33"), "other_protocol"),
    "options behind the end, then nothing known": (edited(TCP6, 6, "3c"), "other_protocol"),
    "options behind the end, then tcp": (edited(edited(TCP6, 6, "3c"), 40, "06"), "malformed"),
    "fragment header with an offset": (edited(UDP6_EXTENSIONS, 66, "0008"), "fragment"),
    "fragment header with more to come": (edited(UDP6_EXTENSIONS, 66, "0001"), "fragment"),
    "reserved bits of an atomic fragment": (edited(UDP6_EXTENSIONS, 66, "0006"), None),
    "options that swallow the rest": (edited(UDP6_EXTENSIONS, 49, "03"), "malformed"),
    "options that leave the packet": (edited(UDP6_EXTENSIONS, 49, "ff"), "malformed"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_one_field_changed(name: str) -> None:
    packet, reason = CHANGED[name]
    assert view(packet).reason == reason


@pytest.mark.parametrize("left", [0, 1])
def test_a_routing_header_with_segments_left_is_not_ours(left: int) -> None:
    packet = tcp("[2001:db8::1]:1", "[2001:db8::2]:2", extensions=[(43, bytes((2, left)) + bytes(20))])
    assert view(packet).reason == ("other_protocol" if left else None)


def test_eight_extension_headers_are_followed_and_no_more() -> None:
    for count in range(12):
        packet = udp("[2001:db8::1]:1", "[2001:db8::2]:2", extensions=[(HOP_BY_HOP, b"")] * count)
        assert view(packet).reason == (None if count <= 8 else "malformed")


def test_the_longest_packets_of_both_families() -> None:
    assert view(udp("192.0.2.1:1", "192.0.2.2:2", bytes(65507))).length == 65535
    seen = view(tcp("[2001:db8::1]:1", "[2001:db8::2]:2", "A", bytes(65515)))
    assert (seen.reason, seen.length, seen.source) == (None, 65575, endpoint("[2001:db8::1]:1").address)
