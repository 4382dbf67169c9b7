"""Asks a VIP on one real server of direct routing or tunnelling: as the clients' packets get there, past the kernel.

Strategy: where the VIP is this machine's, the kernel would connect to itself, and refuse what comes back from it as
martian. So the first segment of a connection, or a ping, is written here, in a frame to the real server or inside a
packet to it, and answers are taken off the wire by packet sockets whose filters let those through alone. A sequence
number that nobody can guess says whose answer it is; a connection that was granted is reset at once. One port, which a
bound socket keeps others from, is that of all questions, and the number of all pings.

Formats: RFC 791, RFC 8200, RFC 9293, RFC 792, RFC 4443. Integers here are host order, addresses packed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import ipaddress
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from nfqlb.health.stream import Failed, Unknown
from nfqlb.kernel import neighbours
from nfqlb.kernel.announce import checksum
from nfqlb.model import family

ETHERTYPE = {4: 0x0800, 6: 0x86DD}
ICMP = {4: 1, 6: 58}
ECHO = {4: (8, 0), 6: (128, 129)}  # request, reply
INSIDE = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
TCP = socket.IPPROTO_TCP
SYN, RST, ACK = 0x02, 0x04, 0x10
FRESH_SECONDS = 1.0  # that a way to a real server is believed
TRIES = 3  # questions within the time of a check: one may be lost
SO_ATTACH_FILTER = 26
LOAD_BYTE, LOAD_HALF, LOAD_HALF_X, LOAD_HEADER, EQUAL, RETURN = 0x30, 0x28, 0x48, 0xB1, 0x15, 0x06

_TCP = struct.Struct("!HHIIBBHHH")
_ICMP = struct.Struct("!BBHHH")


class Question(NamedTuple):
    """What is asked of which server: its VIP and, for TCP, the port, 0 for a ping; the address that we ask from, and
    what sends a packet there.
    """

    vip: bytes
    port: int
    number: int
    source: bytes
    send: Callable[[bytes], None]


class Direct:
    """Sockets are opened when something is asked first; everything runs on the loop."""

    def __init__(self) -> None:
        self._asked: dict[tuple[bytes, int, int], tuple[Question, asyncio.Future[None]]] = {}
        self._sockets: list[socket.socket] = []
        self._listeners: dict[int, socket.socket] = {}
        self._tunnels: dict[int, socket.socket] = {}
        self._port = 0
        self._ways: dict[str, neighbours.Hop] = {}
        self._servers: dict[str, float] = {}  # when each was asked for last
        self._looked = 0.0
        self._looking = asyncio.Lock()

    async def ask(self, server: str, mode: str, vip: str, port: int, source: str, seconds: float) -> None:
        """Return when the server answers for the VIP; it may take for ever. Failed, OSError: it does not; Unknown: it
        cannot be asked from here.
        """
        version = family(vip)
        way = await self._way(server)
        if way.local:
            raise Unknown("the real server is this machine")
        packed = ipaddress.ip_address(vip).packed
        ours = ipaddress.ip_address(source).packed if source else way.address[-len(packed) :]
        if not any(ours) or ours == packed:
            raise Unknown("this machine has no address of its own on the way to the real server; give a source")
        self._open(version)
        send = self._framed(version, way) if mode == "dr" else self._wrapped(version, server)
        question = Question(packed, port, secrets.randbits(32), ours, send)
        key, answer = question[:3], asyncio.get_running_loop().create_future()
        self._asked[key] = question, answer
        try:
            while True:
                send(self._packet(question))
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds / TRIES):
                        return await asyncio.shield(answer)
        finally:
            del self._asked[key]

    def close(self) -> None:
        for version in self._listeners:
            asyncio.get_running_loop().remove_reader(self._listeners[version])
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        self._listeners.clear()
        self._tunnels.clear()
        self._port = 0

    async def _way(self, server: str) -> neighbours.Hop:
        """The way to the server; all that were asked for lately are looked up at once."""
        async with self._looking:
            now = time.monotonic()
            if now - self._looked > FRESH_SECONDS or server not in self._ways:
                self._servers[server] = now
                self._ways = await asyncio.to_thread(neighbours.hops, list(self._servers))
                self._looked = now
                self._servers = {one: asked for one, asked in self._servers.items() if now - asked < 600}
            self._servers[server] = now
        if server not in self._ways:
            raise Failed("no route, or no answer to ARP or ND")
        return self._ways[server]

    def _open(self, version: int) -> None:
        if version in self._listeners:
            return
        if not self._port:
            holder = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
            self._sockets.append(holder)
            holder.bind(("", 0))
            self._port = holder.getsockname()[1]
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        listener = socket.socket(socket.AF_PACKET, kind, socket.htons(ETHERTYPE[version]))
        self._sockets.append(listener)
        code = _filter(version, self._port)
        buffer = (ctypes.c_char * len(code)).from_buffer_copy(code)
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        kind = socket.AF_INET if version == 4 else socket.AF_INET6
        self._tunnels[version] = socket.socket(kind, socket.SOCK_RAW | socket.SOCK_NONBLOCK, INSIDE[version])
        self._sockets.append(self._tunnels[version])
        self._listeners[version] = listener
        asyncio.get_running_loop().add_reader(listener, self._hear, version, listener)

    def _framed(self, version: int, way: neighbours.Hop) -> Callable[[bytes], None]:
        device = socket.if_indextoname(way.interface)
        to = (device, ETHERTYPE[version], 0, 0, way.destination)
        return lambda packet: _sent(self._listeners[version].sendto(packet, to))

    def _wrapped(self, version: int, server: str) -> Callable[[bytes], None]:
        return lambda packet: _sent(self._tunnels[version].sendto(packet, (server, 0)))

    def _packet(self, question: Question) -> bytes:
        if question.port:
            return _segment(question, self._port, question.number, 0, SYN)
        version = 4 if len(question.vip) == 4 else 6
        message = _ICMP.pack(ECHO[version][0], 0, 0, self._port, 0) + question.number.to_bytes(4)
        pseudo = b"" if version == 4 else _pseudo(question, len(message), ICMP[6])
        message = message[:2] + checksum(pseudo + message).to_bytes(2) + message[4:]
        return _headed(question, ICMP[version], message)

    def _hear(self, version: int, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):
                packet = listener.recv(256)
                with suppress(struct.error, IndexError):
                    self._take(version, packet)

    def _take(self, version: int, packet: bytes) -> None:
        """An answer: whose it is, and what it says."""
        size = (packet[0] & 0xF) * 4 if version == 4 else 40
        vip = packet[12:16] if version == 4 else packet[8:24]
        body = packet[size:]
        if (packet[9] if version == 4 else packet[6]) == ICMP[version]:
            asked = self._asked.get((vip, 0, int.from_bytes(body[8:12])))
            if asked and body[0] == ECHO[version][1]:
                _resolve(asked[1])
            return
        port, _, _, number, _, flags, _, _, _ = _TCP.unpack_from(body)
        asked = self._asked.get((vip, port, number - 1 & 0xFFFFFFFF))
        if flags & RST and asked:
            _resolve(asked[1], ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
        elif flags & (SYN | ACK) == SYN | ACK:
            if asked:
                _resolve(asked[1])
            for question, _ in [asked] if asked else list(self._asked.values()):
                if (question.vip, question.port) == (vip, port):  # a connection of before, if nobody asked for this one
                    question.send(_segment(question, self._port, number, 0, RST))


def _segment(question: Question, port: int, number: int, acknowledged: int, flags: int) -> bytes:
    options = b"\x02\x04\x05\xb4" if flags & SYN else b""  # MSS 1460
    words = 5 + len(options) // 4
    segment = _TCP.pack(port, question.port, number, acknowledged, words << 4, flags, 65535 if flags & SYN else 0, 0, 0)
    segment += options
    total = checksum(_pseudo(question, len(segment), TCP) + segment).to_bytes(2)
    return _headed(question, TCP, segment[:16] + total + segment[18:])


def _headed(question: Question, protocol: int, body: bytes) -> bytes:
    """The body behind an IP header."""
    ends = question.source + question.vip
    if len(question.vip) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + ends + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0) + ends
    return header[:10] + checksum(header).to_bytes(2) + header[12:] + body


def _pseudo(question: Question, length: int, protocol: int) -> bytes:
    """What a checksum is over beside the body (RFC 9293, 3.1; RFC 8200, 8.1)."""
    rest = struct.pack("!II", length, protocol) if len(question.vip) == 16 else struct.pack("!HH", protocol, length)
    return question.source + question.vip + rest


def _filter(version: int, port: int) -> bytes:
    """A classic BPF program (linux/filter.h) on the network header: TCP to the port, and echoes of that number."""
    kind, ahead = (9, 0) if version == 4 else (6, 40)
    load = LOAD_HALF_X if version == 4 else LOAD_HALF
    lines = [
        (LOAD_BYTE, 0, 0, kind),
        (LOAD_HEADER, 0, 0, 0),  # X: the length of an IPv4 header
        (EQUAL, 0, 2, TCP),
        (load, 0, 0, ahead + 2),
        (EQUAL, 3, 4, port),
        (EQUAL, 0, 3, ICMP[version]),
        (load, 0, 0, ahead + 4),
        (EQUAL, 0, 1, port),
        (RETURN, 0, 0, 0xFFFF),
        (RETURN, 0, 0, 0),
    ]
    return b"".join(struct.pack("@HBBI", *line) for line in lines)


def _resolve(answer: asyncio.Future[None], error: OSError | None = None) -> None:
    if not answer.done():
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(None)


def _sent(_: int) -> None:
    """What a socket says of a packet that it took."""
