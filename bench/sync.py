"""Connection sync between two tables over loopback: `python -m bench.sync`.

A million connections are given to a peer that joins, while packets of clients pass at the other end: datagrams of
TRAFFIC_FLOWS flows, RUSH of them every RUSH_SECONDS, 320,000 a second. How many pass a second, and how fast the core
is with them, is held against the seconds before there was a peer; the first has a bar, the second swings with
whatever else uses the caches. Then 5,000 connections a second begin while it listens, for ten seconds; each is told
at its third packet. The CPU is that of the end which takes more of it, by its threads' clocks. The k-th connection has
arrived when the peer's table has k; looks are 5 ms apart, which counts as lag. Nothing is dropped from the figures.
Exit code 1 below a bar.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import figures
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.mirror import Mirror
from nfqlb._core.probe import Flows
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb._core.sync import Message, Record, encode
from nfqlb.ha.sync import Syncing
from nfqlb.model import Sync
from nfqlb.testing import endpoint, tcp, udp

CONNECTIONS, RATE, SECONDS = 1_000_000, 5_000, 10.0
WHOLE_SECONDS, CPUS, TRAFFIC, LAG = 30.0, 1.0, 0.9, 3.0  # bars
TRAFFIC_FLOWS, RUSH, RUSH_SECONDS = 10_000, 6_400, 0.02
BEFORE = 3.0  # seconds of traffic without a peer
ROUNDS = 3
VIP, REALS = "203.0.113.1:80", [f"10.0.0.{at}:8080" for at in range(2, 12)]
SEEDED = 128  # records of a message
PORT = 38849


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Side:
    def __init__(self, own: str, peer: str) -> None:
        self.table = Table(-1, 2 * CONNECTIONS, now())
        self.datapath = Datapath(self.table)
        self.worker = self.datapath.worker()
        servers = [(self.table.slot(6, *endpoint(VIP), *endpoint(real)), *endpoint(real), 1, "nat") for real in REALS]
        datagrams = [
            (self.table.slot(17, *endpoint(VIP), *endpoint(real)), *endpoint(real), 1, "nat") for real in REALS
        ]
        services = [Service(6, *endpoint(VIP), "rr", servers), Service(17, *endpoint(VIP), "rr", datagrams)]
        self.datapath.publish(Snapshot(services))
        self.datapath.announce()
        self.mirror = Mirror(self.datapath)
        self.syncing = Syncing(self.mirror, 2 * CONNECTIONS, Sync(peers=(peer,), port=PORT), now, own)

    @property
    def cpu(self) -> float:
        """Seconds of CPU that its sync has had."""
        clocks = [Path(f"/proc/self/task/{thread.native_id}/schedstat") for thread in self.syncing._threads]
        return sum(int(clock.read_text().split()[0]) for clock in clocks) / 1e9

    def fill(self) -> None:
        """As if packets had made them."""
        vip, reals = endpoint(VIP), [endpoint(real) for real in REALS]
        for first in range(0, CONNECTIONS, SEEDED):
            records = [
                Record(6, *client(at), *vip, *reals[at % len(reals)], 0, 1, timeout=900)
                for at in range(first, min(first + SEEDED, CONNECTIONS))
            ]
            self.mirror.apply(encode(Message(1, 0, records)), now())


def client(number: int) -> tuple[bytes, int]:
    host, port = divmod(number, 50_000)
    return bytes(10) + b"\xff\xff" + bytes((192, 0, 2 + host // 250, 1 + host % 250)), 10_000 + port


@contextmanager
def running(side: Side) -> Iterator[Side]:
    side.syncing.start()
    try:
        yield side
    finally:
        side.syncing.stop()


class Traffic:
    """Packets of clients through a worker of its own, until `stop`."""

    def __init__(self, side: Side) -> None:
        self._flows = Flows(side.datapath.worker(), udp("11.0.0.1:10000", VIP, bytes(18)), TRAFFIC_FLOWS)
        self._flows.in_turn(now())
        self._ends = threading.Event()
        self._passed = self._mark = (0, 0.0, time.monotonic())  # packets, nanoseconds in the core, when
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def figures(self) -> tuple[float, float]:
        """Packets a second since the last call, and how many there would be if the core did nothing else."""
        then, self._mark = self._mark, self._passed
        packets, nanoseconds, seconds = (now - before for now, before in zip(self._mark, then, strict=True))
        return packets / seconds, packets / nanoseconds * 1e9

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ends.is_set():
            taken = self._flows.at_random(RUSH, now()) * RUSH
            self._passed = (self._passed[0] + RUSH, self._passed[1] + taken, time.monotonic())
            due = max(due + RUSH_SECONDS, time.monotonic())
            self._ends.wait(due - time.monotonic())


def whole() -> tuple[float, float, float, float]:
    """Seconds until the peer has all, CPUs of the busier end meanwhile, and traffic and the core's speed as parts of
    what they were.
    """
    one = Side("127.0.9.1", "127.0.9.2")
    one.fill()
    with running(one):
        traffic = Traffic(one)
        try:
            time.sleep(BEFORE)
            rate, speed = traffic.figures()
            other = Side("127.0.9.2", "127.0.9.1")
            began, busy = time.monotonic(), one.cpu
            with running(other):
                whole = CONNECTIONS + TRAFFIC_FLOWS
                while other.table.used < whole and time.monotonic() - began < 10 * WHOLE_SECONDS:
                    time.sleep(0.005)
                seconds = time.monotonic() - began
                cpus = max(one.cpu - busy, other.cpu) / seconds
                meanwhile = traffic.figures()
                return seconds, cpus, meanwhile[0] / rate, meanwhile[1] / speed
        finally:
            traffic.stop()


def lag() -> tuple[float, int]:
    """The 99th percentile of seconds until a connection has arrived, and how many did not."""
    count = int(RATE * SECONDS)
    with running(Side("127.0.9.1", "127.0.9.2")) as one, running(Side("127.0.9.2", "127.0.9.1")) as other:
        while not other.syncing.ready:
            time.sleep(0.01)
        told: list[float] = []

        def make() -> None:
            began = time.monotonic()
            for number in range(count):
                if (early := began + number / RATE - time.monotonic()) > 0:
                    time.sleep(early)
                end = f"198.{18 + number // 50_000}.0.1:{10_000 + number % 50_000}"
                for flags in ("S", "A", "A"):
                    one.worker.process(tcp(end, VIP, flags), now())
                told.append(time.monotonic())

        thread = threading.Thread(target=make)
        thread.start()
        arrived: list[float] = []
        while len(arrived) < count and time.monotonic() < (told[-1] if told else time.monotonic()) + 10 * LAG:
            at = time.monotonic()
            arrived += [at] * (other.table.used - len(arrived))
            time.sleep(0.005)
        thread.join()
        lags = sorted(there - here for here, there in zip(told, arrived, strict=False))
        return lags[int(len(lags) * 0.99)] if lags else float("inf"), count - len(arrived)


def main() -> int:
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds, median (spread)"))
    rounds = [(*whole(), *lag()) for _ in range(ROUNDS)]
    seconds, cpus, part, speed, late, lost = zip(*rounds, strict=True)
    sheet = figures.Sheet()
    sheet.figure(f"{CONNECTIONS:,} are told, s", seconds, ".1f", most=WHOLE_SECONDS, each=True)
    sheet.figure("CPUs of an end meanwhile", cpus, ".2f", most=CPUS, each=True)
    sheet.figure("of the traffic, meanwhile", part, ".3f", TRAFFIC)
    sheet.figure("of the core's speed, meanwhile", speed, ".2f")
    sheet.figure(f"lag's p99 at {RATE:,}/s, s", late, ".3f", most=LAG, each=True)
    sheet.figure("connections not told", lost, ",.0f", most=0, each=True)
    return sheet.end(figures.keep("sync", {"about": about, "rounds": rounds}))


if __name__ == "__main__":
    sys.exit(main())
