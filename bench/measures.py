"""One sample of each kind through each way of the road.

    udp          small packets that arrive per second, offered without limit
    bulk         bits per second that programs read from two TCP streams
    connections  HTTP requests per second, each on a connection of its own, 32 at a time
    latency      round trips of a lone datagram every millisecond, of all ways side by side

Beside the figure stands what it cost, in seconds of CPU for each packet, connection or gigabit: `engine` is what the
way's processes had, with all that the kernel did in their name (a verdict's system call forwards the packet), `machine`
is what all CPUs were not idle, sender and servers included.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench import share
from bench.road import COUNTED, ECHO, HTTP, SINK, Road, Way
from netns.host import CommandError
from netns.load import Wrk

SECONDS = 1  # of a sample
LEAD = 0.25  # seconds of traffic before it
LONGEST = 20.0  # seconds, should nobody end the sender
AT_A_TIME = 32
INTERVAL = 0.001  # seconds between two datagrams
Sample = dict[str, float]


class Cost:
    """CPU seconds from here on."""

    def __init__(self, way: Way) -> None:
        self.pids = way.pids
        self.engine, self.machine = share.spent(self.pids), share.busy()

    def per(self, count: float) -> Sample:
        engine, machine = share.spent(self.pids) - self.engine, share.busy() - self.machine
        return {"engine": engine / max(count, 1), "machine": machine / max(count, 1)}


def udp(road: Road, way: Way) -> Sample:
    """The sender has one CPU, the engine the other."""
    for pid in way.pids:
        share.take(share.ENGINE, pid)
    words = [way.device, way.mac, way.client, ",".join(way.targets), str(COUNTED), str(LONGEST)]
    sender = road.start(road.client, "bench.blast", *words)
    sender.says("going")
    time.sleep(LEAD)
    before, cost = road.arrived(), Cost(way)
    time.sleep(SECONDS)
    after = road.arrived()
    pairs = list(zip(before, after, strict=True))
    rate = sum((last.packets - first.packets) / (last.time - first.time) for first, last in pairs)
    blur = max((last.took + first.took) / 2 / (last.time - first.time) for first, last in pairs)
    spent = cost.per(sum(last.packets - first.packets for first, last in pairs))
    sender.end()
    for pid in way.pids:
        share.roam(pid)
    sent, seconds = sender.text.split()[1:]
    return {"figure": rate, "blur": blur, "offered": int(sent) / float(seconds), **spent}


def bulk(road: Road, way: Way) -> Sample:
    source = road.start(road.client, "bench.stream", "source", str(SINK), "0", *way.targets)
    source.says("going")
    time.sleep(LEAD)
    cost, began, before = Cost(way), time.monotonic(), road.swallowed()
    time.sleep(SECONDS)
    after, taken = road.swallowed(), time.monotonic() - began
    spent = cost.per((after - before) * 8 / 1e9)
    source.end()
    return {"figure": (after - before) * 8 / taken, **spent}


def connections(road: Road, way: Way) -> Sample:
    cost = Cost(way)
    each = AT_A_TIME // len(way.targets)
    urls = [f"http://{target}:{HTTP}/whoami" for target in way.targets]
    clients = [Wrk(road.client, url, connections=each, seconds=SECONDS, keepalive=False) for url in urls]
    for client in clients:
        share.hasten(client.process.pid)
    counted = [client.figures() for client in clients]
    for client in clients:
        client.process.end()
    spent = cost.per(sum(figures.requests for figures in counted))
    rate, errors = sum(figures.per_second for figures in counted), sum(figures.errors for figures in counted)
    return {"figure": rate, "errors": errors, **spent}


def latency(road: Road, ways: Sequence[Way]) -> dict[str, Sample]:
    words = [str(ECHO), str(INTERVAL), str(SECONDS), *(way.targets[0] for way in ways)]
    with awake([pid for way in ways for pid in way.pids]):
        asked = road.client.run([sys.executable, "-m", "bench.pingpong", "ask", *words], timeout=LONGEST * len(ways))
    return {way.director.name: round_trips(way, one) for way, one in zip(ways, json.loads(asked.stdout), strict=True)}


def round_trips(way: Way, answers: Sequence[float | None]) -> Sample:
    trips = [trip for trip in answers if trip is not None]
    if len(trips) < len(answers) / 2:
        raise CommandError(f"{way.director.name}: {len(trips)} of {len(answers)} datagrams came back")
    thousandths = statistics.quantiles(trips, n=1000, method="inclusive")
    percentiles = {"figure": thousandths[499], "p99": thousandths[989], "p99.9": thousandths[998]}
    return {**percentiles, "lost": len(answers) - len(trips)}


@contextmanager
def awake(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def apart(sample: Callable[[Road, Way], Sample]) -> Callable[[Road, Sequence[Way]], dict[str, Sample]]:
    """One way after another, each with the machine to itself."""

    def samples(road: Road, ways: Sequence[Way]) -> dict[str, Sample]:
        taken = {}
        for way in ways:
            with awake(way.pids):
                taken[way.director.name] = sample(road, way)
        return taken

    return samples


MEASURES: dict[str, Callable[[Road, Sequence[Way]], dict[str, Sample]]] = {
    "udp": apart(udp),
    "bulk": apart(bulk),
    "connections": apart(connections),
    "latency": latency,
}
