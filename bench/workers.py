"""Two workers against one: `python -m bench.workers`.

Strategy. First the core alone, without the kernel: a thread for each worker, on a CPU of its own, with flows of its
own. Two workers on one table are compared with two that have a table each, as densely filled: what is missing is what
sharing costs; beside it stands how often a worker found a lock held. Then the whole line: a director with one worker
and one with two, alike in all else, and how the same flows were split. The sender takes what CPU it gets: on a machine
of two CPUs a second worker has nothing to gain there, and the CPUs that the director used say so.

The ways take turns inside a round, round 0 warms up and is not counted, no other is dropped. Exit code 1 when a median
misses its bar, an established packet waited for a lock, or two workers split the flows otherwise than one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from bench import figures, share
from bench.road import COUNTED, Road, Way
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.probe import Flows
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import UDP, endpoint, udp

ROUNDS = 15
SECONDS = 1.0
LEAD = 0.25  # seconds of traffic before the measurement
LONGEST = 20.0  # seconds, should nobody end the sender
FLOWS = 100_000  # of each worker
PACKETS = 1_000_000  # of each worker and round
TIMEOUT = 300  # seconds
VIP, REALS = endpoint("203.0.113.1:80"), [endpoint(f"10.2.0.{host}:80") for host in range(11, 21)]
ESTABLISHED_BAR, FIRST_BAR = 0.8, 0.4  # one table / a table each
WEIGHTS = (3, 1)
WORKERS = {"one": 1, "two": 2}


class Core:
    """Workers on one table, each with flows of its own: client networks 10.0.0.0/8 and up."""

    def __init__(self, workers: int) -> None:
        self.table = Table(-1, 2 * workers * FLOWS, 0)
        datapath = Datapath(self.table)
        servers = [(self.table.slot(UDP, *VIP, *real), *real, 1, "nat") for real in REALS]
        self.service = Service(UDP, *VIP, "wrr", servers)
        datapath.publish(Snapshot([self.service], udp=TIMEOUT))
        packets = [udp(f"{10 + number}.0.0.1:10000", "203.0.113.1:80", bytes(18)) for number in range(workers)]
        self.flows = [Flows(datapath.worker(), packet, FLOWS) for packet in packets]
        self.reaper = datapath.worker()

    def waits(self) -> int:
        return sum(self.table.waited.values()) + self.service.waited


class Sample(NamedTuple):
    """Packets per second of all workers together, and how often one of them found a lock held."""

    established: float
    first: float
    established_waits: int
    first_waits: int


def together(work: list[Callable[[], float]]) -> float:
    """Each on a CPU of its own, at once; packets per second of all, from the nanoseconds that each says."""
    barrier, taken = threading.Barrier(len(work)), [0.0] * len(work)

    def run(number: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {number})
        barrier.wait(30)
        taken[number] = work[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(1e9 / nanoseconds for nanoseconds in taken)


def core_sample(cores: list[Core], now: int) -> Sample:
    """First packets of every flow, then others; all flows of the sample before have timed out at `now`, nanoseconds."""
    for core in cores:
        core.reaper.expire(now)
    flows = [flows for core in cores for flows in core.flows]
    counts = [sum(core.waits() for core in cores)]
    first = together([partial(one.in_turn, now) for one in flows])
    counts.append(sum(core.waits() for core in cores))
    established = together([partial(one.at_random, PACKETS, now) for one in flows])
    counts.append(sum(core.waits() for core in cores))
    for core in cores:
        if core.table.used != len(core.flows) * FLOWS:
            raise AssertionError(f"{core.table.used} connections instead of {len(core.flows) * FLOWS}")
    return Sample(established, first, counts[2] - counts[1], counts[1] - counts[0])


def measure_core() -> list[dict[str, Sample]]:
    """All rounds, the warm-up first."""
    ways = {"one": [Core(1)], "a table each": [Core(1), Core(1)], "one table": [Core(2)]}
    names = list(ways)
    rounds = []
    for number in range(ROUNDS + 1):
        turn, now = number % len(names), (number + 1) * (TIMEOUT + 100) * 10**9
        rounds.append({name: core_sample(ways[name], now) for name in (*names[turn:], *names[:turn])})
    return rounds


class Line(NamedTuple):
    """The whole line, for a while: packets per second that arrive at the servers, CPUs that the director used in user
    mode and in the kernel, and the share of packets that the busiest worker took.
    """

    rate: float
    user: float
    system: float
    busiest: float


def start(way: Way, workers: int) -> int:
    """Start nfqlb; the pid of the process that takes the packets."""
    pairs = zip(way.reals, WEIGHTS, strict=True)
    reals = [word for real, weight in pairs for word in ("--real", f"{real}:{COUNTED},weight={weight}")]
    vip = f"{way.vip}:{COUNTED}/udp"
    way.director.nfqlb("--vip", vip, "--scheduler", "wrr", "--workers", str(workers), *reals)
    pid = way.director.director_pid()
    share.hasten(pid)
    return pid


def taken(way: Way) -> list[int]:
    """Packets that each worker's queue for UDP has brought."""
    return [queue["packets"] for queue in way.director.show("daemon")["queues"] if queue["class"] == "plain"]


def line_sample(road: Road, name: str, pid: int) -> Line:
    way = road.ways[name]
    words = [way.device, way.mac, way.client, way.vip, str(COUNTED), str(LONGEST)]
    sender = road.start(road.client, "bench.blast", *words)
    sender.says("going")
    time.sleep(LEAD)
    used, began, arrived = cpu(pid), time.monotonic(), road.arrived()
    time.sleep(SECONDS)
    pairs = list(zip(arrived, road.arrived(), strict=True))
    user, system = ((new - old) / (time.monotonic() - began) for old, new in zip(used, cpu(pid), strict=True))
    sender.end()
    rate = sum((last.packets - first.packets) / (last.time - first.time) for first, last in pairs)
    packets = taken(way)
    return Line(rate, user, system, max(packets) / sum(packets))


def cpu(pid: int) -> tuple[float, float]:
    """Seconds in user mode and in the kernel, of all threads (proc(5), fields 14 and 15 of stat)."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def measure_line() -> tuple[list[dict[str, Line]], dict[str, list[int]]]:
    """All rounds, the warm-up first; and how many flows each server got."""
    with Road(*WORKERS) as road:
        pids = {name: start(road.ways[name], workers) for name, workers in WORKERS.items()}
        names = list(WORKERS)
        rounds = []
        for number in range(ROUNDS + 1):
            turn = number % len(names)
            rounds.append({name: line_sample(road, name, pids[name]) for name in (*names[turn:], *names[:turn])})
        splits = {}
        for name, way in road.ways.items():
            (service,) = way.director.show("stats")["services"]
            conns = {real["endpoint"]: real["conns"] for real in service["reals"]}
            splits[name] = [conns[f"{real}:{COUNTED}"] for real in way.reals]
            way.director.stop()
        return rounds, splits


def main() -> int:
    share.alone()
    about = figures.circumstances()
    core = measure_core()
    line, splits = measure_line()
    content = {"core": [say(one) for one in core], "line": [say(one) for one in line], "splits": splits}
    path = figures.keep("workers", {"about": about, **content})
    sheet = figures.Sheet()
    print(figures.heading(about, f"{ROUNDS} rounds, median (spread)"))
    print(f"the core alone, {FLOWS:,} flows and {PACKETS:,} packets for each worker and round")
    for kind, bar in (("established", ESTABLISHED_BAR), ("first", FIRST_BAR)):
        rates = {name: [getattr(samples[name], kind) for samples in core[1:]] for name in core[0]}
        for name, values in rates.items():
            sheet.figure(f"{kind} packets/s, {name}", values, ",.0f")
        sheet.figure(f"{kind}, one table / one worker", ratios(rates["one table"], rates["one"]), ".2f")
        sheet.figure(f"{kind}, one table / a table each", ratios(rates["one table"], rates["a table each"]), ".2f", bar)
    waits = [samples["one table"] for samples in core[1:]]
    sheet.figure("waits in 1,000 first packets", [one.first_waits / FLOWS / 2 * 1000 for one in waits], ".1f")
    sheet.bar("no established packet waits", not any(one.established_waits for one in waits))
    print(f"the whole line, {SECONDS} s each")
    lines = {name: [samples[name] for samples in line[1:]] for name in WORKERS}
    for name, samples in lines.items():
        sheet.figure(f"{name}, packets/s", [one.rate for one in samples], ",.0f")
        sheet.figure(f"{name}, CPUs in user mode", [one.user for one in samples], ".2f")
        sheet.figure(f"{name}, CPUs in the kernel", [one.system for one in samples], ".2f")
    sheet.figure("two, share of the busiest worker", [one.busiest for one in lines["two"]], ".2f")
    sheet.figure("two / one", ratios([one.rate for one in lines["two"]], [one.rate for one in lines["one"]]), ".2f")
    print(f"flows by server, one worker: {splits['one']}, two: {splits['two']}")
    sheet.bar("two workers split them as one does", splits["one"] == splits["two"])
    return sheet.end(path)


def ratios(these: list[float], those: list[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


def say(samples: Mapping[str, NamedTuple]) -> dict[str, object]:
    return {name: sample._asdict() for name, sample in samples.items()}


if __name__ == "__main__":
    sys.exit(main())
