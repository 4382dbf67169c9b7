"""wrr, lap by lap: the kernel's loop is here, in Python, and the core must give each connection to whom it finds.

Strategy: as in test_many_servers.py, with weights that lie far apart and often have a divisor, so that the threshold
has many steps to fall, and with upper thresholds that the heavy servers reach (net/netfilter/ipvs/ip_vs_wrr.c).
"""

from __future__ import annotations

from math import gcd
from random import Random

import pytest

from nfqlb.testing import tcp
from tests.core.lab import VIP, Lab, Virtual, clients
from tests.property.test_many_servers import Server, Walk
from tests.sizes import SEQUENCE_STEPS, SEQUENCES


class Laps(Walk):
    """`cursor`, `current`, `ceiling` and `step` are the kernel's mark: cl, cw, mw and di."""

    def __init__(self, chance: Random, count: int) -> None:
        self.unit = chance.choice([1, 1, 5, 12])
        self.cursor, self.current = -1, 0
        self.told: dict[str, tuple[int, int, int]] = {}
        super().__init__("wrr", chance, 0)
        for _ in range(count):  # the kernel gets them one by one
            self.add()
            self.changed()
        super().publish()
        self.told = {real: server.given for real, server in self.servers.items()}

    def drawn(self) -> Server:
        upper = self.chance.choice([0, 1, 1, 2, 5])
        lower = self.chance.randint(1, upper) if upper else 0
        return Server(self.unit * self.chance.choice([0, 1, 1, 2, 3, 7, 40, 60, 173]), upper, lower)

    def changed(self) -> None:
        """ip_vs_wrr_dest_changed()."""
        weights = [server.weight for server in self.servers.values() if server.weight]
        self.cursor, self.step = -1, gcd(*weights) or 1
        self.ceiling = max(weights) - (self.step - 1) if weights else 0
        if self.current > self.ceiling or self.current == 0:
            self.current = self.ceiling
        elif self.step > 1:
            self.current = self.current // self.step * self.step + 1

    def publish(self) -> None:
        now = {real: server.given for real, server in self.servers.items()}
        if self.told and now != self.told:  # the service begins with all of them
            self.changed()
            super().publish()
        self.told = now

    def expected(self, destination: str) -> str | None:
        """ip_vs_wrr_schedule()."""
        rows = [*reversed(self.servers.items())]
        at = last = self.cursor
        stop, last_pass, restarted = -1, False, False
        if self.ceiling == 0:
            return None
        while True:
            for place, (real, server) in [*enumerate(rows)][at + 1 :]:
                if not server.overloaded and server.weight >= self.current:
                    self.cursor = place
                    return real
                if place == stop:
                    self.cursor = place
                    return None
            at = -1
            self.current -= self.step
            if self.current <= 0:
                self.current = self.ceiling
                if last_pass or last == -1:
                    self.cursor = -1
                    return None
                restarted = True
            last_pass = self.current <= self.step
            if last_pass and restarted and last != -1:
                stop = last


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2 * SEQUENCES))
def test_the_core_goes_round_as_the_kernel_does(seed: int) -> None:
    chance = Random(f"wrr {seed}")
    walk = Laps(chance, chance.choice([1, 2, 3, 5, 17]))
    for number in range(SEQUENCE_STEPS // 3):
        walk.go(number)


@pytest.mark.parametrize("heavy", [65535, 2**31 - 1])
def test_heavy_servers_that_are_full_cost_no_laps(heavy: int) -> None:
    """Each pick falls from their weight to 1: step by step that would be hours, and the test's time runs out."""
    full = {f"10.0.0.{at}:80": (heavy, 1, 1) for at in range(1, 4)}
    lab = Lab(Virtual(VIP, {**full, "10.0.0.9:80": 1}, "wrr"), capacity=8192)
    found = [lab.send(tcp(end, VIP, "S")).packet for end in clients(2000)]
    assert [packet and packet[19] for packet in found] == [9, 3, 2, 1, *[9] * 1996]
