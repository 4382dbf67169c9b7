"""More than anybody can take: `python -m bench.deluge DEVICE MAC SOURCE DESTINATION PORT SECONDS`.

Strategy: as bench.blast, with two batches in turn: 64 small datagrams of 64 flows, and 64 SYNs of connections that were
never seen before. A next connection has the source port raised by one and the sequence number lowered by as much, so
the checksum stays; 64 addresses of 65,535 ports each are four million connections. Says `going`, then what the kernel
took and in how many seconds.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import signal
import socket
import struct
import sys
import time

from bench import share
from bench.blast import ETHERNET_IP, FLOWS, SO_SNDBUFFORCE, Iovec, Message, checksum, frames

FIRST = "10.1.200.1"  # spoofed client of the first SYN
SYN_LENGTH, SPORT, SEQUENCE_LOW = 14 + 40, 14 + 20, 14 + 20 + 6


def syn(source: str, destination: str, port: int) -> bytes:
    """An IPv4 SYN from port 0 with sequence number 0xffff; both are written over."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0)
    header = header[:10] + struct.pack("!H", checksum(header + addresses)) + addresses
    tcp = struct.pack("!HHIIBBHHH", 0, port, 0xFFFF, 0, 5 << 4, 2, 64240, 0, 0)
    check = checksum(addresses + struct.pack("!2H", socket.IPPROTO_TCP, len(tcp)) + tcp)
    return header + tcp[:16] + struct.pack("!H", check) + tcp[18:]


def messages(batch: list[ctypes.Array[ctypes.c_char]]) -> ctypes.Array[Message]:
    """What sendmmsg takes; the caller keeps the buffers."""
    vectors = (Iovec * len(batch))(*[Iovec(ctypes.addressof(buffer), len(buffer)) for buffer in batch])
    found = (Message * len(batch))()
    for message, vector in zip(found, vectors, strict=True):
        message.vector, message.vector_length = ctypes.pointer(vector), 1
    return found


def renew(batch: list[ctypes.Array[ctypes.c_char]], port: int) -> None:
    new, low = struct.pack("!H", port), struct.pack("!H", 0xFFFF - port)
    for frame in batch:
        frame[SPORT : SPORT + 2] = new
        frame[SEQUENCE_LOW : SEQUENCE_LOW + 2] = low


def main(device: str, mac: str, source: str, destination: str, port: str, seconds: str) -> None:
    share.take(share.SENDER)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        link.bind((device, 0))
        to, own = bytes.fromhex(mac.replace(":", "")), link.getsockname()[4]
        ethernet = to + own + ETHERNET_IP.to_bytes(2)
        clients = [str(ipaddress.ip_address(FIRST) + i) for i in range(FLOWS)]
        syns = [ctypes.create_string_buffer(ethernet + syn(one, destination, int(port)), SYN_LENGTH) for one in clients]
        small = [
            ctypes.create_string_buffer(one, len(one)) for one in frames(to, own, source, [destination], int(port))
        ]
        batches = messages(small), messages(syns)
        send, fd, count, turn = ctypes.CDLL(None, use_errno=True).sendmmsg, link.fileno(), 0, 0
        start = now = time.monotonic()
        print("going", flush=True)
        while now < start + float(seconds) and not told:
            turn = turn % 0xFFFF + 1
            renew(syns, turn)
            for batch in batches:
                sent = send(fd, batch, FLOWS, 0)
                if sent >= 0:
                    count += sent
                elif ctypes.get_errno() != errno.ENOBUFS:
                    raise OSError(ctypes.get_errno(), "sendmmsg")
            now = time.monotonic()
        print(count, now - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
