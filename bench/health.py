"""Checks at scale: `python -m bench.health`.

10,000 checks, half of them tcp, half http, each every 2 s, for a minute, of addresses of the loopback that one nginx
answers for: what they cost, how late they begin, and how many servers were said to be down that were not. Then 1,000
servers of which 300 stop answering at once (their nginx is stopped, so that it still takes connections): when each was
found down, and whether any other was. In one process each, as the director runs them; nothing dropped from the figures.
Exit code 1 where they cost more than a core, more than one of a hundred begins more than 0.1 s late, a server is said
to be what it is not, or one is found down later than `interval` x `fall` + `timeout` + 0.1 s.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import figures, share
from nfqlb.health.machine import Status
from nfqlb.health.runner import End, Runner
from nfqlb.model import Health, Intent, Real, Service

CHECKS, INTERVAL, SECONDS, WARM = 10_000, 2.0, 60.0, 3.0
SERVERS, FAILING, QUICK, TIMEOUT, FALL, ROUNDS = 1_000, 300, 0.5, 0.3, 2, 5
CORES, LATE, IN_TIME, SLACK = 1.0, 0.1, 0.99, 0.1
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server {{
        listen {port} backlog=8192 reuseport;
        location / {{ return 204; }}
    }}
}}
"""


@contextmanager
def nginx(port: int) -> Iterator[list[int]]:
    """One that answers on every address of the loopback; the processes that it is."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nginx.conf"
        file.write_text(CONFIGURATION.format(folder=folder, port=port))
        process = subprocess.Popen(["nginx", "-p", folder, "-c", str(file), "-e", "stderr"])
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not children.read_text():
                time.sleep(0.01)
            yield [int(pid) for pid in children.read_text().split()]
        finally:
            process.terminate()
            process.wait()


def servers(first: int, count: int, port: int) -> tuple[Real, ...]:
    return tuple(
        Real(f"127.{1 + at // 250 // 250}.{at // 250 % 250}.{1 + at % 250}", port) for at in range(first, count)
    )


def used() -> float:
    """Seconds of CPU that this process has taken."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


async def calm() -> dict[str, float]:
    """What CHECKS checks cost in a minute, and how late they began."""
    turns: list[End] = []
    half = CHECKS // 2
    with nginx(18080):
        runner = Runner(lambda end, status: turns.append(end))
        timing = {"interval": INTERVAL, "timeout": 1.0}
        services = (
            Service("203.0.113.1", 80, reals=servers(0, half, 18080), health=Health("tcp", **timing)),
            Service("203.0.113.2", 80, reals=servers(half, CHECKS, 18080), health=Health("http", **timing)),
        )
        runner.adopt(Intent(services))
        await asyncio.sleep(WARM)
        began, before, late = time.monotonic(), used(), list(runner.lateness.counts)
        await asyncio.sleep(SECONDS)
        took, spent = time.monotonic() - began, used() - before
        late = [one - other for one, other in zip(runner.lateness.counts, late, strict=True)]
        await runner.close()
    in_time = sum(count for bound, count in zip(runner.lateness.BOUNDS, late, strict=False) if bound <= LATE)
    return {
        "cores": spent / took,
        "checks a second": sum(late) / took,
        "begun in time": in_time / sum(late),
        "false turns": len(turns),
    }


async def failing() -> dict[str, float]:
    """How long it took until the last of those that failed was found down."""
    found: dict[End, float] = {}
    wrong: list[End] = []
    ill = frozenset(real.address for real in servers(SERVERS - FAILING, SERVERS, 18081))

    def turned(end: End, status: Status) -> None:
        if end[1] in ill and not status.serves and stopped:
            found[end] = time.monotonic() - stopped
        else:
            wrong.append(end)

    stopped = 0.0
    with nginx(18080), nginx(18081) as pids:
        runner = Runner(turned)
        reals = servers(0, SERVERS - FAILING, 18080) + servers(SERVERS - FAILING, SERVERS, 18081)
        health = Health("http", interval=QUICK, timeout=TIMEOUT, fall=FALL)
        runner.adopt(Intent((Service("203.0.113.1", 80, reals=reals, health=health),)))
        await asyncio.sleep(WARM)
        stopped = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2 * (QUICK * FALL + TIMEOUT))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        stopped = 0.0 if len(found) < FAILING else stopped
        down = len(runner.down)
        await runner.close()
    return {
        "seconds to the last one": max(found.values(), default=99.0),
        "not found": FAILING - len(found) + abs(FAILING - down),
        "false turns": len(wrong),
    }


def main() -> int:
    share.alone()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    minute = asyncio.run(calm())
    rounds = [asyncio.run(failing()) for _ in range(ROUNDS)]
    about = figures.circumstances()
    path = figures.keep("health", {"about": about, "minute": minute, "rounds": rounds})
    print(figures.heading(about, f"{CHECKS:,} checks every {INTERVAL:g} s for {SECONDS:g} s"))
    bars = {"cores": (None, CORES), "begun in time": (IN_TIME, None), "false turns": (None, 0.0)}
    sheet = figures.Sheet()
    for name, value in minute.items():
        least, most = bars.get(name, (None, None))
        sheet.figure(name, [value, value], ",.3f", least, most=most)
    print(f"{FAILING} of {SERVERS:,} servers stop at once, {ROUNDS} rounds, median (spread)")
    latest = QUICK * FALL + TIMEOUT + SLACK
    for name, most in (("seconds to the last one", latest), ("not found", 0.0), ("false turns", 0.0)):
        values = [one[name] for one in rounds]
        sheet.figure(name, values, ",.3f", most=most, each=True)
    return sheet.end(path)


if __name__ == "__main__":
    sys.exit(main())
