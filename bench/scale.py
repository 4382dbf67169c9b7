"""Very many services: `python -m bench.scale`.

One director has 10,000 services of ten real servers each, every one with addresses of its own, one 100,000 services of
one, the third a single service. All stand between the same client and the same two servers (`road.py`), which answer
for all addresses.

- applied: from the start of `nfqlb run --config FILE`, with nothing compiled or loaded before, until the first answer
  of the last service; a client asks every 5 ms. Each round is a start of its own; of the 100,000 there is one.
- change: a real server added, given another weight and deleted, of services picked at random, each until the API has
  answered: so it is in the kernel, in the data path and on the disk. The minders of the director go on meanwhile.
- objects: what nftables tells of sets and rules that these changes touched, also of what the director takes away later.
- packets: as in bench.peers, to one service; the directors take turns inside a round, round 0 warms up.
- memory: resident, of the director.

Rounds are fixed in advance and none is dropped. Exit code 1 when a median misses its bar.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from bench import figures, measures, share
from bench.road import COUNTED, ECHO, Road, Way
from nfqlb.api.client import Client

STARTS, CHANGES, ROUNDS = 5, 150, 15
APPLIED_BAR, CHANGE_BAR, OBJECTS_BAR, PACKETS_BAR = 5.0, 50.0, 2.0, 0.9
PACE = 0.05  # seconds between changes
REMOVED = 5.0  # seconds until the director has taken away what nobody needs any more
BLOCK = 1 << 17  # addresses for the VIPs of a way
VIPS = IPv4Address("198.18.0.0")  # and up, a block for each way
NEAR = [IPv4Address("10.64.0.0"), IPv4Address("10.96.0.0")]  # the addresses behind each server: /11
ADDED = IPv4Address("10.95.0.1")  # and up: the real servers that come and go


class Amount(NamedTuple):
    services: int
    reals: int  # of each


AMOUNTS = {"one": Amount(1, 10), "many": Amount(10_000, 10), "most": Amount(100_000, 1)}


def vip(way: Way, number: int) -> str:
    return str(VIPS + (way.number - 1) * BLOCK + number)


def port(number: int) -> int:
    """The first service gets the packets that are counted, all others answer."""
    return ECHO if number else COUNTED


def reals(number: int, count: int) -> list[str]:
    """The addresses of a service's real servers, behind both servers in turn."""
    return [str(NEAR[at % 2] + at // 2) for at in range(number * count, (number + 1) * count)]


def configuration(way: Way) -> str:
    amount = AMOUNTS[way.director.name]

    def lines() -> Iterator[str]:
        yield "[director]\nconnections = 524288"
        for number in range(amount.services):
            yield f'[[service]]\nvip = "{vip(way, number)}:{port(number)}/udp"\nscheduler = "rr"'
            for real in reals(number, amount.reals):
                yield f'[[service.real]]\naddress = "{real}:{port(number)}"'

    return "\n".join(lines()) + "\n"


def lead(road: Road, way: Way) -> None:
    """Routes for all these addresses, and the file."""
    road.client.ip(f"route add {vip(way, 0)}/15 via 10.1.{way.number}.1")
    for near, server, address in zip(NEAR, way.servers, way.reals, strict=True):
        way.director.ip(f"route add {near}/11 via {address}")
        if way.number == 1:
            server.ip(f"route add local {near}/11 dev lo")
    way.targets = [vip(way, 0)]
    (way.director.folder / "scale.toml").write_text(configuration(way))


def start(way: Way) -> None:
    holder = way.director.nfqlb("--config", str(way.director.folder / "scale.toml"), timeout=120)
    way.pids = [holder.pid, way.director.director_pid()]
    for pid in way.pids:
        share.hasten(pid)


def applied(road: Road, way: Way) -> float:
    """Seconds from the start until the last service answers; the director goes on."""
    asker = road.start(
        road.client, "bench.pingpong", "first", vip(way, AMOUNTS[way.director.name].services - 1), str(ECHO)
    )
    asker.says("asking")
    began = time.monotonic()
    start(way)
    asker.wait(10)
    return float(asker.text.splitlines()[-1]) - began


def changes(way: Way) -> list[float]:
    """Milliseconds of each change; by threes a server comes, gets another weight, and goes."""
    client = Client(str(way.director.run_folder / way.director.instance / "api.sock"), timeout=30)
    chance, taken, number = random.Random(1), [], 0
    for at in range(CHANGES):
        time.sleep(PACE)
        number = chance.randrange(AMOUNTS[way.director.name].services) if at % 3 == 0 else number
        address = str(ADDED + at // 3)
        service, real = f"{vip(way, number)}:{port(number)}/udp", f"{address}:{port(number)}"
        began = time.monotonic()
        if at % 3 == 0:
            client.add_real(service, {"address": address, "port": port(number)})
        elif at % 3 == 1:
            client.edit_real(service, real, {"weight": 2 + at})
        else:
            client.delete_real(service, real)
        taken.append(1000 * (time.monotonic() - began))
    return taken


def touched(road: Road, way: Way) -> tuple[list[float], float]:
    """The changes, and how many objects of the kernel each touched."""
    watcher = road.start(way.director, "bench.objects")
    watcher.says("ready")
    taken = changes(way)
    time.sleep(REMOVED)
    watcher.tell("")
    watcher.wait(10)
    return taken, sum(json.loads(watcher.text.splitlines()[-1]).values()) / CHANGES


def memory(way: Way) -> float:
    """MiB."""
    status = Path(f"/proc/{way.director.director_pid()}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def packets(road: Road) -> dict[str, list[float]]:
    """What arrives through the directors of many, of what arrives through that of one."""
    ratios: dict[str, list[float]] = {name: [] for name in AMOUNTS if name != "one"}
    names = list(AMOUNTS)
    for turn in range(ROUNDS + 1):
        first = turn % len(names)
        rates = {name: measures.udp(road, road.ways[name])["figure"] for name in names[first:] + names[:first]}
        for name, found in ratios.items():
            if turn:
                found.append(rates[name] / rates["one"])
    return ratios


def measure() -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {"applied, many": []}
    with Road(*AMOUNTS) as road:
        one, many, most = road.ways.values()
        for way in road.ways.values():
            lead(road, way)
        for _ in range(STARTS):
            if many.pids:
                many.director.stop()
            taken["applied, many"].append(applied(road, many))
        taken["applied, most"] = [applied(road, most)] * 2
        start(one)
        for way in road.ways.values():
            name = way.director.name
            if way is not most:
                taken[f"change, {name}"], objects = touched(road, way)
                taken[f"objects, {name}"] = [objects] * 2
            taken[f"memory, {name}"] = [memory(way)] * 2
        for name, ratios in packets(road).items():
            taken[f"packets, {name}"] = ratios
        for way in road.ways.values():
            way.director.stop()
    return taken


def main() -> int:
    share.alone()
    taken = measure()
    about = figures.circumstances()
    path = figures.keep("scale", {"about": about, "rounds": taken})
    amounts = ", ".join(f"{name}: {one.services:,} services of {one.reals}" for name, one in AMOUNTS.items())
    print(figures.heading(about, f"{amounts}; {STARTS} starts, {CHANGES} changes, {ROUNDS} rounds"))
    lines = [
        figures.line("applied, many, s", taken["applied, many"], ".2f", most=APPLIED_BAR),
        figures.line("applied, most, s", taken["applied, most"], ".2f"),
        figures.line("a change, many, ms", taken["change, many"], ".1f", most=CHANGE_BAR),
        figures.line("a change, one, ms", taken["change, one"], ".1f"),
        figures.line("objects a change, many", taken["objects, many"], ".2f", most=OBJECTS_BAR),
        figures.line("objects a change, one", taken["objects, one"], ".2f", most=OBJECTS_BAR),
        figures.line("packets, many / one", taken["packets, many"], ".2f", PACKETS_BAR),
        figures.line("packets, most / one", taken["packets, most"], ".2f", PACKETS_BAR),
        *(figures.line(f"memory, {name}, MiB", taken[f"memory, {name}"], ".0f") for name in AMOUNTS),
    ]
    print(*(text for text, _ in lines), f"all rounds: {path.relative_to(figures.ROOT)}", sep="\n")
    return 0 if all(good for _, good in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
