"""One of three active directors dies under traffic, and comes back: `python -m bench.active`.

Three directors that announce the VIP by BGP with BFD (netns.active), a router that spreads flows. A client sends
datagrams on FLOWS flows in turn, which real servers answer by their names, and holds TCP connections, some of them
silent. One director's cable is cut and all its processes are killed in the same moment; later it is switched on again,
with nothing left of what it had. In each mode once with connection sync, once without: then mh with the same key and
sloppy_tcp have to do. Told is the longest time that a flow had no answer (its own pace is part of it), how many flows
changed their real server, and how many of the held connections broke. Nothing is dropped from the figures; every round
is kept. Exit code 1 where packets of a flow came again later than BAR, where a flow moved, or where a connection broke.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import sys
import time
from collections import defaultdict

from bench import figures
from bench.failover import FLOWS, PACE, Asking
from netns import load
from netns.active import OPTIONS, SLOPPY, Active

ROUNDS = 5
BAR = 1.0  # seconds
HELD = 500
PORT = 7
MODES = ("dr", "tun")
SYNC = '[sync]\ninterface = "eth0"\nid = 7\n'
WAYS = {"sync": SYNC, "no sync": SLOPPY}


@dataclasses.dataclass(frozen=True)
class Round:
    """Seconds that a flow had no answer, at a death and at a return; flows that moved, connections that broke."""

    mode: str
    way: str
    death: float
    back: float
    moved: int
    broken: int


class Flows(Asking):
    """When each flow was answered, and by which real servers."""

    def __init__(self, net: Active) -> None:
        self.moments: defaultdict[int, list[float]] = defaultdict(list)
        self.servers: defaultdict[int, set[bytes]] = defaultdict(set)
        super().__init__(net)

    def heard(self, flow: int, data: bytes) -> None:
        self.moments[flow].append(time.monotonic())
        self.servers[flow].add(data.split()[0])

    @property
    def moved(self) -> int:
        return sum(len(servers) > 1 for servers in self.servers.values())

    def gap(self, since: float) -> float:
        """The longest time that one of the flows was without an answer since then."""
        time.sleep(2.0)
        end = time.monotonic()
        flows = [[since, *(one for one in list(moments) if one >= since), end] for moments in self.moments.values()]
        assert len(flows) == FLOWS
        return max(after - before for moments in flows for before, after in itertools.pairwise(moments))


def run(mode: str, way: str) -> list[Round]:
    found = []
    with Active(mode=mode, web=False, echo=True) as net:
        flags = 'flags = ["mh-port"]\n'
        services = net.services(PORT, "mh", flags) + net.services(PORT, "mh", flags, "udp")
        text = OPTIONS + WAYS[way] + services
        net.start_all(lambda _: text)
        held = load.Held(net.client, net.vip(), HELD)
        asking = Flows(net)
        try:
            for number in range(ROUNDS):
                dying = net.directors[number % net.DIRECTORS]
                others = [one for one in net.directors if one is not dying]
                before = held.alive()
                time.sleep(2.0 + random.random() * FLOWS * PACE)  # sync tells of silent ones within a second
                since = time.monotonic()
                net.destroy(dying)
                net.announced(*others)
                death = asking.gap(since)
                alive = held.alive()
                since = time.monotonic()
                net.revive(dying)
                net.start_one(dying, text)
                net.announced(*net.directors)
                back = asking.gap(since)
                found.append(Round(mode, way, death, back, asking.moved, before - min(alive, held.alive())))
        finally:
            asking.end()
    return found


def main() -> int:
    if os.geteuid():
        print("network namespaces need root", file=sys.stderr)
        return 3
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds"))
    rounds = [one for mode in MODES for way in WAYS for one in run(mode, way)]
    kept = figures.keep("active", {"about": about, "rounds": [dataclasses.asdict(one) for one in rounds]})
    sheet = figures.Sheet()
    for mode, way in itertools.product(MODES, WAYS):
        some = [one for one in rounds if (one.mode, one.way) == (mode, way)]
        sheet.figure(f"{mode}, {way}: death, s", [one.death for one in some], ".3f", most=BAR, each=True)
        sheet.figure(f"{mode}, {way}: return, s", [one.back for one in some], ".3f", most=BAR, each=True)
    sheet.bar(f"none of {FLOWS} flows moves", all(one.moved == 0 for one in rounds))
    sheet.bar(f"none of {HELD} held connections breaks", all(one.broken == 0 for one in rounds))
    return sheet.end(kept)


if __name__ == "__main__":
    sys.exit(main())
