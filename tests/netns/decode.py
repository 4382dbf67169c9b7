"""Accounts for every packet that leaves a director: what it must have been before, and what may have changed.

Strategy: headers are taken apart, and checksums summed up, by scapy; nothing here is nfqlb's. What enters is kept, put
together from its fragments. What leaves must be sound, be found among what entered, and differ from it in nothing but
what the forwarding method says (RFC 791, RFC 2003, RFC 2473, RFC 3022); each byte that entered leaves once. A
super-packet may leave in parts. What the director says itself, answers of a local server, ICMP, ARP, is told from that
by its source and is sound; an ICMP error quotes a packet that was there. What is none of these is a fault.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from scapy.layers.inet import IP, TCP, UDP, in4_chksum, in4_pseudoheader
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, in6_chksum, in6_pseudoheader
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import checksum

from netns.tap import Seen

ETHERNET, HEADER6 = 14, 40
ARP, IP4, IP6 = 0x806, 0x800, 0x86DD
HOP_BY_HOP, FRAGMENT = 0, 44
PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP6 = 1, 6, 17, 58
INSIDE = {4: 4, 6: 41}  # protocol of a tunnel, by what is in it
ERRORS4 = {3, 4, 5, 11, 12}
NEIGHBOURS6 = {130, 131, 132, 133, 134, 135, 136, 137, 143}
TOO_LONG = {(4, 3, 4), (6, 2, 0)}
LONGEST_ERROR = {4: 576, 6: 1280}  # RFC 1812, RFC 4443
REMEMBERED = 512  # packets of a flow that an ICMP error may quote

Key = tuple[int, str, int, str, int]  # protocol, source, its port, destination, its port
Service = tuple[int, str, int]  # protocol, address, port


@dataclass(frozen=True)
class Scene:
    """The director's surroundings: addresses, MACs by address, services with the endpoints of their real servers."""

    mode: str
    own: frozenset[str]
    devices: dict[str, str]  # the director's MAC, by device
    macs: dict[str, str]  # of machines on its networks
    router: str  # MAC of the next hop to all others
    services: dict[Service, frozenset[tuple[str, int]]]
    mtu: int = 1500
    offload: bool = False  # the kernel wraps super-packets whole

    def servers(self) -> set[str]:
        return {address for reals in self.services.values() for address, _ in reals}


@dataclass
class Whole:
    """An IP packet in one piece, taken apart. One that is `divisible` may leave in parts: `taken` bytes of its payload
    have left so far, in `parts` packets.
    """

    version: int
    header: dict[str, Any]
    key: Key
    fields: dict[str, Any]
    data: bytes
    raw: bytes
    divisible: bool = False
    taken: int = 0
    parts: int = 0

    @property
    def error(self) -> bool:
        return "quote" in self.fields


@dataclass
class Account:
    """Feed it what a tap took, in order; `faults` are sentences, the numbers are of packets that left (`checked`), of
    those that leave a checksum to the device (`unfinished`) and of ICMP errors among them, and of super-packets that
    entered (`long`).
    """

    scene: Scene
    faults: list[str] = field(default_factory=list)
    checked: int = 0
    unfinished: int = 0
    long: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        self.waiting: dict[Key, list[Whole]] = defaultdict(list)
        self.history: dict[Key, deque[bytes]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self.pieces: dict[tuple[Any, ...], list[Piece]] = {}
        self.homes: dict[Key, str] = {}
        self.numbers: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def feed(self, seen: Iterable[Seen]) -> None:
        for packet in seen:
            try:
                self.leave(packet) if packet.out else self.enter(packet)
            except FaultError as fault:
                self.faults.append(f"{fault}: {packet.device} {packet.frame[:120].hex()}")

    def close(self) -> None:
        """Nothing more comes: what left in fragments must have left whole."""
        for out, *key in self.pieces:
            if out:
                self.faults.append(f"not all fragments left: {key}")

    # -- what enters --------------------------------------------------------------------------------------------------

    def enter(self, seen: Seen) -> None:
        if ethernet(seen.frame[:ETHERNET]).type in (IP4, IP6):
            packet = self.join(seen.frame[ETHERNET:], False)
            if packet:
                # the kernel does not say which are super-packets; after a path MTU got smaller they may be short
                whole = dissect(packet, seen.unfinished)
                self.long += len(seen.frame) - ETHERNET > self.scene.mtu
                self.waiting[whole.key].append(whole)
                self.history[whole.key].append(whole.raw)

    # -- what leaves --------------------------------------------------------------------------------------------------

    def leave(self, seen: Seen) -> None:
        self.checked += 1
        ether, packet = ethernet(seen.frame[:ETHERNET]), seen.frame[ETHERNET:]
        require(ether.src == self.scene.devices[seen.device], f"source MAC {ether.src}")
        if ether.type == ARP:
            return
        require(ether.type in (IP4, IP6), f"ethertype {ether.type:#x}")
        require(packet[0] >> 4 == (4 if ether.type == IP4 else 6), "IP version and ethertype differ")
        check_header(packet)
        self.unfinished += seen.unfinished
        tunnel = None
        if protocol_of(packet) in INSIDE.values():
            tunnel, packet = packet, inside(packet)
            check_header(packet)
            finished = self.scene.offload or not seen.unfinished
            require(self.scene.mode == "tun" and finished, "a tunnel, or one with an unfinished checksum")
            self.check_tunnel(tunnel, packet)
        require(
            len(tunnel or packet) <= self.scene.mtu or seen.unfinished, f"{len(packet)} bytes are more than the MTU"
        )
        joined = self.join(packet, True)
        if joined is None:
            self.check_target(ether.dst, dissect_header(packet), tunnel)
            return
        whole = dissect(joined, False)
        check_transport(joined, seen.unfinished)
        self.check_target(ether.dst, whole, tunnel)
        if tunnel:
            self.history[whole.key].append(whole.raw)
        self.explain(whole, ether.dst if tunnel is None else dissect_header(tunnel).key[3])

    def check_tunnel(self, tunnel: bytes, packet: bytes) -> None:
        """RFC 2003, 3.1 and RFC 2473, 6; TTL, service, DF and label are the inner packet's."""
        outer, inner = dissect_header(tunnel), dissect_header(packet)
        _, source, _, target, _ = outer.key
        require(outer.version == inner.version, "a tunnel of another family")
        require(source in self.scene.own, f"tunnel from {source}")
        require(target in self.scene.servers(), f"tunnel to {target}")
        for name in ("ttl", "tos", "df", "label"):
            require(outer.header.get(name) == inner.header.get(name), f"outer {name} {outer.header.get(name)}")
        if outer.version == 4:
            require(not outer.header["options"] and Piece.of(tunnel) is None, "outer options or fragment")
            self.check_identification(target, outer.header["id"], outer.header["df"])

    def check_identification(self, target: str, number: int, whole: bool) -> None:
        """What a router may cut has a number of its own, or its pieces are mixed up with others (RFC 6864, 4.2)."""
        if not whole:
            require(number not in self.numbers[target], f"outer identification {number} came before")
            self.numbers[target].append(number)

    def check_target(self, mac: str, packet: Whole, tunnel: bytes | None) -> None:
        """The MAC must be the next hop's: the real server's for direct routing."""
        target = packet.key[3] if tunnel is None else dissect_header(tunnel).key[3]
        if self.scene.mode == "dr" and target in self.virtual():
            expected = {self.scene.macs.get(server) for server in self.scene.servers() - self.scene.own}
        elif target in self.scene.macs:
            expected = {self.scene.macs[target]}
        elif int(mac[:2], 16) & 1:
            require(target.startswith("ff"), f"{target} is no group")  # IPv6 multicast of the director's own
            return
        else:
            expected = {self.scene.router}
        require(mac in expected, f"destination MAC {mac} for {target}, not {expected}")

    def virtual(self) -> set[str]:
        return {address for _, address, _ in self.scene.services}

    def explain(self, out: Whole, home: str) -> None:
        if out.error:
            self.explain_error(out)
            return
        closest: list[str] | None = None
        for key in self.origins(out.key):
            for entered in self.waiting[key]:
                wrong = differences(entered, out)
                if not wrong:
                    self.settle(entered, out, home)
                    return
                closest = wrong if closest is None or len(wrong) < len(closest) else closest
        if self.is_own(out):
            return
        why = f"changed in {', '.join(closest)}" if closest else "entered nowhere, or left before"
        raise FaultError(f"{name(out.key)} {why}")

    def origins(self, out: Key) -> Iterator[Key]:
        """What a packet that leaves with these addresses and ports can have entered with."""
        protocol, source, sport, target, dport = out
        if self.scene.mode == "nat":
            for (kind, address, port), reals in self.scene.services.items():
                if kind == protocol and (target, dport) in reals:
                    yield protocol, source, sport, address, port
            for address, port in self.scene.services.get((protocol, source, sport), ()):
                yield protocol, address, port, target, dport
        if self.scene.mode != "nat" or (protocol, target, dport) not in self.scene.services:
            yield out

    def settle(self, entered: Whole, out: Whole, home: str) -> None:
        """These bytes have left; and a flow stays with its real server."""
        entered.taken += len(out.data)
        entered.parts += 1
        if entered.taken >= len(entered.data):
            self.waiting[entered.key].remove(entered)
        protocol, _, _, target, dport = entered.key
        if (protocol, target, dport) in self.scene.services:
            begins = out.fields.get("flags", 0) & 0x12 == 2
            known = home if begins else self.homes.get(entered.key, home)
            self.homes[entered.key] = home
            require(known == home, f"{name(entered.key)} went to {known} before, to {home} now")

    def is_own(self, out: Whole) -> bool:
        """Whether the director can have said that itself."""
        protocol, source, sport, _, _ = out.key
        if source not in self.scene.own:
            return False
        reals = self.scene.services.get((protocol, source, sport))
        return reals is None or any(address in self.scene.own for address, _ in reals)

    def explain_error(self, out: Whole) -> None:
        """An ICMP error: one that entered, or one about a packet that did."""
        self.errors += 1
        kind, quote = out.fields["kind"], out.fields["quote"]
        inner = dissect_header(quote)
        require(out.key[3] == inner.key[1], f"an ICMP error to {out.key[3]} about a packet of {inner.key[1]}")
        if inner.version == 4:
            require(checksum(quote[: (quote[0] & 15) * 4]) == 0, "checksum of the quoted header")
        for key, waiting in self.waiting.items():
            for entered in waiting if key[0] == out.key[0] else ():
                if entered.error and entered.fields["kind"] == kind and self.passes_on(entered, out):
                    waiting.remove(entered)
                    return
        require(out.key[1] in self.scene.own, f"an ICMP error {kind} from {out.key[1]} that entered nowhere")
        require(len(out.raw) <= LONGEST_ERROR[out.version], f"an ICMP error of {len(out.raw)} bytes")
        if kind in TOO_LONG:
            require(68 <= out.fields["rest"] < total_length(quote), f"MTU {out.fields['rest']}")
        known = self.history[dissect_header(quote).key] if protocol_of(quote) != FRAGMENT else ()
        require(any(quotes(quote, raw) for raw in known), f"an ICMP error {kind} quotes what was not there")

    def passes_on(self, entered: Whole, out: Whole) -> bool:
        """NAT changes the outer address and the one inside, each other method only the TTL."""
        before, after = dissect_header(entered.fields["quote"]), dissect_header(out.fields["quote"])
        turned = list(self.turned(before.key)) if self.scene.mode == "nat" else []
        same = after.key in turned if turned else before.key == after.key
        source, target = (entered.key[1], entered.key[3])
        if turned and target in self.virtual():
            target = after.key[1]
        elif turned:
            source = after.key[3]
        outside = (out.key[1], out.key[3]) == (source, target)
        tails = [packet.fields["quote"][len(header(packet.fields["quote"])) + 4 :] for packet in (entered, out)]
        return bool(
            same
            and outside
            and before.header == after.header
            and tails[0] == tails[1]
            and entered.fields["rest"] == out.fields["rest"]
            and out.header["ttl"] == entered.header["ttl"] - 1
        )

    def turned(self, key: Key) -> Iterator[Key]:
        """A quoted packet as the other side of NAT knows it."""
        protocol, source, sport, target, dport = key
        for (kind, address, port), reals in self.scene.services.items():
            if kind == protocol and (target, dport) in reals:  # the server's side quotes the client's packet
                yield protocol, source, sport, address, port
            if key[:3] == (kind, address, port):  # the client's side quotes an answer
                for real in reals:
                    yield protocol, *real, target, dport

    # -- fragments ----------------------------------------------------------------------------------------------------

    def join(self, packet: bytes, out: bool) -> bytes | None:
        """The whole packet, or None while fragments of it are to come."""
        piece = Piece.of(packet)
        if piece is None:
            return packet
        key = (out, *piece.key)
        pieces = self.pieces.setdefault(key, [])
        if out and pieces:
            require(piece.first.header == pieces[0].first.header, "headers of fragments differ")
        if out and any(piece.at < other.end and other.at < piece.end for other in pieces):
            raise FaultError("fragments overlap")
        pieces.append(piece)
        pieces.sort(key=lambda each: each.at)
        ends = [0, *(each.end for each in pieces)]
        if pieces[-1].more or any(each.at != end for each, end in zip(pieces, ends, strict=False)):
            return None
        del self.pieces[key]
        return pieces[0].whole(b"".join(each.data for each in pieces))


@dataclass
class Piece:
    """A fragment of an IPv4 or IPv6 packet."""

    key: tuple[Any, ...]
    front: bytes
    at: int
    more: bool
    data: bytes
    protocol: int
    first: Whole

    @classmethod
    def of(cls, packet: bytes) -> Piece | None:
        """None for a packet that is whole."""
        front = header(packet)
        ip = take_apart(front)
        if packet[0] >> 4 == 4:
            at, more, number, protocol, data = ip.frag * 8, bool(ip.flags.MF), ip.id, ip.proto, packet[len(front) :]
            if not at and not more:
                return None
        else:
            if ip.nh != FRAGMENT:
                return None
            part = IPv6ExtHdrFragment(packet[HEADER6 : HEADER6 + 8])
            at, more, number, protocol, data = part.offset * 8, bool(part.m), part.id, part.nh, packet[HEADER6 + 8 :]
        require(not more or len(data) % 8 == 0, f"a fragment of {len(data)} bytes that is not the last")
        return cls((ip.src, ip.dst, number, protocol), front, at, more, data, protocol, dissect_header(packet))

    @property
    def end(self) -> int:
        return self.at + len(self.data)

    def whole(self, data: bytes) -> bytes:
        """The packet that this first fragment belongs to."""
        if self.front[0] >> 4 == 4:
            ip = IP(self.front)
            ip.len, ip.flags, ip.frag = len(self.front) + len(data), 0, 0
            del ip.chksum
        else:
            ip = IPv6(self.front)
            ip.nh, ip.plen = self.protocol, len(data)
        return bytes(ip) + data


# -- packets taken apart ----------------------------------------------------------------------------------------------


class FaultError(Exception):
    """What is wrong with a packet."""


def require(true: object, otherwise: str) -> None:
    if not true:
        raise FaultError(otherwise)


def name(key: Key) -> str:
    protocol, source, sport, target, dport = key
    return f"protocol {protocol} {source} port {sport} to {target} port {dport}"


@lru_cache(1024)
def ethernet(front: bytes) -> Packet:
    return Ether(front)


@lru_cache(1024)
def take_apart(front: bytes) -> Packet:
    """An IP header; not to be changed."""
    return IP(front) if front[0] >> 4 == 4 else IPv6(front)


def header(packet: bytes) -> bytes:
    """The IP header, without IPv6 extensions."""
    return packet[: (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else HEADER6]


def protocol_of(packet: bytes) -> int:
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def total_length(packet: bytes) -> int:
    ip = take_apart(header(packet))
    return int(ip.len) if packet[0] >> 4 == 4 else int(ip.plen) + HEADER6


def inside(packet: bytes) -> bytes:
    inner = packet[len(header(packet)) :]
    require(
        inner and INSIDE.get(inner[0] >> 4) == protocol_of(packet), "the tunnel's protocol is not of what is inside"
    )
    return inner


def check_header(packet: bytes) -> None:
    require(total_length(packet) == len(packet), f"length {total_length(packet)} of {len(packet)} bytes")
    if packet[0] >> 4 == 4:
        require(checksum(header(packet)) == 0, "IP checksum")
    require(packet[8 if packet[0] >> 4 == 4 else 7] > 0, "TTL 0")


def dissect_header(packet: bytes) -> Whole:
    """Only the IP header, and the ports of what is not a later fragment; `packet` may be cut."""
    front = header(packet)
    protocol, rest = protocol_of(packet), packet[len(front) :]
    ip = take_apart(front)
    if packet[0] >> 4 == 4:
        values = {"tos": ip.tos, "id": ip.id, "df": bool(ip.flags.DF), "ttl": ip.ttl, "options": front[20:]}
        later = ip.frag > 0
    else:
        values = {"tos": ip.tc, "label": ip.fl, "ttl": ip.hlim}
        later = False
    has_ports = protocol in (PROTOCOL_TCP, PROTOCOL_UDP) and not later and len(rest) >= 4
    ports = (int.from_bytes(rest[:2]), int.from_bytes(rest[2:4])) if has_ports else (0, 0)
    return Whole(packet[0] >> 4, values, (protocol, ip.src, ports[0], ip.dst, ports[1]), {}, b"", packet)


def dissect(packet: bytes, divisible: bool) -> Whole:
    whole = dissect_header(packet)
    whole.divisible = divisible
    protocol, segment = whole.key[0], packet[len(header(packet)) :]
    if protocol == PROTOCOL_TCP:
        front = (segment[12] >> 4) * 4
        tcp = TCP(segment[:front])
        names = ("seq", "ack", "dataofs", "reserved", "window", "urgptr")
        whole.fields = {each: getattr(tcp, each) for each in names}
        whole.fields |= {"flags": int(tcp.flags), "options": segment[20:front]}
        whole.data = segment[front:]
    elif protocol == PROTOCOL_UDP:
        whole.fields = {"summed": UDP(segment[:8]).chksum != 0}
        whole.data = segment[8:]
    elif is_error(protocol, segment):
        kind = (whole.version, segment[0], segment[1])
        whole.fields = {"kind": kind, "rest": int.from_bytes(segment[4:8]), "quote": segment[8:]}
    else:
        whole.data = segment
    return whole


def is_error(protocol: int, segment: bytes) -> bool:
    if protocol == PROTOCOL_ICMP:
        return segment[0] in ERRORS4
    return protocol == PROTOCOL_ICMP6 and segment[0] < 128


def check_transport(packet: bytes, unfinished: bool) -> None:
    """Length and checksum of TCP, UDP and ICMP; an unfinished one is the sum over the pseudo header."""
    front, protocol = header(packet), protocol_of(packet)
    segment = packet[len(front) :]
    if protocol == PROTOCOL_UDP:
        require(UDP(segment[:8]).len == len(segment), f"UDP length {UDP(segment[:8]).len} of {len(segment)}")
    ip = take_apart(front)
    if packet[0] >> 4 == 4:
        sum_up, pseudo = in4_chksum, in4_pseudoheader
    else:
        sum_up, pseudo = in6_chksum, in6_pseudoheader
        if protocol == HOP_BY_HOP:
            protocol, segment = segment[0], segment[(segment[1] + 1) * 8 :]
    if protocol == PROTOCOL_ICMP:
        require(checksum(segment) == 0, "ICMP checksum")
        return
    require(protocol in (PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP6), f"protocol {protocol}")
    if unfinished:
        at = 16 if protocol == PROTOCOL_TCP else 6
        expected = checksum(bytes(pseudo(protocol, ip, len(segment)))) ^ 0xFFFF
        require(int.from_bytes(segment[at : at + 2]) == expected, "sum over the pseudo header")
    elif protocol != PROTOCOL_UDP or packet[0] >> 4 == 6 or segment[6:8] != b"\0\0":
        require(sum_up(protocol, ip, segment) == 0, f"checksum of protocol {protocol}")


# -- packets compared -------------------------------------------------------------------------------------------------


def differences(entered: Whole, out: Whole) -> list[str]:
    """In what a packet that left differs from what should have left, addresses, ports and checksums apart."""
    header, fields, data = dict(entered.header), dict(entered.fields), entered.data
    header["ttl"] -= 1
    if entered.divisible:
        at, size = entered.taken, len(out.data)
        data = data[at : at + size]
        if "id" in header:
            header["id"] = (header["id"] + entered.parts) & 0xFFFF
        if "seq" in fields:
            fields["seq"] = (fields["seq"] + at) & 0xFFFFFFFF
            # what a segment in the middle does not have: CWR only in the first, FIN and PSH only in the last
            fields["flags"] &= ~((0x80 if at else 0) | (0x09 if at + size < len(entered.data) else 0))
    wrong = [name for name in header if header[name] != out.header.get(name)]
    wrong += [name for name in fields if fields[name] != out.fields.get(name)]
    return wrong + (["payload"] if data != out.data or (entered.data and not data) else [])


def quotes(quote: bytes, packet: bytes) -> bool:
    """Whether an ICMP error quotes this packet, as it entered or one hop older; address, port and checksums apart."""
    before, after = dissect_header(packet), dissect_header(quote)
    hops = before.header.pop("ttl") - after.header.pop("ttl")
    front = len(header(packet))
    at = front + {PROTOCOL_TCP: 16, PROTOCOL_UDP: 6}.get(before.key[0], 2)
    tail, original = bytearray(quote[front:]), bytearray(packet[front : len(quote)])
    for text in (tail, original):
        text[at - front : at - front + 2] = b"\0\0"
    return (
        hops in (0, 1)
        and before.key == after.key
        and before.header == after.header
        and total_length(quote) == total_length(packet)
        and tail == original
    )
