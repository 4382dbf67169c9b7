"""A director's machine that dies under traffic, and comes back: `python -m bench.failover`.

Two directors with keepalived, adverts every 0.1 s. A client sends a datagram every two milliseconds, which a real
server answers. The master's cable is cut and all its processes are killed in the same moment; later it is switched on
again, with nothing left of what it had, and takes over, as it has the higher priority. Told is how long the client had
no answer: from the last answer before to the first one after. Nothing is dropped from the figures. Exit code 1 where
packets flowed again later than BAR after a death, or BACK after a return.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import statistics
import sys
import threading
import time
from typing import NamedTuple

from netns.pair import INTERVAL, Pair

ROUNDS = 7
PACE = 0.002
BAR = 1.0  # seconds
BACK = 1.0
PORT = 7
FLOWS = 64  # source ports, in turn: each is a connection


class Round(NamedTuple):
    """Seconds without an answer."""

    mode: str
    death: float
    back: float


class Asking:
    """Datagrams at a fixed pace, from a thread; `answers` are the moments at which answers came."""

    def __init__(self, net: Pair) -> None:
        self.target = net.vip(), PORT
        self.sockets = [net.client.inside(self.open) for _ in range(FLOWS)]
        self.answers: list[float] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.ask, self.hear)]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def open() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ask(self) -> None:
        count, due = 0, time.monotonic()
        while not self.over.is_set():
            with contextlib.suppress(OSError):  # an ICMP error for one before
                self.sockets[count % FLOWS].sendto(b"?", self.target)
            count += 1
            due += PACE
            time.sleep(max(0.0, due - time.monotonic()))

    def hear(self) -> None:
        poll = select.epoll()
        by_fd = {one.fileno(): one for one in self.sockets}
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        while not self.over.is_set():
            for fd, _ in poll.poll(0.1):
                try:
                    data = by_fd[fd].recv(64)
                except OSError:
                    continue
                self.heard(fd, data)

    def heard(self, flow: int, data: bytes) -> None:
        """An answer came, to the flow of this socket."""
        self.answers.append(time.monotonic())

    def gap(self, since: float) -> float:
        """The longest time without an answer since then; waits until they come steadily."""
        time.sleep(2.0)
        moments = [since, *(one for one in self.answers if one >= since), time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(moments))

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        for one in self.sockets:
            one.close()


def run(mode: str, rounds: int) -> list[Round]:
    found = []
    with Pair(mode=mode, web=False, echo=True) as net:
        services = f'[[service]]\nvip = "{net.service(PORT)}/udp"\nmode = "{mode}"\nscheduler = "rr"\n'
        services += "".join(f'[[service.real]]\naddress = "{server.v4}:{PORT}"\n' for server in net.servers)
        net.start_pair(services)
        asking = Asking(net)
        try:
            for _ in range(rounds):
                time.sleep(1.0 + random.random() * INTERVAL)
                since = time.monotonic()
                net.destroy(net.director)
                net.role(net.second, "master")
                death = asking.gap(since)
                since = time.monotonic()
                net.revive(net.director)
                net.start_one(net.director, services, priority="150")
                net.role(net.director, "master")
                found.append(Round(mode, death, asking.gap(since)))
        finally:
            asking.end()
    return found


def main() -> int:
    if os.geteuid():
        print("network namespaces need root", file=sys.stderr)
        return 3
    rounds = [one for mode in ("nat", "dr", "tun") for one in run(mode, ROUNDS)]
    print(f"{'mode':<6} {'death':>7} {'worst':>7} {'return':>7} {'worst':>7}   seconds without an answer")
    for mode in ("nat", "dr", "tun"):
        deaths, backs = ([getattr(one, name) for one in rounds if one.mode == mode] for name in ("death", "back"))
        print(
            f"{mode:<6} {statistics.median(deaths):>7.3f} {max(deaths):>7.3f}"
            f" {statistics.median(backs):>7.3f} {max(backs):>7.3f}"
        )
    bars = {
        f"packets flow again within {BAR:g} s of a death": all(one.death <= BAR for one in rounds),
        f"and within {BACK:g} s of a return": all(one.back <= BACK for one in rounds),
    }
    print(f"medians and extremes of {ROUNDS} rounds")
    for bar, held in bars.items():
        print(f"{'held' if held else 'MISSED'}: {bar}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
