"""Questions that only the wire can answer: who else has an address, and how long a packet may be.

Strategy: all questions go out at once and answers are collected until a deadline, so the time does not depend on their
number. Who has an address is asked as a machine does that is about to take it (RFC 5227 probe, RFC 4862 5.4.2
solicitation): no sender address, so nobody learns anything wrong. Sizes are asked by echo requests that must not be
cut, also beyond a path MTU that the kernel has learned.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack

from nfqlb.kernel.announce import ARP, ARPHRD_ETHER, IPV6, checksum, discovery
from nfqlb.model import family

PATIENCE = 0.25  # seconds
LATE = 1000  # packets of a socket that may wait after that
KINDS = {4: ARP, 6: IPV6}
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PROBE = 10, 23, 3  # IP_PMTUDISC_PROBE: DF, whatever is known of the path
SIZES = (9000, 4000, 1500, 1492, 1480, 1476, 1460, 1450, 1420, 1400, 1350, 1280)
SMALL = 84  # bytes, as ping sends


def who_has(places: Collection[tuple[str, str]]) -> dict[str, set[bytes]]:
    """The link-layer addresses that answer for each address, asked on that device: (device, address)."""
    asked: dict[socket.socket, set[str]] = {}
    answers: dict[str, set[bytes]] = {}
    with ExitStack() as stack:
        for device, version in sorted({(device, family(address)) for device, address in places}):
            kind = KINDS[version]
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)))
            sock.bind((device, kind))
            hardware, mac = sock.getsockname()[3:5]
            if hardware == ARPHRD_ETHER:
                asked[sock] = {address for on, address in places if on == device and family(address) == version}
                for address in asked[sock]:
                    sock.send(_question(mac, address))
        for sock in _hearing(asked):
            frame, about = sock.recvfrom(2048)
            claim = _answer(frame) if about[2] != socket.PACKET_OUTGOING else None
            if claim and claim[0] in asked[sock]:
                answers.setdefault(claim[0], set()).add(claim[1])
    return answers


def echoes(sizes: Mapping[str, int]) -> dict[str, int]:
    """For each server that answers echo requests, the longest answered one of its `sizes` and shorter ones."""
    heard = _echoes(sizes)
    again = {server: size for server, size in sizes.items() if 0 < heard.get(server, 0) < size}
    for server, size in (_echoes(again) if again else {}).items():  # one may be lost by chance
        heard[server] = max(size, heard[server])
    return heard


def _echoes(sizes: Mapping[str, int]) -> dict[str, int]:
    heard: dict[str, int] = {}
    identifier = os.getpid() & 0xFFFF
    with ExitStack() as stack:
        sockets = {
            version: stack.enter_context(_echo_socket(version)) for version in sorted({family(ip) for ip in sizes})
        }
        for server, most in sizes.items():
            for size in sorted({SMALL, most, *(size for size in SIZES if size < most)}):
                try:
                    sockets[family(server)].sendto(_echo(family(server), size, identifier), (server, 0))
                except OSError:
                    break  # longer than the device takes, or no way there
        for sock in _hearing(sockets.values()):
            packet, peer = sock.recvfrom(65535)
            size = _reply(sock.family, packet, identifier)
            if size:
                server = str(ipaddress.ip_address(peer[0]))
                heard[server] = max(size, heard.get(server, 0))
    return heard


def _hearing(sockets: Collection[socket.socket]) -> Iterator[socket.socket]:
    """A socket for each packet that comes within PATIENCE; then for those that wait, where this process was late."""
    end, late = time.monotonic() + PATIENCE, 0
    while sockets and late < LATE:
        left = max(0.0, end - time.monotonic())
        ready = select.select(list(sockets), [], [], left)[0]
        yield from ready
        if not left and not ready:
            return
        late += not left


def _question(mac: bytes, address: str) -> bytes:
    if family(address) == 4:
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + bytes(4) + bytes(6) + socket.inet_aton(address)
        return b"\xff" * 6 + mac + struct.pack("!H", ARP) + body
    target = socket.inet_pton(socket.AF_INET6, address)
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + target[13:]
    return discovery(mac, bytes(16), group, struct.pack("!BBHI", 135, 0, 0, 0) + target)


def _answer(frame: bytes) -> tuple[str, bytes] | None:
    """Address and link-layer address of an ARP reply or a neighbour advertisement."""
    kind = frame[12:14]
    if kind == struct.pack("!H", ARP) and frame[20:22] == b"\0\2":
        return socket.inet_ntoa(frame[28:32]), frame[22:28]
    if kind == struct.pack("!H", IPV6) and frame[20] == 58 and frame[54:55] == b"\x88":
        return str(ipaddress.ip_address(frame[62:78])), frame[6:12]
    return None


def _echo_socket(version: int) -> socket.socket:
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PROBE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def _echo(version: int, size: int, identifier: int) -> bytes:
    """An echo request that makes an IP packet of `size` bytes; its sequence number says which."""
    payload = bytes(size - (28 if version == 4 else 48))
    head = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, identifier, size)
    if version == 6:
        return head + payload  # the kernel adds the checksum (RFC 3542, 3.1)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


def _reply(version: socket.AddressFamily | int, packet: bytes, identifier: int) -> int:
    """The size that this packet answers to, 0 for any other packet."""
    if version == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4 :]
    kind, _, _, whose, size = struct.unpack_from("!BBHHH", packet)
    return int(size) if kind in (0, 129) and whose == identifier else 0
