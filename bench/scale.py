"""Very many services: `python -m bench.scale`.

One director has SERVICES services of REALS real servers each, every one with addresses of its own, the other a single
service. Both stand between the same client and the same two servers (`road.py`), which answer for all addresses.

- applied: from the start of `nfqlb run --config FILE`, with nothing compiled or loaded before, until the first answer
  of the last service; a client asks every 5 ms. Each round is a start of its own.
- change: a real server added, given another weight and deleted, of services picked at random, each until the API has
  answered: so it is in the kernel, in the data path and on the disk. The minders of the director go on meanwhile.
- objects: what nftables tells of sets and rules that these changes touched, also of what the director takes away later.
- packets: as in bench.peers, to one service; the two directors take turns inside a round, round 0 warms up.
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

from bench import figures, measures, share
from bench.road import COUNTED, ECHO, Road, Way
from nfqlb.api.client import Client

SERVICES, REALS = 10_000, 10
STARTS, CHANGES, ROUNDS = 5, 150, 15
APPLIED_BAR, CHANGE_BAR, OBJECTS_BAR, PACKETS_BAR = 5.0, 50.0, 2.0, 0.9
PACE = 0.05  # seconds between changes
REMOVED = 5.0  # seconds until the director has taken away what nobody needs any more
VIPS = IPv4Address("198.18.0.0")  # and up; the next way's are 65,536 further on
NEAR = [IPv4Address("10.64.0.0"), IPv4Address("10.96.0.0")]  # the addresses behind each server: /11
ADDED = IPv4Address("10.95.0.1")  # and up: the real servers that come and go
COUNT = {"one": 1, "many": SERVICES}


def vip(way: Way, number: int) -> str:
    return str(VIPS + (way.number - 1) * 65536 + number)


def port(number: int) -> int:
    """The first service gets the packets that are counted, all others answer."""
    return ECHO if number else COUNTED


def reals(number: int) -> list[str]:
    """The addresses of a service's real servers, behind both servers in turn."""
    return [str(NEAR[at % 2] + number * REALS // 2 + at // 2) for at in range(REALS)]


def configuration(way: Way, count: int) -> str:
    def lines() -> Iterator[str]:
        yield "[director]\nconnections = 524288"
        for number in range(count):
            yield f'[[service]]\nvip = "{vip(way, number)}:{port(number)}/udp"\nscheduler = "rr"'
            for real in reals(number):
                yield f'[[service.real]]\naddress = "{real}:{port(number)}"'

    return "\n".join(lines()) + "\n"


def lead(road: Road, way: Way) -> None:
    """Routes for all these addresses, and the file."""
    road.client.ip(f"route add {vip(way, 0)}/16 via 10.1.{way.number}.1")
    for near, server, address in zip(NEAR, way.servers, way.reals, strict=True):
        way.director.ip(f"route add {near}/11 via {address}")
        if way.number == 1:
            server.ip(f"route add local {near}/11 dev lo")
    way.targets = [vip(way, 0)]
    (way.director.folder / "scale.toml").write_text(configuration(way, COUNT[way.director.name]))


def start(way: Way) -> None:
    holder = way.director.nfqlb("--config", str(way.director.folder / "scale.toml"), timeout=60)
    way.pids = [holder.pid, way.director.director_pid()]
    for pid in way.pids:
        share.hasten(pid)


def applied(road: Road, way: Way) -> float:
    """Seconds from the start until the last service answers; the director goes on."""
    asker = road.start(road.client, "bench.pingpong", "first", vip(way, COUNT[way.director.name] - 1), str(ECHO))
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
        number = chance.randrange(COUNT[way.director.name]) if at % 3 == 0 else number
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


def packets(road: Road) -> list[float]:
    """What arrives through the director of many, of what arrives through that of one."""
    ratios, names = [], list(COUNT)
    for turn in range(ROUNDS + 1):
        rates = {name: measures.udp(road, road.ways[name])["figure"] for name in names[:: 1 - turn % 2 * 2]}
        if turn:
            ratios.append(rates["many"] / rates["one"])
    return ratios


def measure() -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {"applied": []}
    with Road(*COUNT) as road:
        one, many = road.ways["one"], road.ways["many"]
        for way in (one, many):
            lead(road, way)
        for _ in range(STARTS):
            if many.pids:
                many.director.stop()
            taken["applied"].append(applied(road, many))
        start(one)
        for way in (one, many):
            taken[f"change, {way.director.name}"], objects = touched(road, way)
            taken[f"objects, {way.director.name}"] = [objects] * 2
            taken[f"memory, {way.director.name}"] = [memory(way)] * 2
        taken["packets"] = packets(road)
        for way in (one, many):
            way.director.stop()
    return taken


def main() -> int:
    share.alone()
    taken = measure()
    about = figures.circumstances()
    path = figures.keep("scale", {"about": about, "rounds": taken})
    print(
        figures.heading(about, f"{SERVICES:,} services of {REALS}; {STARTS} starts, {CHANGES} changes, {ROUNDS} rounds")
    )
    lines = [
        figures.line("applied, s", taken["applied"], ".2f", most=APPLIED_BAR),
        figures.line("a change, ms", taken["change, many"], ".1f", most=CHANGE_BAR),
        figures.line("a change, one service, ms", taken["change, one"], ".1f"),
        figures.line("objects a change", taken["objects, many"], ".2f", most=OBJECTS_BAR),
        figures.line("objects a change, one service", taken["objects, one"], ".2f", most=OBJECTS_BAR),
        figures.line("packets, many / one", taken["packets"], ".2f", PACKETS_BAR),
        figures.line("memory, MiB", taken["memory, many"], ".0f"),
        figures.line("memory, one service, MiB", taken["memory, one"], ".0f"),
    ]
    print(*(text for text, _ in lines), f"all rounds: {path.relative_to(figures.ROOT)}", sep="\n")
    return 0 if all(good for _, good in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
