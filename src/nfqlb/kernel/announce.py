"""Telling the neighbours where a VIP is now: gratuitous ARP (RFC 5944, 4.6) and unsolicited NA (RFC 4861, 7.2.6).

Strategy: three rounds over all addresses, 20 ms apart, as raw frames, since the interface may hold the address as a
/32 that the kernel announces nowhere. ARP goes out as request and as reply; some hosts learn only from one of them.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

ROUNDS, PAUSE = 3, 0.02
ARP, IPV6 = 0x0806, 0x86DD
ARPHRD_ETHER = 1


def announce(device: str, addresses: Iterable[str]) -> None:
    """Send the burst; on an interface without link-layer addresses it does nothing."""
    addresses = sorted(addresses)
    with suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        hardware, mac = sock.getsockname()[3:5]
        if hardware != ARPHRD_ETHER or len(mac) != 6:
            return
        for turn in range(ROUNDS):
            if turn:
                time.sleep(PAUSE)
            for frame in (frame for address in addresses for frame in frames(mac, address)):
                with suppress(OSError):  # a full queue costs this one only
                    sock.send(frame)


def frames(mac: bytes, address: str) -> Iterator[bytes]:
    """The Ethernet frames that say: `address` is at `mac`."""
    if ":" in address:
        yield _advertisement(mac, socket.inet_pton(socket.AF_INET6, address))
        return
    ip = socket.inet_aton(address)
    for operation, target in ((1, bytes(6)), (2, mac)):
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + ip + target + ip
        yield b"\xff" * 6 + mac + struct.pack("!H", ARP) + body


def _advertisement(mac: bytes, ip: bytes) -> bytes:
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip + b"\x02\x01" + mac  # type, code, checksum, override flag
    return discovery(mac, ip, socket.inet_pton(socket.AF_INET6, "ff02::1"), body)


def discovery(mac: bytes, source: bytes, group: bytes, body: bytes) -> bytes:
    """An Ethernet frame with a message of neighbour discovery (RFC 4861), its checksum filled in, to a group."""
    total = checksum(source + group + struct.pack("!II", len(body), 58) + body)
    header = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + group
    message = body[:2] + struct.pack("!H", total) + body[4:]
    return b"\x33\x33" + group[12:] + mac + struct.pack("!H", IPV6) + header + message


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
