"""What a scheduler in Python costs: `python -m bench.pyscheduler`.

Strategy. Established packets of many flows go through the whole line of the core, in turn while their service has a
scheduler in Python, and while it has the built-in scheduler behind it: the same flows in the same memory. Meanwhile
another thread is busy in Python, as the control plane may be. The two take turns inside a round, and only ratios inside
a round are held against the bar. Beside it stands what the first packets cost. Rounds are fixed in advance, round 0
warms up and is not counted. Exit code 1 when the bar is missed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from bench import figures, share
from nfqlb._core.advisor import Advisor, Flow, Server
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.probe import Flows
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import UDP, endpoint, udp

ROUNDS = 15
FLOWS = 50_000
PACKETS = 400_000  # a round
BUDGET = 1_000_000  # nanoseconds
BAR = 0.98
VIP, REALS = endpoint("203.0.113.1:80"), [endpoint(f"10.2.0.{host}:80") for host in range(11, 21)]
SECOND = 1_000_000_000


def least(flow: Flow, servers: Sequence[Server]) -> Server:
    return min(servers, key=lambda server: server.active + server.inactive)


class Line:
    """One table with flows that are established, and a service that has either scheduler."""

    def __init__(self, advisor: Advisor | None) -> None:
        table = Table(-1, 2 * FLOWS, 0)
        self.datapath = Datapath(table)
        self.servers = [(table.slot(UDP, *VIP, *real), *real, 1, "nat") for real in REALS]
        self.choose(advisor)
        self.flows = Flows(self.datapath.worker(), udp("10.0.0.1:10000", "203.0.113.1:80", bytes(18)), FLOWS)
        self.first = self.flows.in_turn(SECOND)  # nanoseconds for the first packet of a flow

    def choose(self, advisor: Advisor | None) -> None:
        service = Service(UDP, *VIP, "wlc", self.servers, advisor=advisor)
        self.datapath.publish(Snapshot([service], udp=3600))

    def established(self) -> float:
        """Packets per second."""
        return SECOND / self.flows.at_random(PACKETS, SECOND)


def main() -> int:
    share.alone()
    share.take(share.ENGINE)
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds of {PACKETS:,} packets, median (spread)"), flush=True)
    asked = Advisor("least.py", least, BUDGET)
    ways = {"built in": None, "python": asked}
    first = {"built in": Line(None).first}
    line = Line(asked)
    first["python"] = line.first
    taken: dict[str, list[float]] = {name: [] for name in ways}
    done = threading.Event()

    def keep_busy() -> None:
        os.sched_setaffinity(threading.get_native_id(), {share.SENDER})
        while not done.is_set():
            sum(range(1000))

    other = threading.Thread(target=keep_busy)
    other.start()
    try:
        for number in range(ROUNDS + 1):
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for name in ("built in", "python", "python", "built in"):  # who comes after the other has colder caches
                line.choose(ways[name])
                rates[name].append(line.established())
            if number:
                for name, pair in rates.items():
                    taken[name].append(sum(pair) / len(pair))
    finally:
        done.set()
        other.join()
    sheet = figures.Sheet()
    for name in ways:
        print(f"first packets, {name:<17} {first[name]:9,.0f} ns each")
        sheet.figure(f"established, {name}, M/s", [rate / 1e6 for rate in taken[name]], ".3f")
    counted = asked.statistics()
    print(f"of {FLOWS:,} choices {counted.chosen:,} were the function's, {counted.late:,} late")
    ratios = [python / built for built, python in zip(taken["built in"], taken["python"], strict=True)]
    sheet.figure("python / built in", ratios, ".3f", BAR)
    return sheet.end(figures.keep("pyscheduler", {"about": about, "first": first, **taken}))


if __name__ == "__main__":
    sys.exit(main())
