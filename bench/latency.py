"""One of ten real servers is ten times slower: `python -m bench.latency`.

Strategy. Clients ask at random times, so many a second, each on a connection of its own over NAT; a server accepts at
once and answers after its time. `ewma` stands beside `wlc`, and beside itself over the nine healthy servers alone. Each
has a director of its own start, and LEAD seconds to find out; then requests are counted. Ways take turns; rounds are
fixed in advance. Exit code 1 when the slow server has more than its share, or the slowest hundredth of all requests
takes too long.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench import figures
from netns.topology import Net

ROUNDS = 3
LEAD, SECONDS = 5.0, 10.0
RATE = 200.0  # requests a second
PACE, SLOW = 0.020, 0.200  # seconds that an answer takes
SERVERS = [f"10.2.0.{host}" for host in range(101, 111)]
SHARE_BAR = 0.02
LATENCY_BAR = 1.5  # of the 99th percentile of the healthy ones
WAYS = {"ewma": 10, "wlc": 10, "ewma, nine healthy": 9}


class Sample(NamedTuple):
    share: float  # of the slow server
    p99: float  # seconds


async def answer(paces: dict[str, float]) -> None:
    """Real servers: each says its address after its pace."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        address = writer.get_extra_info("sockname")[0]
        await asyncio.sleep(paces[address])
        writer.write(f"{address}\n".encode())
        writer.close()

    for address in paces:
        await asyncio.start_server(handle, address, 80, backlog=1000)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def ask(vip: str, seconds: float) -> None:
    """Clients: a line of JSON with who answered, when the request began, and how long it took."""
    chance, begin = random.Random(), time.monotonic()
    found: list[tuple[str, float, float]] = []

    async def one() -> None:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(vip, 80)
        writer.write(b"?\n")
        who = (await reader.readline()).decode().strip()
        found.append((who, began - begin, time.monotonic() - began))
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        due = begin
        while due < begin + seconds:
            due += chance.expovariate(RATE)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(one())
    print(json.dumps(found))


def sample(net: Net, scheduler: str, servers: Sequence[str]) -> Sample:
    reals = [word for server in servers for word in ("--real", server)]
    net.director.nfqlb("--mode", "nat", "--vip", net.service(), *reals, "--scheduler", scheduler)
    command = [sys.executable, "-m", "bench.latency", "ask", net.vip(), str(LEAD + SECONDS)]
    rows = json.loads(net.client.run(command, timeout=60).stdout)
    net.director.stop()
    counted = [(who, taken) for who, began, taken in rows if began >= LEAD]
    slow = sum(who == SERVERS[0] for who, _ in counted)
    return Sample(slow / len(counted), statistics.quantiles([taken for _, taken in counted], n=100)[98])


def main() -> int:
    if sys.argv[1:2] == ["answer"]:
        asyncio.run(answer({server: SLOW if server == SERVERS[0] else PACE for server in SERVERS}))
    if sys.argv[1:2] == ["ask"]:
        asyncio.run(ask(sys.argv[2], float(sys.argv[3])))
        return 0
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds of {SECONDS:g} s, {RATE:g} requests a second"), flush=True)
    taken: dict[str, list[Sample]] = {way: [] for way in WAYS}
    with Net(servers=1, web=False) as net:
        [host] = net.servers
        host.ip(*(f"address add {server}/24 dev eth0" for server in SERVERS))
        host.spawn([sys.executable, "-m", "bench.latency", "answer"], log="latency.log").says("ready")
        for _ in range(ROUNDS):
            for way, count in WAYS.items():
                taken[way].append(sample(net, way.partition(",")[0], SERVERS[-count:]))
    sheet = figures.Sheet()
    for way, samples in taken.items():
        bar = SHARE_BAR if way == "ewma" else None
        sheet.figure(f"share of the slow one, {way}", [one.share for one in samples], ".4f", most=bar)
        sheet.figure(f"p99 in ms, {way}", [1000 * one.p99 for one in samples], ".1f")
    for way in ("ewma", "wlc"):
        ratios = [one.p99 / base.p99 for one, base in zip(taken[way], taken["ewma, nine healthy"], strict=True)]
        bar = LATENCY_BAR if way == "ewma" else None
        sheet.figure(f"p99, {way} / nine healthy", ratios, ".2f", most=bar)
    return sheet.end(figures.keep("latency", {"about": about, **taken}))


if __name__ == "__main__":
    sys.exit(main())
