"""Among many servers the core finds at once what a walk over all would find: the walk is here, in Python.

Strategy: connections begin, are answered, close, are reset and time out, servers come, go and change, at random. Before
each new connection the walk looks at the core's own counters and says who gets it. Thresholds follow the kernel: a
server that reached its upper one counts as overloaded until an ending leaves it below the lower one
(net/netfilter/ipvs/ip_vs_conn.c, ip_vs_bind_dest, ip_vs_unbind_dest).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from random import Random

import pytest

from nfqlb.testing import FORWARD, tcp
from tests.core.lab import Lab, Virtual
from tests.sizes import SEQUENCE_STEPS, SEQUENCES

SCHEDULERS = ["lc", "wlc", "sed", "nq", "fo", "ovf", "lblc", "lblcr"]
DESTINATIONS = [f"198.51.100.{at}:80" for at in range(1, 7)]
WORKERS = 3
FEW = 16  # servers up to which the core walks (ranking.pyx)
HOSTS = 40  # clients that stay with their servers
FOREVER = 30 * 86400  # seconds


@dataclass
class Server:
    weight: int
    upper: int = 0
    lower: int = 0
    overloaded: bool = False

    @property
    def given(self) -> tuple[int, int, int]:
        return self.weight, self.upper, self.lower


class Walk:
    """A service by mark, its real servers in the order in which they were added, and what a walk over them finds."""

    def __init__(self, scheduler: str, chance: Random, count: int, persistence: int = 0) -> None:
        self.scheduler, self.chance, self.persistence = scheduler, chance, persistence
        self.servers: dict[str, Server] = {}
        self.left: list[str] = []
        self.led: dict[str, str] = {}  # with persistence: the server of each client
        self.known: dict[str, list[str]] = {}  # lblc, lblcr: servers of a destination, newest first
        self.opened: list[tuple[str, str, str]] = []  # client, destination, server
        self.made = 0
        self.lab = Lab(capacity=4096, workers=WORKERS)
        for _ in range(count):
            self.add()
        self.publish()

    # -- configuration

    def add(self) -> None:
        self.made += 1
        self.servers[f"10.{self.made >> 8}.{self.made & 255}.1:0"] = self.drawn()

    def drawn(self) -> Server:
        upper = self.chance.choice([0, 0, 1, 2, 5, 9])
        return Server(self.chance.choice([0, 1, 1, 2, 3, 7]), upper, self.chance.randint(1, upper) if upper else 0)

    def edit(self) -> None:
        """One or several changes, published at once."""
        self.settle()
        before = dict(self.servers)
        for _ in range(self.chance.choice([1, 1, 5])):
            what = self.chance.random()
            real = self.chance.choice(list(self.servers))
            if what < 0.15:
                self.add()
            elif what < 0.25 and self.left:
                self.servers[self.left.pop()] = self.drawn()  # the last of them all
            elif what < 0.5 and len(self.servers) > FEW - 2:
                del self.servers[real]
                self.left.append(real)
            else:
                self.servers[real] = self.drawn()
        for real, new in self.servers.items():
            if real in before and new is not before[real]:
                new.overloaded = before[real].overloaded and 0 < new.upper <= before[real].upper
        self.publish()
        for real in self.servers.keys() - before.keys():
            self.recall(real)

    def publish(self) -> None:
        reals = {real: server.given for real, server in self.servers.items()}
        self.lab.configure(Virtual("0.0.0.0:0", reals, self.scheduler, mark=1, persistence=self.persistence))

    def recall(self, real: str) -> None:
        """A server that is new here may have connections, from when it was here before."""
        server = self.servers[real]
        server.overloaded = 0 < server.upper <= sum(self.load(real))

    # -- the rules

    def load(self, real: str) -> tuple[int, int]:
        return self.lab.load(real, "0.0.0.0:0")

    def settle(self) -> None:
        """What the kernel does at each ending."""
        for real, server in self.servers.items():
            if server.overloaded and sum(self.load(real)) < server.lower:
                server.overloaded = False

    def expected(self, destination: str) -> str | None:
        if self.scheduler in ("lblc", "lblcr"):
            return self.local(destination)
        return self.least(self.scheduler)

    def least(self, scheduler: str) -> str | None:
        best: tuple[Fraction, str] | None = None
        for real, server in reversed(self.servers.items()):
            active, inactive = self.load(real)
            if server.weight == 0 or server.overloaded or (scheduler == "ovf" and active > server.weight):
                continue
            cost = {
                "lc": Fraction(256 * active + inactive),
                "wlc": Fraction(256 * active + inactive, server.weight),
                "sed": Fraction(active + 1, server.weight),
                "nq": Fraction(active + 1 if active else 0, server.weight),
                "fo": Fraction(-server.weight),
                "ovf": Fraction(-server.weight),
            }[scheduler]
            if best is None or cost < best[0]:
                best = cost, real
        return best and best[1]

    def local(self, destination: str) -> str | None:
        replicated = self.scheduler == "lblcr"
        chosen, cost = None, Fraction(0)
        for real in self.known.get(destination, []):
            server = self.servers.get(real)
            if server is None or server.weight == 0 or (replicated and server.overloaded):
                continue
            active, inactive = self.load(real)
            this = Fraction(256 * active + inactive, server.weight)
            if chosen is None or this < cost:
                chosen, cost = real, this
        if chosen is not None and not self.is_loaded(chosen):
            return chosen
        best = self.least("wlc")
        if best is not None:
            others = self.known.get(destination, []) if replicated else []
            self.known[destination] = others if best in others else [best, *others]
        return best

    def is_loaded(self, real: str) -> bool:
        if self.load(real)[0] <= self.servers[real].weight:
            return False
        return any(2 * self.load(other)[0] < server.weight for other, server in self.servers.items())

    # -- what happens

    def begin(self, number: int) -> None:
        """A new connection goes where the walk says."""
        host = f"192.0.2.{self.chance.randint(1, HOSTS) if self.persistence else 1}"
        client, destination = f"{host}:{1024 + number}", self.chance.choice(DESTINATIONS)
        self.lab.workers[0].expire(self.lab.clock())
        self.settle()
        expected = self.led.pop(host, None)
        if expected not in self.servers:
            expected = self.expected(destination)
        result = self.lab.send(tcp(client, destination), mark=1, worker=self.chance.randrange(WORKERS))
        got = None if result.packet is None else "10.{}.{}.{}:0".format(*result.packet[17:20])
        assert got == expected, (self.scheduler, self.servers, expected and self.load(expected), got and self.load(got))
        if got is not None:
            server = self.servers[got]
            server.overloaded = server.overloaded or 0 < server.upper <= sum(self.load(got))
            self.opened.append((client, destination, got))
            if self.persistence:
                self.led[host] = got

    def go_on(self) -> None:
        """A packet of an older connection, from the client or from its server, that may change its state."""
        if not self.opened:
            return
        client, destination, real = self.opened.pop(self.chance.randrange(len(self.opened)))
        worker, end = self.chance.randrange(WORKERS), real.replace(":0", ":80")
        segment = self.chance.choice(["A", "A", "FA", "R", "SA"])
        if segment == "SA":
            self.lab.send(tcp(end, client, segment), hook=FORWARD, worker=worker)
        else:
            self.lab.send(tcp(client, destination, segment), mark=1, worker=worker)
        if segment in ("A", "SA") or self.chance.random() < 0.5:
            self.opened.append((client, destination, real))

    def go(self, number: int) -> None:
        """Any of these, or time passes."""
        what = self.chance.random()
        if what < 0.5:
            self.begin(number)
        elif what < 0.93:
            self.go_on()
        elif what < 0.97:
            self.lab.clock.advance(self.chance.choice([0.1, 5, 11, 70]))
        else:
            self.edit()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEQUENCES))
@pytest.mark.parametrize("persistence", [0, FOREVER])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_ranking_finds_what_a_walk_finds(scheduler: str, persistence: int, seed: int) -> None:
    chance = Random(f"{scheduler} {persistence} {seed}")
    walk = Walk(scheduler, chance, chance.choice([17, 33, 60]), persistence)
    assert walk.lab.services[0].ranked
    for number in range(SEQUENCE_STEPS // 3):
        walk.go(number)
        assert walk.lab.services[0].ranked == (len(walk.servers) > FEW)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in ("lblc", "lblcr")])
def test_a_ranking_knows_all_loads_after_several_workers_changed_them_at_once(scheduler: str) -> None:
    chance = Random(scheduler)
    walk = Walk(scheduler, chance, 40)
    walk.servers = {real: Server(server.weight) for real, server in walk.servers.items()}  # nobody follows thresholds
    walk.publish()

    def many(worker: int) -> None:
        own = Random(worker)
        for number in range(SEQUENCE_STEPS // 5):
            client, destination = f"192.0.2.{2 + worker}:{1024 + own.randrange(200)}", own.choice(DESTINATIONS)
            segment = own.choice("SSAR")
            walk.lab.workers[worker].process(tcp(client, destination, segment), walk.lab.clock() + number, mark=1)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(many, range(WORKERS)))
    assert sum(sum(walk.load(real)) for real in walk.servers) > 100
    for number in range(100):
        walk.begin(number)


def test_few_servers_are_not_ranked_nor_those_of_a_hash() -> None:
    assert not Walk("wlc", Random(1), FEW).lab.services[0].ranked
    assert not Walk("mh", Random(1), 40).lab.services[0].ranked


def test_a_service_that_left_is_told_no_more_and_again_when_it_is_back() -> None:
    walk = Walk("wlc", Random(1), 40)
    (service,) = walk.lab.services
    walk.begin(1)
    walk.lab.configure()
    assert not service.ranked
    walk.publish()
    for real in walk.servers:
        walk.recall(real)
    for number in range(2, 50):
        walk.begin(number)
