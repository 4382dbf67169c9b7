"""Three times of what the engine takes: `python -m bench.overload`.

Paced TCP streams, the same under a flood of small datagrams and SYNs for ten seconds, and again after it. The streams
ask for a quarter of what they get alone, which is less than the third that they may have of an engine beside datagrams
and SYNs; so what they got before is what is fair. The engine has a part of one CPU (cgroups, v1 or v2), and the sender
the other CPU, or two of them would not offer three times of what it takes. Nothing is dropped from the figures. Exit
code 1 where less than that was offered, the streams got too little, or they or a new connection were late afterwards.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import figures, share
from bench.road import COUNTED, SINK, Road, Way
from bench.ways import nfqlb
from netns.host import Process

ROUNDS, SECONDS, LEAD, STREAMS = 5, 10.0, 1.0, 8
PERIOD, QUOTA = 5_000, 2_000  # microseconds: the engine's part of a CPU
WINDOW = 0.1  # seconds
OFFERED, SHARE, RECOVERY = 3.0, 0.8, 1.0
PATIENCE = 5.0
# Connections of the flood end at the real servers, which would answer to nobody.
SWALLOW = ["iptables", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", str(COUNTED), "-j", "DROP"]


@contextmanager
def part_of_a_cpu(pids: Sequence[int]) -> Iterator[None]:
    """Let the processes run for QUOTA of each PERIOD."""
    first = Path("/sys/fs/cgroup/cpu")
    root = first if first.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"nfqlb-bench-{os.getpid()}"
    group.mkdir()
    try:
        if root == first:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(QUOTA))
        else:
            (group / "cpu.max").write_text(f"{QUOTA} {PERIOD}")
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for pid in pids:
            with suppress(OSError):
                (root / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def rate(road: Road, seconds: float) -> float:
    """Bytes per second that programs read from the streams."""
    began, before = time.monotonic(), road.swallowed()
    time.sleep(seconds)
    return (road.swallowed() - before) / (time.monotonic() - began)


def paced(road: Road, way: Way) -> Process:
    """Streams that ask for a quarter of what they get alone, under way."""

    def start(most: int) -> Process:
        source = road.start(road.client, "bench.stream", "source", str(SINK), str(most), *[way.vip] * STREAMS)
        source.says("going")
        time.sleep(LEAD)
        return source

    unlimited = start(0)
    most = rate(road, LEAD)
    unlimited.end()
    return start(int(most / 4))


def taken(way: Way) -> int:
    """Packets that the engine took."""
    return sum(queue["packets"] for queue in way.director.show("daemon")["queues"])


def recovery(road: Road, way: Way, enough: float) -> float:
    """Seconds until the streams have as much as that again, and a new connection has been accepted."""
    began = time.monotonic()
    while rate(road, WINDOW) < enough:
        if time.monotonic() > began + PATIENCE:
            return PATIENCE
    while time.monotonic() < began + PATIENCE:
        with suppress(TimeoutError), road.client.inside(lambda: socket.create_connection((way.vip, SINK), WINDOW)):
            return time.monotonic() - began
    return PATIENCE


def once(road: Road, way: Way) -> dict[str, float]:
    source = paced(road, way)
    alone = rate(road, 2 * LEAD)
    words = [way.device, way.mac, way.client, way.vip, str(COUNTED), str(4 * SECONDS)]
    flood = road.start(road.client, "bench.deluge", *words)
    flood.says("going")
    time.sleep(LEAD)
    began, before = time.monotonic(), taken(way)
    under = rate(road, SECONDS)
    capacity = (taken(way) - before) / (time.monotonic() - began)
    flood.end()
    back = recovery(road, way, 0.9 * alone)
    source.end()
    sent, seconds = flood.text.split()[1:]
    offered = int(sent) / float(seconds)
    return {
        "streams, Gbit/s alone": alone * 8e-9,
        "engine, packets/s": capacity,
        "offered / taken": offered / capacity,
        "streams, under / alone": under / alone,
        "recovery, s": back,
    }


def main() -> int:
    share.alone()
    rounds = []
    for _ in range(ROUNDS):
        with Road("fast") as road:
            way = road.ways["fast"]
            for server in road.servers:
                server.run(SWALLOW)
            way.pids = nfqlb("fast", 1, "nat", "--vip", f"{way.vip}:{COUNTED}/tcp", "--connections", str(4 << 20))(way)
            for pid in way.pids:
                share.take(share.ENGINE, pid)
            with part_of_a_cpu(way.pids):
                rounds.append(once(road, way))
    about = figures.circumstances()
    path = figures.keep("overload", {"about": about, "rounds": rounds})
    print(figures.heading(about, f"{ROUNDS} rounds of {SECONDS:.0f} s, median (spread)"))
    bars: dict[str, dict[str, float]] = {
        "offered / taken": {"bar": OFFERED},
        "streams, under / alone": {"bar": SHARE},
        "recovery, s": {"most": RECOVERY},
    }
    sheet = figures.Sheet()
    for name in rounds[0]:
        form = ",.0f" if name.startswith("engine") else ".3f"
        sheet.figure(name, [one[name] for one in rounds], form, **bars.get(name, {}))
    return sheet.end(path)


if __name__ == "__main__":
    sys.exit(main())
