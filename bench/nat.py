"""Small UDP packets per second: plain forwarding, nfqlb's NAT, and the same NAT in a Python callback: `python -m
bench.nat`.

Strategy. Rates on a shared machine swing, so what counts are ratios inside a round, in which the three ways are
measured within a few seconds of each other. The order rotates from round to round; round 0 warms up and is kept in
the file but not counted; no other round is dropped. Packets are offered without limit by CPU 0; the engine has CPU 1;
what counts is what arrives at the servers. Engines that are not at work are stopped (SIGSTOP), so that each has its
CPU alone.

Exit code 1 when a median is below its bar.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import figures, share
from bench.road import PORT, Road

FULL = os.environ.get("NFQLB_FULL") == "1"
ROUNDS = 15 if FULL else 5
SECONDS = 1.0 if FULL else 0.5
LEAD = 0.25  # seconds of traffic before the measurement
WAYS = ("plain", "nfqlb", "callback")
BARS = {"nfqlb / plain": 0.5, "nfqlb / callback": 3.0}
CALLBACK_BAR = 55_000.0
QUEUE = 7


def start(road: Road) -> dict[str, list[int]]:
    """Start both engines; the processes of each way."""
    way = road.ways["nfqlb"]
    reals = [word for real in way.reals for word in ("--real", f"{real}:{PORT}")]
    holder = way.director.nfqlb("--mode", "nat", "--vip", f"{way.vip}:{PORT}/udp", "--scheduler", "rr", *reals)
    child = way.director.director_pid()
    share.take(share.ENGINE, child)

    way = road.ways["callback"]
    divert = ["iptables", "-t", "mangle", "-A"]
    queue = ["-j", "NFQUEUE", "--queue-num", str(QUEUE)]
    udp = ["-p", "udp"]
    ends = [f"{address}:{PORT}" for address in (way.vip, *way.reals)]
    process = way.director.spawn([sys.executable, "-m", "bench.callback", str(QUEUE), *ends])
    process.says("ready")
    way.director.run([*divert, "PREROUTING", *udp, "-d", way.vip, "--dport", str(PORT), *queue])
    for real in way.reals:
        way.director.run([*divert, "FORWARD", *udp, "-s", real, "--sport", str(PORT), *queue])
    return {"plain": [], "nfqlb": [holder.pid, child], "callback": [process.pid]}


@contextmanager
def awake(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def sample(road: Road, name: str) -> dict[str, float]:
    way = road.ways[name]
    sender = road.blast(name, way.reals if name == "plain" else [way.vip])
    time.sleep(LEAD)
    rate, blur = road.rate(SECONDS)
    sender.end()
    sent, seconds = sender.text.split()[1:]
    return {"rate": rate, "blur": blur, "offered": int(sent) / float(seconds)}


def measure(road: Road) -> list[dict[str, dict[str, float]]]:
    """All rounds, the warm-up first."""
    pids = start(road)
    for stopped in pids.values():
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
    rounds = []
    for number in range(ROUNDS + 1):
        turn = number % len(WAYS)
        samples = {}
        for name in (*WAYS[turn:], *WAYS[:turn]):
            with awake(pids[name]):
                samples[name] = sample(road, name)
        rounds.append(samples)
    return rounds


def main() -> int:
    share.hasten()
    with Road(*WAYS) as road:
        rounds = measure(road)
    about = figures.circumstances()
    path = figures.keep("nat", {"about": about, "seconds": SECONDS, "warm-up": rounds[0], "rounds": rounds[1:]})
    print(figures.heading(about, f"{ROUNDS} rounds of {SECONDS} s, median (spread)"))
    rates = {name: [samples[name]["rate"] for samples in rounds[1:]] for name in WAYS}
    bars = {"callback": CALLBACK_BAR}
    results = [figures.line(f"{name}, packets/s", rates[name], ",.0f", bars.get(name)) for name in WAYS]
    for name, bar in BARS.items():
        a, b = name.split(" / ")
        results.append(figures.line(name, [x / y for x, y in zip(rates[a], rates[b], strict=True)], ".2f", bar))
    print(*(text for text, _ in results), f"all rounds: {path.relative_to(figures.ROOT)}", sep="\n")
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main())
