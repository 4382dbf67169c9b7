"""Connection sync between two tables over loopback: `python -m bench.sync`.

A million connections are given to a peer that joins, and 5,000 a second begin while it listens, for ten seconds; each
is told at its third packet. Both ends and who makes the connections share this process, so the CPU is that of all of
them. The k-th connection has arrived when the peer's table has k; looks are 5 ms apart, which counts as lag. Nothing is
dropped from the figures. Exit code 1 below a bar.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.mirror import Mirror
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb._core.sync import Message, Record, encode
from nfqlb.ha.sync import Syncing
from nfqlb.model import Sync
from nfqlb.testing import endpoint, tcp

CONNECTIONS, RATE, SECONDS = 1_000_000, 5_000, 10.0
WHOLE_SECONDS, CPUS, LAG = 30.0, 1.0, 3.0  # bars
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
        self.datapath.publish(Snapshot([Service(6, *endpoint(VIP), "rr", servers)]))
        self.datapath.announce()
        self.mirror = Mirror(self.datapath)
        self.syncing = Syncing(self.mirror, 2 * CONNECTIONS, Sync(peers=(peer,), port=PORT), now, own)

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


def whole() -> tuple[float, float]:
    """Seconds until the peer has all, and CPUs meanwhile."""
    one = Side("127.0.9.1", "127.0.9.2")
    one.fill()
    with running(one):
        other = Side("127.0.9.2", "127.0.9.1")
        began, busy = time.monotonic(), time.process_time()
        with running(other):
            while other.table.used < CONNECTIONS and time.monotonic() - began < 10 * WHOLE_SECONDS:
                time.sleep(0.005)
            seconds = time.monotonic() - began
            return seconds, (time.process_time() - busy) / seconds


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
    code = 0
    for number in range(1, ROUNDS + 1):
        seconds, cpus = whole()
        late, lost = lag()
        print(
            f"round {number}: {CONNECTIONS:,} connections in {seconds:.1f} s with {cpus:.2f} CPUs; at {RATE:,} new ones"
        )
        print(f"  a second the lag's p99 is {late:.3f} s, {lost} lost", flush=True)
        if seconds > WHOLE_SECONDS or cpus > CPUS or late > LAG or lost:
            code = 1
    if code:
        print(f"bars: {WHOLE_SECONDS:.0f} s, {CPUS:g} CPU, {LAG:g} s, none lost", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
