"""SCTP in user space, over a raw socket, for kernels without it: a server that says its name, and a client that asks.

Strategy: what RFC 9260 has between two hosts that lose nothing: four packets to open an association, a DATA chunk each
way, three packets to close it. Whoever gets a wrong checksum or tag says so and ends. The server answers from the
address that was asked, so it serves a VIP of its own as well.

    python -m netns.sctp serve PORT NAME
    python -m netns.sctp ask ADDRESS PORT COUNT FIRST_SOURCE_PORT close|keep
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import sys
from typing import NamedTuple

from nfqlb.testing import CHUNKS, crc32c

PROTOCOL = 132
PACKET_INFO = socket.IPPROTO_IP, 8  # IP_PKTINFO (include/uapi/linux/in.h)
COOKIE = b"a cookie of odd length."
KINDS = {number: name for name, number in CHUNKS.items()}
Chunk = tuple[str, bytes]


class Packet(NamedTuple):
    source: str
    destination: str
    sport: int
    dport: int
    tag: int
    chunks: list[Chunk]


def write(sport: int, dport: int, tag: int, *chunks: Chunk) -> bytes:
    body = b"".join(
        struct.pack("!BBH", CHUNKS[name], 3 if name == "DATA" else 0, 4 + len(value)) + value + bytes(-len(value) % 4)
        for name, value in chunks
    )
    head = struct.pack("!HHI", sport, dport, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + body)) + body


def read(packet: bytes) -> Packet:
    """Of an IPv4 packet; ValueError where its checksum is wrong."""
    at = (packet[0] & 15) * 4
    sport, dport, tag, check = struct.unpack_from("!HHI", packet, at) + struct.unpack_from("<I", packet, at + 8)
    if crc32c(packet[at : at + 8] + bytes(4) + packet[at + 12 :]) != check:
        raise ValueError(f"a wrong checksum: {packet.hex()}")
    chunks, at = [], at + 12
    while at < len(packet):
        kind, _, length = struct.unpack_from("!BBH", packet, at)
        chunks.append((KINDS[kind], packet[at + 4 : at + length]))
        at += (length + 3) // 4 * 4
    return Packet(socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]), sport, dport, tag, chunks)


def beginning(tag: int) -> bytes:
    """The value of an INIT or INIT ACK: tag, window, streams out and in, first TSN."""
    return struct.pack("!IIHHI", tag, 65536, 1, 1, 1)


def data(text: bytes) -> bytes:
    """The value of a DATA chunk: TSN, stream, number in it, payload protocol."""
    return struct.pack("!IHHI", 1, 0, 0, 0) + text


def serve(port: int, name: str) -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
    tags: dict[tuple[str, int], tuple[int, int]] = {}  # by the client's end: its tag and ours
    print("ready", flush=True)
    while True:
        packet = read(raw.recv(65535))
        if packet.dport != port:
            continue
        client = packet.source, packet.sport
        kind, value = packet.chunks[0]
        if kind == "INIT":
            tags[client] = struct.unpack_from("!I", value)[0], secrets.randbits(31) + 1
        theirs, ours = tags[client]
        if packet.tag != (0 if kind == "INIT" else ours):
            raise ValueError(f"a wrong tag: {packet}")
        seen = f"{name} {packet.source}".encode()
        cookie = struct.pack("!HH", 7, 4 + len(COOKIE)) + COOKIE  # the parameter State Cookie
        answers: dict[str, list[Chunk]] = {
            "INIT": [("INIT ACK", beginning(ours) + cookie)],
            "COOKIE ECHO": [("COOKIE ACK", b"")],
            "DATA": [("SACK", struct.pack("!IIHH", 1, 65536, 0, 0)), ("DATA", data(seen))],
            "SHUTDOWN": [("SHUTDOWN ACK", b"")],
        }
        if kind in answers:
            spoken = struct.pack("=I4s4s", 0, socket.inet_aton(packet.destination), bytes(4))
            answer = write(packet.dport, packet.sport, theirs, *answers[kind])
            raw.sendmsg([answer], [(*PACKET_INFO, spoken)], 0, (packet.source, 0))


def ask(address: str, port: int, source: int, closes: bool) -> list[str]:
    """Open an association, send a DATA chunk, and return what the answer says."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
    raw.settimeout(5)
    raw.connect((address, 0))
    ours, theirs = secrets.randbits(31) + 1, 0

    def exchange(name: str, value: bytes, wanted: str) -> bytes:
        raw.send(write(source, port, theirs, (name, value)))
        while True:
            packet = read(raw.recv(65535))
            if (packet.sport, packet.dport) == (port, source):
                if packet.tag != ours:
                    raise ValueError(f"a wrong tag: {packet}")
                return dict(packet.chunks)[wanted]

    answer = exchange("INIT", beginning(ours), "INIT ACK")
    theirs = struct.unpack_from("!I", answer)[0]
    exchange("COOKIE ECHO", answer[20:], "COOKIE ACK")
    words = exchange("DATA", data(b"who?"), "DATA")[12:].decode().split()
    if closes:
        exchange("SHUTDOWN", struct.pack("!I", 1), "SHUTDOWN ACK")
        raw.send(write(source, port, theirs, ("SHUTDOWN COMPLETE", b"")))
    return words


def main() -> None:
    match sys.argv[1:]:
        case ["serve", port, name]:
            serve(int(port), name)
        case ["ask", address, port, count, first, end]:
            for source in range(int(first), int(first) + int(count)):
                print(json.dumps(ask(address, int(port), source, end == "close")), flush=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
