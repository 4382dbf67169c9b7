"""What a real kernel's IPVS chose, replayed through the core: every pick and every counter must be the same.

schedulers.json was recorded on Linux 6.1 with ipvsadm 1.31: 40 TCP connections, one after another, over NAT. Connection
k comes from source 1 + k % sources to destination 1 + k % destinations. "hold" leaves all open, "close" closes each at
once, "mixed" closes connection k - 1 after each k with k % 3 == 2 that was served; the client closes first. "edits"
happen before their connection. In "sequence", servers are numbered from 1 in the order in which they were added, and 0
means that nobody served. "counters" are ActiveConn/InActConn of each server after each connection, "-" where there is
no such server.

The servers were added to an empty service one by one, which wrr's threshold remembers, and so they are here. Several
destinations were one service by firewall mark there, and are here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import FORWARD, endpoint, tcp
from tests.core.lab import Lab

RECORD = json.loads(Path(__file__).with_name("schedulers.json").read_text())
SERIES: list[dict[str, Any]] = RECORD["series"]


def title(series: dict[str, Any]) -> str:
    weights = ",".join(map(str, series["weights"]))
    parts = [series["scheduler"], *series["flags"], weights, series["pattern"], "edited" * bool(series["edits"])]
    parts += [f"{series[of]} {of}" for of in ("sources", "destinations") if series[of] > 1]
    return " ".join(filter(None, parts))


class Replay:
    """One series on a fresh core; `servers` are (number, weight), newest first."""

    def __init__(self, series: dict[str, Any]) -> None:
        self.series, self.port = series, series["port"]
        self.mark = self.port if series["destinations"] > 1 else 0
        self.lab = Lab(capacity=256)
        self.servers: list[tuple[int, int]] = []
        self.service: Service | None = None
        for number, weight in enumerate(series["weights"], 1):
            self.edit("add", number, weight)
        self.publish()  # all at once, as a director starts; the kernel had them one by one

    @property
    def key(self) -> tuple[int, bytes, int]:
        """Protocol, address and port of the service."""
        return (0, *endpoint("0.0.0.0:0")) if self.mark else (6, *endpoint(self.vip(0)))

    def real(self, number: int) -> str:
        return f"10.2.{number}.1:{self.port}"

    def end(self, number: int) -> tuple[bytes, int]:
        """A real server of a service by mark keeps the port of the packet."""
        address, port = endpoint(self.real(number))
        return address, 0 if self.mark else port

    def slot(self, number: int) -> int:
        return self.lab.table.slot(*self.key, *self.end(number), mark=self.mark)

    def edit(self, what: str, number: int, weight: int = 0) -> None:
        at = [number for number, _ in self.servers].index(number) if what != "add" else 0
        if what == "edit":
            self.servers[at] = number, weight
        elif what == "delete":
            del self.servers[at]
        else:
            self.servers.insert(0, (number, weight))

    def publish(self) -> None:
        servers = [(self.slot(number), *self.end(number), weight, "nat") for number, weight in self.servers]
        how = self.series["scheduler"], servers, self.service
        self.service = Service(*self.key, *how, mark=self.mark, flags=self.series["flags"])
        self.lab.datapath.publish(Snapshot([self.service]))

    def ends(self, k: int) -> tuple[str, str]:
        return f"10.1.0.{1 + k % self.series['sources']}:{20000 + k}", self.vip(k)

    def vip(self, k: int) -> str:
        return f"10.99.0.{1 + k % self.series['destinations']}:{self.port}"

    def connect(self, k: int) -> int:
        """Shake hands; the number of the server that took part, 0 for none."""
        client, vip = self.ends(k)
        result = self.lab.send(tcp(client, vip, "S"), mark=self.mark)
        if result.packet is None:
            assert result.reason == "no_server"
            return 0
        number = result.packet[18]
        assert result.packet == tcp(client, self.real(number), "S")
        assert self.lab.send(tcp(self.real(number), client, "SA"), hook=FORWARD).packet == tcp(vip, client, "SA")
        assert self.lab.send(tcp(client, vip, "A")).packet == tcp(client, self.real(number), "A")
        return number

    def close(self, k: int, number: int) -> None:
        """The client first, as recorded."""
        client, vip = self.ends(k)
        real = self.real(number)
        steps = [
            (client, vip, "FA", 0),
            (real, client, "A", FORWARD),
            (real, client, "FA", FORWARD),
            (client, vip, "A", 0),
        ]
        for source, destination, segment, hook in steps:
            assert self.lab.send(tcp(source, destination, segment), hook=hook).verdict == "rewrite"

    def counters(self) -> str:
        present = dict(self.servers)
        shown = range(1, max(len(self.series["weights"]), 3) + 1)
        loads = {number: self.lab.table.load(self.slot(number)) for number in shown if number in present}
        return " ".join("{}/{}".format(*loads[number]) if number in loads else "-" for number in shown)

    def run(self) -> tuple[str, list[str]]:
        """(sequence, counters) as recorded, but by the core."""
        chosen: list[int] = []
        counters = []
        pattern, edits = self.series["pattern"], self.series["edits"]
        for k in range(RECORD["connections"]):
            if str(k) in edits:
                self.edit(*edits[str(k)])
                self.publish()
            chosen.append(self.connect(k))
            closing = {"hold": None, "close": k, "mixed": k - 1 if k % 3 == 2 else None}[pattern]
            if closing is not None and chosen[k] and chosen[closing]:
                self.close(closing, chosen[closing])
            counters.append(self.counters())
            self.lab.clock.advance(0.05)
        return "".join(map(str, chosen)), counters


@pytest.mark.parametrize("series", SERIES, ids=title)
def test_the_core_chooses_and_counts_as_the_kernel_did(series: dict[str, Any]) -> None:
    sequence, counters = Replay(series).run()
    assert sequence == series["sequence"]
    assert counters == series["counters"]


def test_how_many_series_were_compared(capsys: pytest.CaptureFixture[str]) -> None:
    by_scheduler = Counter(series["scheduler"] for series in SERIES)
    several = sum(series["destinations"] > 1 for series in SERIES)
    with capsys.disabled():
        print(f"\noracle, {RECORD['recorded']}: {len(SERIES)} series of {RECORD['connections']} connections", end="")
        print(f" ({', '.join(f'{name} {count}' for name, count in by_scheduler.items())}), 0 left out;", end="")
        print(f" {several} of a service by mark")
    assert by_scheduler == {
        name: count
        for names, count in (
            ("rr dh", 19),
            ("wrr", 15),
            ("lc wlc sed nq", 11),
            ("fo ovf", 10),
            ("sh mh", 47),
            ("lblc lblcr", 18),
        )
        for name in names.split()
    }
    assert all(len(series["sequence"]) == len(series["counters"]) == 40 for series in SERIES)
    assert len({title(series) for series in SERIES}) == len(SERIES) == 247


def test_a_replay_that_differs_is_seen() -> None:
    """The comparison bites: another weight, another order or a missed close changes what the core does."""
    wrr = next(series for series in SERIES if series["scheduler"] == "wrr" and series["pattern"] == "hold")
    mixed = next(series for series in SERIES if series["scheduler"] == "lc" and series["pattern"] == "mixed")
    for wrong in (wrr | {"weights": [5, 3, 2]}, wrr | {"weights": [1, 3, 5]}, wrr | {"scheduler": "wlc"}):
        assert Replay(wrong).run()[0] != wrr["sequence"]
    assert Replay(mixed | {"pattern": "hold"}).run()[0] != mixed["sequence"]
