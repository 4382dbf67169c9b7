"""Round trips: `python -m bench.pingpong echo PORT`, `... ask ADDRESS PORT INTERVAL SECONDS`, `... first ADDRESS PORT`.

A datagram of 18 bytes is asked back every INTERVAL seconds, so that nothing ever waits for the one before. Prints the
round trips in microseconds as a JSON list; null is one that took more than half a second, or never came. `first` asks
every 5 ms and prints when it was answered (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import json
import socket
import sys
import time

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


def ask(address: str, port: str, interval: str, seconds: str) -> None:
    trips: list[float | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(PATIENCE)
        link.connect((address, int(port)))
        for number in range(round(float(seconds) / float(interval))):
            time.sleep(float(interval))
            question = number.to_bytes(18)
            began = time.perf_counter_ns()
            link.send(question)
            try:
                while link.recv(64) != question:
                    pass
                trips.append((time.perf_counter_ns() - began) / 1000)
            except TimeoutError:
                trips.append(None)
    print(json.dumps(trips))


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
