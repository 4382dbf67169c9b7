"""Tools for tests: packets from text, a clock that is told the time, a queue in memory.

Strategy: packets are made with struct alone and their checksums are summed up over the finished bytes, so they can
judge the data path, which only ever updates checksums. Ends are written as people write them: "192.0.2.10:40000" or
"[2001:db8::10]:40000". Nothing here needs root, a socket or the time of day.
"""

from __future__ import annotations

import ipaddress
import queue
import struct
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypedDict, Unpack

from nfqlb._core.datapath import Result, Worker

PREROUTING, INPUT, FORWARD, OUTPUT = range(4)  # netfilter hooks
NOT_READY, SUPER_PACKET, NOT_VERIFIED = 1, 2, 4  # what NFQUEUE says of checksums (NFQA_SKB_INFO)
HEAD = 8  # the payload stayed in the kernel
HOP_BY_HOP, ICMP, TCP, UDP, ROUTING, FRAGMENT, AUTHENTICATION, ICMP6, DESTINATION_OPTIONS, SCTP = (
    0,
    1,
    6,
    17,
    43,
    44,
    51,
    58,
    60,
    132,
)
CHUNKS = {  # of SCTP (RFC 9260, 3.2)
    "DATA": 0,
    "INIT": 1,
    "INIT ACK": 2,
    "SACK": 3,
    "HEARTBEAT": 4,
    "HEARTBEAT ACK": 5,
    "ABORT": 6,
    "SHUTDOWN": 7,
    "SHUTDOWN ACK": 8,
    "ERROR": 9,
    "COOKIE ECHO": 10,
    "COOKIE ACK": 11,
    "ECNE": 12,
    "CWR": 13,
    "SHUTDOWN COMPLETE": 14,
}
SEGMENT_BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}

# right; none (UDP without a checksum); unfinished (the sum of the pseudo header, as a sender leaves it to its card)
Check = Literal["right", "none", "unfinished"]


class Endpoint(NamedTuple):
    """One end of a flow, as the data path wants it: 16 bytes, IPv4 as ::ffff:a.b.c.d, and a port."""

    address: bytes
    port: int

    def __str__(self) -> str:
        address = ipaddress.IPv6Address(self.address)
        host = address.ipv4_mapped or f"[{address}]"
        return f"{host}:{self.port}"


class Network(TypedDict, total=False):
    """What the IP layer of a packet may have besides its ends."""

    ttl: int
    identification: int
    fragment: int  # IPv4: flags and offset as they stand in the header
    ip_options: bytes  # IPv4: a multiple of 4 bytes
    extensions: Sequence[tuple[int, bytes]]  # IPv6: kind, and what follows the two bytes that every such header has
    trailer: bytes  # behind the packet, as Ethernet pads it


def endpoint(text: str) -> Endpoint:
    """Read ADDRESS:PORT, IPv6 in brackets."""
    host, _, port = text.rpartition(":")
    packed = ipaddress.ip_address(host.strip("[]")).packed
    return Endpoint(packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed, int(port))


def checksum(data: bytes) -> int:
    """RFC 1071 over the whole of `data`, an odd last byte padded with zero."""
    return ~_fold(data) & 0xFFFF


def ip(source: str, destination: str, protocol: int, payload: bytes, **network: Unpack[Network]) -> bytes:
    """A packet of any protocol; `source` and `destination` are addresses without ports."""
    ends = [ipaddress.ip_address(end).packed for end in (source, destination)]
    return _network(ends[0], ends[1], protocol, payload, network)


def tcp(
    source: str,
    destination: str,
    segment: str = "S",
    payload: bytes = b"",
    *,
    seq: int = 1000,
    ack: int = 0,
    window: int = 64240,
    options: bytes = b"",
    check: Check = "right",
    **network: Unpack[Network],
) -> bytes:
    """A TCP segment; `segment` names its flags by their letters (S, SA, A, PA, FA, R), `options` fill whole words."""
    (src, sport), (dst, dport) = _ends(source, destination)
    bits = sum(SEGMENT_BITS[letter] for letter in segment)
    offset = (20 + len(options)) // 4 << 4
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, bits, window, 0, 0) + options
    return _network(src, dst, TCP, _filled(src, dst, TCP, header + payload, 16, check), network)


def udp(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    room: bytes = b"",
    check: Check = "right",
    **network: Unpack[Network],
) -> bytes:
    """A UDP datagram; `room` follows inside the IP packet, behind the datagram's own length."""
    (src, sport), (dst, dport) = _ends(source, destination)
    datagram = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return _network(src, dst, UDP, _filled(src, dst, UDP, datagram, 6, check) + room, network)


def sctp(
    source: str,
    destination: str,
    chunks: Sequence[str | tuple[str, bytes]] | str = "INIT",
    *,
    tag: int = 0,
    check: Check = "right",
    **network: Unpack[Network],
) -> bytes:
    """An SCTP packet of these chunks, each a name of CHUNKS, or a name and its value; an INIT has a tag of 0x01020304.
    A checksum that is "unfinished" is none.
    """
    (src, sport), (dst, dport) = _ends(source, destination)
    named = [(one, _VALUES.get(one, b"")) if isinstance(one, str) else one for one in _listed(chunks)]
    body = b"".join(_chunk(CHUNKS[name], value) for name, value in named)
    head, tail = struct.pack("!HHI", sport, dport, tag), bytes(4) + body
    value = crc32c(head + tail) if check == "right" else 0
    return _network(src, dst, SCTP, head + struct.pack("<I", value) + body, network)


def crc32c(data: bytes) -> int:
    """The checksum of SCTP over the whole of `data`, bit by bit (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def icmp(
    source: str,
    destination: str,
    kind: int,
    code: int,
    body: bytes,
    *,
    rest: bytes = bytes(4),
    **network: Unpack[Network],
) -> bytes:
    """An ICMP or ICMPv6 message between addresses; `rest` is the second half of its header, `body` what it quotes."""
    src, dst = (ipaddress.ip_address(end).packed for end in (source, destination))
    protocol = ICMP if len(src) == 4 else ICMP6
    message = struct.pack("!BBH", kind, code, 0) + rest + body
    pseudo = b"" if len(src) == 4 else src + dst + struct.pack("!II", len(message), protocol)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return _network(src, dst, protocol, message, network)


def fragments(packet: bytes, size: int, identification: int = 7) -> list[bytes]:
    """The packet (IPv4 without options, IPv6 without extensions) in pieces of `size` bytes, a multiple of 8."""
    ip4 = packet[0] >> 4 == 4
    source, destination = (packet[12:16], packet[16:20]) if ip4 else (packet[8:24], packet[24:40])
    protocol, body = (packet[9], packet[20:]) if ip4 else (packet[6], packet[40:])
    pieces = []
    for at in range(0, len(body), size):
        more = at + size < len(body)
        if ip4:
            network = Network(fragment=more << 13 | at // 8, identification=identification)
        else:
            network = Network(extensions=[(FRAGMENT, struct.pack("!HI", at | more, identification))])
        pieces.append(_network(source, destination, protocol, body[at : at + size], network))
    return pieces


class FakeClock:
    """CLOCK_BOOTTIME in nanoseconds that stands still until it is told."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.now = round(seconds * 1e9)

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> int:
        self.now += round(seconds * 1e9)
        return self.now


class MemoryQueue:
    """An engine without a kernel: `put` stands for netfilter, `verdicts` (by packet number) for what goes back.

    Its life is that of the other engines: `run` in a thread until `stop`. What was put before `stop` is answered.
    """

    def __init__(self, worker: Worker, clock: Callable[[], int], maxlen: int = 16384) -> None:
        self.verdicts: dict[int, Result] = {}
        self._worker, self._clock, self._maxlen = worker, clock, maxlen
        self._waiting: queue.SimpleQueue[tuple[int, bytes, int, int, int] | None] = queue.SimpleQueue()
        self._number = 0
        self._overruns = 0

    def put(self, packet: bytes, *, hook: int = PREROUTING, mark: int = 0, flags: int = 0) -> int:
        """Queue a packet and return its number; a full queue drops it, and it never gets a verdict."""
        self._number += 1
        if self._waiting.qsize() < self._maxlen:
            self._waiting.put((self._number, packet, hook, mark, flags))
        else:
            self._overruns += 1
        return self._number

    def run(self) -> None:
        while (item := self._waiting.get()) is not None:
            number, packet, hook, mark, flags = item
            self.verdicts[number] = self._worker.process(packet, self._clock(), hook=hook, mark=mark, flags=flags)

    def stop(self) -> None:
        self._waiting.put(None)

    def statistics(self) -> list[dict[str, int]]:
        return [{"packets": len(self.verdicts), "overruns": self._overruns, "refused": 0, "ignored": 0}]


def _fold(data: bytes) -> int:
    total = sum(data[0::2]) * 256 + sum(data[1::2])
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


_VALUES = dict.fromkeys(("INIT", "INIT ACK"), struct.pack("!IIHHI", 0x01020304, 65536, 10, 10, 1))


def _listed(chunks: Sequence[str | tuple[str, bytes]] | str) -> Sequence[str | tuple[str, bytes]]:
    return [chunks] if isinstance(chunks, str) else chunks


def _chunk(kind: int, value: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, 4 + len(value)) + value + bytes(-len(value) % 4)


def _ends(source: str, destination: str) -> list[tuple[bytes, int]]:
    """Addresses as long as on the wire, and ports."""
    ends = [endpoint(source), endpoint(destination)]
    return [(end.address[12:] if "[" not in source else end.address, end.port) for end in ends]


def _filled(source: bytes, destination: bytes, protocol: int, segment: bytes, at: int, check: Check) -> bytes:
    pseudo = source + destination + struct.pack("!II", len(segment), protocol)
    value = {"right": checksum(pseudo + segment), "none": 0, "unfinished": _fold(pseudo)}[check]
    if check == "right" and protocol == UDP and value == 0:
        value = 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def _network(source: bytes, destination: bytes, protocol: int, payload: bytes, network: Network) -> bytes:
    ttl, trailer = network.get("ttl", 64), network.get("trailer", b"")
    if len(source) == 4:
        options = network.get("ip_options", b"")
        length = 20 + len(options) + len(payload)
        identity = network.get("identification", 1), network.get("fragment", 0x4000)
        head = struct.pack("!BBHHHBB", 0x45 + len(options) // 4, 0, length, *identity, ttl, protocol)
        tail = source + destination + options
        return head + struct.pack("!H", checksum(head + bytes(2) + tail)) + tail + payload + trailer
    for kind, body in reversed(network.get("extensions", ())):
        words = (2 + len(body) + 7) // 8
        payload = bytes((protocol, words - 1)) + body.ljust(words * 8 - 2, b"\0") + payload
        protocol = kind
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl)
    return head + source + destination + payload + trailer
