"""The decoder of the network tests: what is right passes, and every fault that it is there for is found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netns.tap import Seen
from tests.netns.decode import Account, Scene

DIRECTOR, ROUTER, FIRST, SECOND = (f"02:00:00:00:00:0{number}" for number in range(1, 5))
CLIENT = {4: "192.0.2.10", 6: "2001:db8:1::10"}
VIP = {4: "203.0.113.1", 6: "2001:db8::1"}
OWN = {4: "10.0.0.1", 6: "fd00::1"}
SERVER = {4: "10.0.0.2", 6: "fd00::2"}
OTHER = {4: "10.0.0.3", 6: "fd00::3"}
DATA = bytes(range(200))
MODES = ["nat", "dr", "tun"]
FAMILIES = [4, 6]
NUMBERS = itertools.count(99)  # of tunnel packets


def scene(mode: str) -> Scene:
    port = 8080 if mode == "nat" else 80
    return Scene(
        mode=mode,
        own=frozenset([*VIP.values(), *OWN.values()]),
        devices={"eth0": DIRECTOR},
        macs={**dict.fromkeys(SERVER.values(), FIRST), **dict.fromkeys(OTHER.values(), SECOND)},
        router=ROUTER,
        services={
            (protocol, VIP[family], 80): frozenset({(SERVER[family], port), (OTHER[family], port)})
            for protocol in (6, 17)
            for family in FAMILIES
        },
    )


def ip(family: int, source: str, target: str, ttl: int = 64, **more: Any) -> Packet:
    if family == 4:
        return IP(src=source, dst=target, ttl=ttl, **{"id": 7, "flags": "DF", "tos": 8, **more})
    return IPv6(src=source, dst=target, hlim=ttl, **{"tc": 8, "fl": 5, **more})


def segment(sport: int, dport: int, data: bytes = DATA, **more: Any) -> Packet:
    return TCP(sport=sport, dport=dport, **{"seq": 1000, "ack": 2000, "flags": "PA", **more}) / Raw(data)


def came(packet: Packet, unfinished: bool = False) -> Seen:
    return Seen("eth0", False, unfinished, bytes(Ether(src=ROUTER, dst=DIRECTOR) / packet))


def left(packet: Packet, target: str = FIRST, source: str = DIRECTOR, unfinished: bool = False) -> Seen:
    return Seen("eth0", True, unfinished, bytes(Ether(src=source, dst=target) / packet))


def request(family: int) -> Seen:
    return came(ip(family, CLIENT[family], VIP[family], 60) / segment(40000, 80))


def forwarded(mode: str, family: int) -> Packet:
    """What the request must leave as."""
    target, port = (SERVER[family], 8080) if mode == "nat" else (VIP[family], 80)
    packet = ip(family, CLIENT[family], target, 59) / segment(40000, port)
    return around(packet) if mode == "tun" else packet


def around(packet: Packet, **more: Any) -> Packet:
    """A tunnel."""
    if packet.version == 4:
        front = {"ttl": packet.ttl, "tos": packet.tos, "flags": packet.flags & "DF", "proto": 4, "id": next(NUMBERS)}
    else:
        front = {"hlim": packet.hlim, "tc": packet.tc, "fl": packet.fl, "nh": 41}
    ends = {"src": OWN[packet.version], "dst": SERVER[packet.version]}
    return type(packet)(**{**front, **ends, **more}) / packet


def faults(mode: str, *seen: Seen) -> list[str]:
    account = Account(scene(mode))
    account.feed(seen)
    account.close()
    assert account.checked == sum(packet.out for packet in seen)
    return account.faults


def only(mode: str, *seen: Seen) -> str:
    """The one fault."""
    (fault,) = faults(mode, *seen)
    return fault


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_what_the_methods_do_is_right(mode: str, family: int) -> None:
    assert faults(mode, request(family), left(forwarded(mode, family))) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_has_the_vip_as_its_source(family: int) -> None:
    answer = came(ip(family, SERVER[family], CLIENT[family], 64) / segment(8080, 40000))
    after = ip(family, VIP[family], CLIENT[family], 63)
    assert faults("nat", answer, left(after / segment(80, 40000), ROUTER)) == []
    assert "entered nowhere" in only("nat", answer, left(after / segment(80, 40001), ROUTER))
    assert "destination MAC" in only("nat", answer, left(after / segment(80, 40000), FIRST))
    assert "changed in ttl" in only(
        "nat", answer, left(ip(family, VIP[family], CLIENT[family], 64) / segment(80, 40000), ROUTER)
    )


def innermost(packet: Packet, layer: type[Packet]) -> Packet:
    """The last of its kind: inside the tunnel, if there is one."""
    found = packet.getlayer(layer)
    while found.payload.getlayer(layer):
        found = found.payload.getlayer(layer)
    return found


def change(layer: Any, **fields: Any) -> Callable[[Packet], None]:
    """Set fields of the innermost IP header ("ip") or of another layer."""

    def do(packet: Packet) -> None:
        kind = type(packet) if layer == "ip" else layer
        for name, value in fields.items():
            setattr(innermost(packet, kind), {"ttl": "hlim"}.get(name, name) if kind is IPv6 else name, value)

    return do


DOCTORED: list[tuple[str, list[int], Callable[[Packet], None]]] = [
    ("ttl", FAMILIES, change("ip", ttl=60)),
    ("ttl", FAMILIES, change("ip", ttl=58)),
    ("IP checksum", [4], change("ip", chksum=0x1234)),
    ("length", [4], change("ip", len=300)),
    ("length", [6], change("ip", plen=300)),
    ("tos", [4], change("ip", tos=9)),
    ("tos", [6], change("ip", tc=9)),
    ("label", [6], change("ip", fl=6)),
    ("changed in id", [4], change("ip", id=8)),
    ("df", [4], change("ip", flags="")),
    ("entered nowhere", [4], change("ip", src="192.0.2.11")),
    ("entered nowhere", [6], change("ip", src="2001:db8:1::11")),
    ("checksum of protocol 6", FAMILIES, change(TCP, chksum=0x1234)),
    ("entered nowhere", FAMILIES, change(TCP, sport=40001)),
    ("changed in seq", FAMILIES, change(TCP, seq=1001)),
    ("changed in ack", FAMILIES, change(TCP, ack=2001)),
    ("changed in window", FAMILIES, change(TCP, window=1)),
    ("changed in flags", FAMILIES, change(TCP, flags="A")),
    ("options", FAMILIES, change(TCP, options=[("NOP", None)] * 4)),
    ("changed in payload", FAMILIES, change(Raw, load=DATA[:-1] + b"!")),
    ("changed in payload", FAMILIES, change(Raw, load=DATA[:-1])),
    ("changed in payload", FAMILIES, change(Raw, load=DATA + b"!")),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("fault", "family", "doctor"),
    [(fault, family, doctor) for fault, families, doctor in DOCTORED for family in families],
)
def test_a_doctored_packet_is_found(mode: str, family: int, fault: str, doctor: Callable[[Packet], None]) -> None:
    packet = forwarded(mode, family)
    doctor(packet)
    if mode == "tun" and fault in ("ttl", "tos", "label", "df"):  # the outer header goes along
        packet = around(packet.payload)
    assert fault in only(mode, request(family), left(packet))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_macs_are_the_directors_and_the_next_hops(mode: str, family: int) -> None:
    packet = forwarded(mode, family)
    assert "source MAC" in only(mode, request(family), left(packet, source=ROUTER))
    assert "destination MAC" in only(mode, request(family), left(packet, ROUTER))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_packet_leaves_once_and_after_it_entered(mode: str, family: int) -> None:
    packet = left(forwarded(mode, family))
    assert "entered nowhere, or left before" in only(mode, packet, request(family))
    assert "entered nowhere, or left before" in only(mode, request(family), packet, packet)


@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_a_flow_stays_with_its_server(mode: str) -> None:
    moved = forwarded(mode, 4)
    if mode == "nat":
        moved[IP].dst = OTHER[4]
    assert "before" in only(mode, request(4), left(forwarded(mode, 4)), request(4), left(moved, SECOND))


@pytest.mark.parametrize(
    ("fault", "family", "outer"),
    [
        ("tunnel from", 4, {"src": "10.0.0.9"}),
        ("tunnel to", 4, {"dst": "10.0.0.9"}),
        ("outer ttl", 4, {"ttl": 64}),
        ("outer tos", 4, {"tos": 0}),
        ("outer df", 4, {"flags": ""}),
        ("IP checksum", 4, {"chksum": 1}),
        ("length", 4, {"len": 21}),
        ("fragment", 4, {"flags": "DF+MF"}),
        ("options", 4, {"options": b"\1\1\1\1"}),
        ("protocol", 4, {"proto": 41}),
        ("tunnel from", 6, {"src": "fd00::9"}),
        ("tunnel to", 6, {"dst": "fd00::9"}),
        ("outer ttl", 6, {"hlim": 64}),
        ("outer tos", 6, {"tc": 0}),
        ("outer label", 6, {"fl": 0}),
        ("length", 6, {"plen": 21}),
        ("protocol", 6, {"nh": 4}),
    ],
)
def test_a_tunnels_header_is_checked(fault: str, family: int, outer: dict[str, Any]) -> None:
    inner = ip(family, CLIENT[family], VIP[family], 59) / segment(40000, 80)
    assert fault in only("tun", request(family), left(around(inner, **outer)))


def test_a_tunnel_packet_that_may_be_cut_has_a_number_of_its_own() -> None:
    inner = [ip(4, CLIENT[4], VIP[4], 59, flags="", id=number) / segment(40000, 80) for number in (7, 8)]
    entered = [came(ip(4, CLIENT[4], VIP[4], 60, flags="", id=number) / segment(40000, 80)) for number in (7, 8)]
    assert faults("tun", *entered, *(left(around(packet, id=5 + packet.id)) for packet in inner)) == []
    assert "outer identification" in only("tun", *entered, *(left(around(packet, id=5)) for packet in inner))


# -- super-packets and unfinished checksums ---------------------------------------------------------------------------


LONG = bytes(range(250)) * 16  # 4,000 bytes


def parts(mode: str, family: int, size: int = 1000) -> list[Packet]:
    target, port = (SERVER[family], 8080) if mode == "nat" else (VIP[family], 80)
    made = []
    for number, at in enumerate(range(0, len(LONG), size)):
        last = at + size == len(LONG)
        head = ip(family, CLIENT[family], target, 59, **({"id": 7 + number} if family == 4 else {}))
        made.append(head / segment(40000, port, LONG[at : at + size], seq=1000 + at, flags="PA" if last else "A"))
    return [around(part) for part in made] if mode == "tun" else made


def super_packet(family: int) -> Seen:
    return came(ip(family, CLIENT[family], VIP[family], 60) / segment(40000, 80, LONG), unfinished=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_super_packet_leaves_in_parts(mode: str, family: int) -> None:
    made = parts(mode, family)
    assert faults(mode, super_packet(family), *map(left, made)) == []
    assert len(faults(mode, super_packet(family), *map(left, [made[0], made[2]]))) == 1, "one is missing"
    assert len(faults(mode, super_packet(family), *map(left, [made[0], made[0]]))) == 1, "one is there twice"
    innermost(made[1], TCP).flags = "PA"
    assert "changed in flags" in only(mode, super_packet(family), *map(left, made[:2]))


def test_only_a_super_packet_leaves_in_parts() -> None:
    half = ip(4, CLIENT[4], VIP[4], 59) / segment(40000, 80, DATA[:100])
    assert "changed in payload" in only("dr", request(4), left(half))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checksum_left_to_the_device_is_the_sum_of_the_pseudo_header(family: int) -> None:
    packet = forwarded("dr", family)
    assert "pseudo header" in only("dr", request(family), left(packet, unfinished=True))
    packet[TCP].chksum = pseudo_sum(bytes(packet), 40 if family == 6 else 20)
    assert faults("dr", request(family), left(packet, unfinished=True)) == []
    assert "checksum of protocol 6" in only("dr", request(family), left(packet))


def pseudo_sum(packet: bytes, front: int) -> int:
    addresses = packet[front - (8 if front == 20 else 32) : front]
    total = sum(int.from_bytes(addresses[at : at + 2]) for at in range(0, len(addresses), 2)) + len(packet) - front + 6
    return total % 0xFFFF


def test_a_tunnel_leaves_no_checksum_to_the_device() -> None:
    assert "unfinished" in only("tun", request(4), left(forwarded("tun", 4), unfinished=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_datagram_without_a_checksum_gets_none_and_keeps_one(mode: str) -> None:
    port, target = (8080, SERVER[4]) if mode == "nat" else (80, VIP[4])

    def leaving(**more: int) -> Seen:
        packet = ip(4, CLIENT[4], target, 59) / UDP(sport=40000, dport=port, **more) / Raw(DATA)
        return left(around(packet) if mode == "tun" else packet)

    summed, bare = (
        came(ip(4, CLIENT[4], VIP[4], 60) / UDP(sport=40000, dport=80, **more) / Raw(DATA))
        for more in ({}, {"chksum": 0})
    )
    assert faults(mode, summed, leaving(), bare, leaving(chksum=0)) == []
    assert "changed in summed" in only(mode, bare, leaving())
    assert "changed in summed" in only(mode, summed, leaving(chksum=0))
    assert "UDP length" in only(mode, summed, leaving(len=50))
    assert "checksum of protocol 17" in only(mode, summed, leaving(chksum=5))


# -- fragments --------------------------------------------------------------------------------------------------------


SIZE = 1400  # of a fragment, which then fits into a tunnel


def datagram(family: int, target: str, port: int, ttl: int) -> Packet:
    more = {"flags": ""} if family == 4 else {}
    return ip(family, CLIENT[family], target, ttl, **more) / UDP(sport=40000, dport=port) / Raw(LONG)


def cut(packet: Packet, number: int = 3) -> list[Packet]:
    if packet.version == 4:
        return list(fragment(packet, SIZE))
    payload = bytes(packet)[40:]
    head = IPv6(src=packet.src, dst=packet.dst, hlim=packet.hlim, tc=packet.tc, fl=packet.fl)
    return [
        head
        / IPv6ExtHdrFragment(nh=17, id=number, offset=at // 8, m=at + SIZE < len(payload))
        / Raw(payload[at : at + SIZE])
        for at in range(0, len(payload), SIZE)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_fragments_are_put_together(mode: str, family: int) -> None:
    target, port = (SERVER[family], 8080) if mode == "nat" else (VIP[family], 80)
    entered = [came(part) for part in cut(datagram(family, VIP[family], 80, 60))[::-1]]

    def leaving(ttl: int = 59, number: int = 4) -> list[Seen]:
        made = cut(datagram(family, target, port, ttl), number)
        return [left(around(part) if mode == "tun" else part) for part in made]

    assert faults(mode, *entered, *leaving()) == []
    assert "ttl" in only(mode, *entered, *leaving(58))
    assert "not all fragments left" in only(mode, *entered, *leaving()[:-1])
    assert "left before" in only(mode, *entered, *leaving(), *leaving(number=5))
    assert "overlap" in faults(mode, *entered, *leaving()[:1], *leaving()[:1])[0]
    assert "headers of fragments differ" in faults(mode, *entered, *leaving()[:1], *leaving(58)[1:])[0]
    assert "entered nowhere" in only(mode, *entered[1:], *leaving())


# -- ICMP errors ------------------------------------------------------------------------------------------------------


def unreachable(family: int) -> Packet:
    return ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)


def quoted(family: int, source: str, sport: int, target: str, dport: int, ttl: int = 60) -> Raw:
    return Raw(bytes(ip(family, source, target, ttl) / segment(sport, dport)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_servers_error_is_translated_with_what_it_quotes(family: int) -> None:
    client, vip, server = CLIENT[family], VIP[family], SERVER[family]
    error = ip(family, server, client) / unreachable(family) / quoted(family, client, 40000, server, 8080)
    after, about = ip(family, vip, client, 63) / unreachable(family), quoted(family, client, 40000, vip, 80)
    tail = bytes(about)[44 if family == 6 else 24 :]
    about = Raw(bytes(about)[: -len(tail)] + bytes(error[Raw])[-len(tail) :])  # the quoted checksum stays
    assert faults("nat", came(error), left(after / about, ROUTER)) == []
    assert "entered nowhere" in only(
        "nat", came(error), left(ip(family, server, client, 63) / unreachable(family) / about, ROUTER)
    )
    assert "quotes what was not there" in only("nat", came(error), left(after / error[Raw], ROUTER))
    wrong = after.copy() / about
    wrong.payload[type(unreachable(family))].fields["chksum" if family == 4 else "cksum"] = 5
    assert "checksum" in only("nat", came(error), left(wrong, ROUTER))
    assert "an ICMP error to" in only(
        "nat", came(error), left(ip(family, vip, OTHER[family], 63) / unreachable(family) / about, SECOND)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_an_error_of_the_directors_own_quotes_what_entered(mode: str, family: int) -> None:
    client, vip = CLIENT[family], VIP[family]
    answer = ip(family, vip, client) / unreachable(family)
    asked = request(family)
    assert faults(mode, asked, left(answer / quoted(family, client, 40000, vip, 80), ROUTER)) == []
    for other in (
        quoted(family, client, 40001, vip, 80),
        quoted(family, client, 40000, vip, 80, ttl=40),
        Raw(bytes(quoted(family, client, 40000, vip, 80))[:-1] + b"!"),
    ):
        assert "quotes what was not there" in only(mode, asked, left(answer / other, ROUTER))


def test_a_too_long_packets_error_tells_an_mtu_that_is_smaller() -> None:
    about = quoted(4, CLIENT[4], 40000, VIP[4], 80)
    for mtu, wrong in ((100, 0), (240, 1), (0, 1)):
        error = ip(4, VIP[4], CLIENT[4]) / ICMP(type=3, code=4, nexthopmtu=mtu) / about
        assert len(faults("dr", request(4), left(error, ROUTER))) == wrong, mtu


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_the_directors_own_packets_are_told_by_their_source() -> None:
    arp = Seen("eth0", True, False, bytes(Ether(src=DIRECTOR, dst="ff:ff:ff:ff:ff:ff") / ARP()))
    assert faults("nat", arp) == []
    assert faults("nat", left(ip(4, OWN[4], SERVER[4]) / segment(50000, 22))) == []
    from_vip = left(ip(4, VIP[4], CLIENT[4]) / segment(80, 40000), ROUTER)
    assert "entered nowhere" in only("nat", from_vip)
    here = Account(scene("nat"))
    here.scene.services[6, VIP[4], 80] |= {(OWN[4], 8080)}  # type: ignore[index]
    here.feed([from_vip])
    assert here.faults == [], "a real server of the director's own"


def test_what_is_not_understood_is_a_fault() -> None:
    assert "ethertype" in only(
        "nat", Seen("eth0", True, False, bytes(Ether(src=DIRECTOR, dst=FIRST, type=0x1234)) + DATA)
    )
    assert "protocol 132" in only("nat", left(ip(4, OWN[4], SERVER[4], proto=132) / Raw(DATA)))
    assert "tunnel" in only("nat", left(around(ip(4, CLIENT[4], VIP[4]) / segment(40000, 80))))
    assert "more than the MTU" in only("dr", request(4), left(ip(4, CLIENT[4], VIP[4], 59) / segment(40000, 80, LONG)))
