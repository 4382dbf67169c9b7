"""A director's machine that dies under traffic, and comes back: `python -m bench.failover`.

Two directors with keepalived, adverts every 0.1 s. A client sends a datagram every two milliseconds, which a real
server answers. The master's cable is cut and all its processes are killed in the same moment; later it is switched on
again, with nothing left of what it had, and takes over, as it has the higher priority. Told is how long the client had
no answer: from the last answer before to the first one after. Nothing is dropped from the figures. Exit code 1 where
packets flowed again later than BAR after a death or a return.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import sys
import threading
import time
from typing import NamedTuple

from bench import figures
from netns.pair import INTERVAL, Pair

ROUNDS = 7
PACE = 0.002
BAR = 1.0  # seconds
PORT = 7
FLOWS = 64  # source ports, in turn: each is a connection


class Round(NamedTuple):
    """Seconds without an answer."""

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
                found.append(Round(death, asking.gap(since)))
        finally:
            asking.end()
    return found


def main() -> int:
    if os.geteuid():
        print("network namespaces need root", file=sys.stderr)
        return 3
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds, seconds without an answer, median (spread)"))
    rounds = {mode: run(mode, ROUNDS) for mode in ("nat", "dr", "tun")}
    kept = figures.keep("failover", {"about": about, **{mode: [*map(list, some)] for mode, some in rounds.items()}})
    sheet = figures.Sheet()
    for mode, some in rounds.items():
        sheet.figure(f"{mode}: death, s", [one.death for one in some], ".3f", most=BAR, each=True)
        sheet.figure(f"{mode}: return, s", [one.back for one in some], ".3f", most=BAR, each=True)
    return sheet.end(kept)


if __name__ == "__main__":
    sys.exit(main())
