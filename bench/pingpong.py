"""Round trips: `python -m bench.pingpong echo PORT`, `... ask PORT INTERVAL SECONDS ADDRESS ...` or
`... first ADDRESS PORT`.

A datagram of 18 bytes is asked back every INTERVAL seconds, so that nothing ever waits for the one before; SECONDS for
each address, a few at a time in turn, so that a moment in which the machine is slower comes upon all of them. Prints
the round trips in microseconds as JSON, a list for each address; null is one that took more than half a second, or
never came. `first` asks every 5 ms and prints when it was answered (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import json
import socket
import sys
import time

TURN = 20  # round trips
PATIENCE = 0.5  # seconds
AGAIN = 0.005
IP_PKTINFO = 8  # include/uapi/linux/in.h


def echo(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("", int(port)))
        link.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        print("ready", flush=True)
        while True:
            question, about, _, asker = link.recvmsg(64, 64)
            came_to = bytes(4) + about[0][2][4:8] + bytes(4)  # in_pktinfo: a VIP answers as a VIP
            link.sendmsg([question], [(socket.IPPROTO_IP, IP_PKTINFO, came_to)], 0, asker)


def ask(port: str, interval: str, seconds: str, *addresses: str) -> None:
    links, trips = [], [list[float | None]() for _ in addresses]
    for address in addresses:
        links.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        links[-1].settimeout(PATIENCE)
        links[-1].connect((address, int(port)))
    for _ in range(round(float(seconds) / float(interval) / TURN)):
        for link, taken in zip(links, trips, strict=True):
            for _ in range(TURN):
                time.sleep(float(interval))
                taken.append(trip(link, len(taken).to_bytes(18)))
    print(json.dumps(trips))


def trip(link: socket.socket, question: bytes) -> float | None:
    began = time.perf_counter_ns()
    link.send(question)
    try:
        while link.recv(64) != question:
            pass
        return (time.perf_counter_ns() - began) / 1000
    except TimeoutError:
        return None


def first(address: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(AGAIN)
        link.connect((address, int(port)))
        print("asking", flush=True)
        while True:
            try:
                link.send(bytes(18))
                link.recv(64)
                break
            except TimeoutError:
                continue
            except OSError:  # nobody there yet
                time.sleep(AGAIN)
    print(time.monotonic())


if __name__ == "__main__":
    {"echo": echo, "ask": ask, "first": first}[sys.argv[1]](*sys.argv[2:])
