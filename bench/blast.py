"""Sends small UDP packets as fast as one CPU can: `python -m bench.blast DEVICE MAC SOURCE DESTINATIONS PORT
SECONDS`.

Strategy: 64 frames, one for each flow, are built once and handed to the kernel again and again by sendmmsg on a
packet socket: Python's share is one call through ctypes for 64 packets. Says `going` when the first are out, and at
the end how many packets the kernel took and in how many seconds.
"""

from __future__ import annotations

import ctypes
import errno
import signal
import socket
import struct
import sys
import time

from bench import share

FLOWS = 64
FIRST_PORT = 10_000
PAYLOAD = b"nfqlb bench packet"  # 18 bytes: with headers an IP packet of 46, the least that Ethernet takes
ETHERNET_IP = 0x0800
SO_SNDBUFFORCE = 32


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Message(ctypes.Structure):
    """struct mmsghdr of <sys/socket.h>, 64-bit."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.POINTER(Iovec)),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_size_t),  # an int and what aligns the next
        ("sent", ctypes.c_size_t),
    ]


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(source: str, destination: str, sport: int, dport: int) -> bytes:
    """An IPv4 packet with right checksums."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    length = 8 + len(PAYLOAD)
    udp = struct.pack("!4H", sport, dport, length, 0) + PAYLOAD
    check = checksum(addresses + struct.pack("!2H", socket.IPPROTO_UDP, length) + udp) or 0xFFFF
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
    header = header[:10] + struct.pack("!H", checksum(header + addresses)) + addresses
    return header + udp[:6] + struct.pack("!H", check) + PAYLOAD


def frames(mac: bytes, own: bytes, source: str, destinations: list[str], port: int) -> list[bytes]:
    """One for each flow; the flows take the destinations in turn."""
    ethernet = mac + own + ETHERNET_IP.to_bytes(2)
    return [
        ethernet + packet(source, destinations[flow % len(destinations)], FIRST_PORT + flow, port)
        for flow in range(FLOWS)
    ]


def blast(link: socket.socket, batch: list[bytes], seconds: float) -> tuple[int, float]:
    """Send the batch over and over until SIGTERM or so long: how many packets the kernel took, in how many seconds."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    buffers = [ctypes.create_string_buffer(frame, len(frame)) for frame in batch]
    vectors = (Iovec * len(batch))(*[Iovec(ctypes.addressof(buffer), len(buffer)) for buffer in buffers])
    messages = (Message * len(batch))()
    for message, vector in zip(messages, vectors, strict=True):
        message.vector, message.vector_length = ctypes.pointer(vector), 1
    send, fd, size = ctypes.CDLL(None, use_errno=True).sendmmsg, link.fileno(), len(batch)
    count, start = 0, time.monotonic()
    end = start + seconds
    print("going", flush=True)
    while (now := time.monotonic()) < end and not told:
        for _ in range(16):
            sent = send(fd, messages, size, 0)
            if sent >= 0:
                count += sent
            elif ctypes.get_errno() != errno.ENOBUFS:  # the next CPU's backlog is full: the packet is lost
                raise OSError(ctypes.get_errno(), "sendmmsg")
    return count, now - start


def main(device: str, mac: str, source: str, destinations: str, port: str, seconds: str) -> None:
    share.take(share.SENDER)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        link.bind((device, 0))
        own = link.getsockname()[4]
        batch = frames(bytes.fromhex(mac.replace(":", "")), own, source, destinations.split(","), int(port))
        print(*blast(link, batch, float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
