"""Numbered datagrams at an even rate, there and back: what was sent, what each side saw, and what it saw late.

Run inside namespaces, a line of JSON each:
    python -m netns.stream serve PORT                            ready, then after a line on standard input what it saw
    python -m netns.stream send ADDRESS PORT RATE SECONDS FLOWS  ready, then how many it sent and which came back

`seen` is a string of hexadecimal digits, a bit for each number, the lowest first; `late` how many came after a higher
number of the same flow. The sender's `silences` are the times without an answer, of SILENCE and longer: the moments
(CLOCK_MONOTONIC) of the last answer before and of the first one after.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

TICK = 0.001  # seconds: packets leave in small groups
LINGER = 1.0  # seconds since the last datagram, there or back, until what is missing counts as lost
BUFFER = 64 << 20  # for a program that has to wait for a CPU
SILENCE = 0.01  # seconds
SO_RCVBUFFORCE = 33
IP_PKTINFO = 8  # include/uapi/linux/in.h
NUMBER = struct.Struct("!Q")


class Seen:
    """Which numbers arrived."""

    def __init__(self) -> None:
        self.flags = bytearray()
        self.newest: dict[object, int] = {}
        self.late = 0

    def add(self, number: int, flow: object) -> None:
        if number < self.newest.get(flow, 0):
            self.late += 1
        self.newest[flow] = number
        if number >= len(self.flags):
            self.flags.extend(bytes(number + 1 - len(self.flags) + 65536))
        self.flags[number] = 1

    def figures(self) -> dict[str, object]:
        bits = "".join(map(str, reversed(self.flags)))
        return {"seen": f"{int(bits or '0', 2):x}", "late": self.late}


def wide(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    return sock


def serve(port: str) -> None:
    seen = Seen()
    sock = wide(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("", int(port)))
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    poller.register(sys.stdin, select.POLLIN)
    print("ready", flush=True)
    while sys.stdin.fileno() not in dict(poller.poll()):
        with suppress(BlockingIOError):
            while True:
                data, about, _, peer = sock.recvmsg(64, 64, socket.MSG_DONTWAIT)
                came_to = bytes(4) + about[0][2][4:8] + bytes(4)  # in_pktinfo: a VIP answers as a VIP
                sock.sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, came_to)], 0, peer)
                seen.add(NUMBER.unpack(data)[0], peer)
    print(json.dumps(seen.figures()), flush=True)


def send(address: str, port: str, rate: str, seconds: str, flows: str) -> None:
    seen, sent, total = Seen(), 0, int(float(rate) * float(seconds))
    sockets = [wide(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(int(flows))]
    answers = select.epoll()
    for sock in sockets:
        sock.connect((address, int(port)))
        answers.register(sock, select.EPOLLIN)
    by_fd = {sock.fileno(): sock for sock in sockets}
    silences: list[tuple[float, float]] = []
    print("ready", flush=True)
    began = last = heard = time.monotonic()
    while sent < total or time.monotonic() - last < LINGER:
        due = min(total, int((time.monotonic() - began) * float(rate)))
        for number in range(sent, due):
            sockets[number % len(sockets)].send(NUMBER.pack(number))
        arrived = answers.poll(TICK)
        if due > sent or arrived:
            last = time.monotonic()
        if arrived:
            silences += [(heard, last)] * (last - heard >= SILENCE)
            heard = last
        sent = due
        for fd, _ in arrived:
            with suppress(BlockingIOError):
                while True:
                    seen.add(NUMBER.unpack(by_fd[fd].recv(64, socket.MSG_DONTWAIT))[0], fd)
    print(json.dumps({"sent": sent, "silences": silences, **seen.figures()}), flush=True)


VERBS: dict[str, Callable[..., None]] = {"serve": serve, "send": send}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
