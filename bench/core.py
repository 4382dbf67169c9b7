"""What a packet costs in the core, without the kernel: `python -m bench.core`.

Strategy. Nanoseconds swing with the machine, so beside every figure stands the time of one read from memory that
needs the read before it, in an array as large as the table's entries, taken in the same round: a walk through memory is
the limit that no look-up at random passes. Connections are chosen at random, so that caches help no more than they
help the walk. The table lies in a file of shared memory, as a director's does. Rounds are fixed in advance, round 0
warms up and is not counted, no other is dropped. Exit code 1 when a bar is missed.

The bars: the whole line (parse to verdict, NAT, established) among 1,000,000 connections, in nanoseconds, without an
allocation; a look-up among 10,000,000, in reads; the size of an entry; and how long 1,000,000 connections that end at
the same moment keep a batch of other packets waiting.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import figures, share
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.probe import Flows, Walk
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import TCP, UDP, endpoint, tcp, udp

ROUNDS = 15
PACKETS = 200_000  # a round
BATCH = 64  # packets, as the fast engine has them
ALONE = (1, 8)  # so many, for what it buys to ask memory for all of a batch ahead
ENTRY = 128  # bytes of a connection, and the bar for them
NOW = 1_000 * 10**9
VIP, REALS = endpoint("203.0.113.1:80"), [endpoint(f"10.2.0.{host}:80") for host in range(11, 21)]
WHOLE_LINE_BAR = 120.0  # nanoseconds
LOOK_UP_BAR = 2.5  # reads
ENDING, LASTING = 1_000_000, 10_000  # connections that time out, and that go on meanwhile
ENDING_BAR, DELAY_BAR = 1.0, 0.001  # seconds: until the last is gone, and for a batch
ENDING_ROUNDS = 5
# glibc writes each allocation to the file that MALLOC_TRACE names (mtrace(3))
TRACER = "libc_malloc_debug.so.0"


PAGE = figures.ROOT / "docs" / "bench" / "core.md"
INTRODUCTION = """# What a packet costs in the core

Written by `python -m bench.core`: the core alone, no kernel and no Python between packets, and tables of 1,000 to
10,000,000 connections in shared memory. `reads` are multiples of one read from an array of that size that needs the
read before it. A batch of 64 asks memory for all its connections ahead; the rows with fewer at a time show what that
buys.

```
{}
```
"""


@contextmanager
def shared_memory() -> Iterator[int]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        yield file.fileno()


def serve(fd: int, capacity: int, now: int, *, udp_timeout: int = 300) -> tuple[Table, Datapath]:
    """A table and one service of ten real servers for each protocol."""
    table = Table(fd, capacity, now)
    datapath = Datapath(table)
    services = [
        Service(protocol, *VIP, "wlc", [(table.slot(protocol, *VIP, *real), *real, 1, "nat") for real in REALS])
        for protocol in (TCP, UDP)
    ]
    datapath.publish(Snapshot(services, udp=udp_timeout))
    return table, datapath


@contextmanager
def established(count: int) -> Iterator[tuple[Table, Flows, float]]:
    """So many connections, packets of them, and how many nanoseconds each took to begin."""
    with shared_memory() as fd:
        table, datapath = serve(fd, count + count // 8 + 64, NOW)
        flows = Flows(datapath.worker(), udp("10.0.0.1:10000", str(VIP), bytes(18)), count)
        began = flows.in_turn(NOW)
        if table.used != count:
            raise AssertionError(f"{table.used} connections instead of {count}")
        yield table, flows, began


def compare(flows: Flows, walk: Walk, step: str, batch: int = BATCH) -> tuple[list[float], list[float]]:
    """Nanoseconds a packet and nanoseconds a read, of each round."""
    taken, reads = [], []
    for number in range(ROUNDS + 1):
        read = walk.steps(PACKETS)
        nanoseconds = flows.at_random(PACKETS, NOW, step, batch=batch)
        if number:
            taken.append(nanoseconds)
            reads.append(read)
    return taken, reads


def ratios(taken: Sequence[float], reads: Sequence[float]) -> list[float]:
    return [packet / read for packet, read in zip(taken, reads, strict=True)]


def allocations() -> int:
    """Allocations while packets go the whole line, counted in a process of its own by the C library."""
    with tempfile.NamedTemporaryFile() as trace:
        env = {**os.environ, "LD_PRELOAD": TRACER, "MALLOC_TRACE": trace.name}
        subprocess.run([sys.executable, "-m", "bench.core", "traced"], env=env, check=True, cwd=figures.ROOT)
        text = Path(trace.name).read_text()
    if not text.startswith("= Start"):
        raise AssertionError(f"{TRACER} wrote no trace")
    return sum(line.startswith("@") for line in text.splitlines())


def traced() -> None:
    with established(1000) as (_, flows, _):
        flows.at_random(PACKETS, NOW, "whole line", traced=True)


def ending() -> tuple[float, float, int]:
    """1,000,000 connections whose time is over at once, while packets of others flow: the seconds until the last is
    gone, those of the slowest batch, and how many packets passed.
    """
    timeout = 60
    with shared_memory() as fd:
        start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        table, datapath = serve(fd, ENDING + LASTING + 64, start, udp_timeout=timeout)
        worker = datapath.worker()
        lasting = Flows(worker, tcp("11.0.0.1:10000", str(VIP), "S"), LASTING)
        lasting.in_turn(start)
        going = Flows(worker, udp("10.0.0.1:10000", str(VIP), bytes(18)), ENDING)
        going.in_turn(start)
        passed, slowest = 0, 0
        ahead = timeout * 10**9 + 10**8  # the core's clock stands just behind the timeout, and goes on
        began = time.monotonic()
        while table.used > LASTING and time.monotonic() < began + 10:
            lasting.at_random(6400, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ahead)
            passed += 6400
            slowest = max(slowest, lasting.slowest)
        return time.monotonic() - began, slowest / 1e9, passed


def main() -> int:
    share.alone()
    share.take(share.ENGINE)
    about = figures.circumstances()
    lines = [figures.heading(about, f"{ROUNDS} rounds of {PACKETS:,} packets, median (spread)")]
    print(lines[0], flush=True)
    kept: dict[str, object] = {"about": about}
    sheet = figures.Sheet()

    def say(name: str, values: Sequence[float], form: str, most: float | None = None) -> None:
        kept[name] = list(values)
        lines.append(sheet.figure(name, values, form, most=most))

    for count in (1_000, 100_000, 1_000_000, 10_000_000):
        with established(count) as (table, flows, began):
            say(f"a new connection, up to {count:,}, ns", [began] * 2, ".1f")
            walk = Walk(ENTRY * count)
            for step in ("whole line", "look-up"):
                taken, reads = compare(flows, walk, step)
                whole = step == "whole line"
                say(f"{step} at {count:,}, ns", taken, ".1f", WHOLE_LINE_BAR if whole and count == 1_000_000 else None)
                bar = LOOK_UP_BAR if not whole and count == 10_000_000 else None
                say(f"{step} at {count:,}, reads", ratios(taken, reads), ".2f", bar)
            if count == 1_000:
                for step in ("parse", "schedule", "nat"):
                    say(f"{step}, ns", compare(flows, walk, step)[0], ".1f")
            for batch in ALONE if count == 1_000_000 else ():
                say(f"whole line, {batch} at a time, ns", compare(flows, walk, "whole line", batch)[0], ".1f")
            say(f"all memory at {count:,}, bytes each", [table.memory_used / table.capacity] * 2, ".0f")
    say("entry, bytes", [Table.ENTRY] * 2, ".0f", ENTRY)
    say("allocations in 200,000 packets", [allocations()] * 2, ".0f", 0)
    endings = [ending() for _ in range(ENDING_ROUNDS)]
    say("a million ends: the last is gone, s", [seconds for seconds, _, _ in endings], ".3f", ENDING_BAR)
    say("slowest batch meanwhile, s", [slowest for _, slowest, _ in endings], ".5f", DELAY_BAR)
    say("packets meanwhile", [passed for _, _, passed in endings], ",.0f")
    PAGE.write_text(INTRODUCTION.format("\n".join(lines)))
    return sheet.end(figures.keep("core", kept))


if __name__ == "__main__":
    if sys.argv[1:] == ["traced"]:
        traced()
    else:
        sys.exit(main())
