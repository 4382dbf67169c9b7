"""nfqlb beside its peers: `python -m bench.peers [ROUNDS [PEER ...]]`.

Strategy. Rates on a shared machine swing, so what counts are ratios inside a round, in which all ways are measured
within a minute of each other. The order rotates from round to round; round 0 warms up and is kept in the file but not
counted; no other round is dropped. Engines that are not at work are stopped (SIGSTOP), so that each has the machine
alone. A full run takes 15 rounds and writes the page and the plots in docs/bench; with ROUNDS, or of some peers only,
it writes build/bench alone.

Exit code 1 when a median is below its bar.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from bench import figures, report, share
from bench.measures import MEASURES, SECONDS
from bench.report import Round
from bench.road import Road
from bench.ways import PEERS, ways_of

ROUNDS = 15


def take(road: Road, number: int) -> Round:
    """One sample of every kind through every way."""
    taken: Round = {}
    for measure, samples in MEASURES.items():
        ways = [road.ways[name] for name in ways_of(measure) if name in road.ways]
        turn = number % len(ways)
        taken[measure] = samples(road, [*ways[turn:], *ways[:turn]])
    return taken


def measure(rounds: int, names: Sequence[str]) -> Iterator[Round]:
    """All rounds, the warm-up first."""
    with Road(*names) as road:
        for name in names:
            way = road.ways[name]
            way.pids = PEERS[name].start(way)
            for pid in way.pids:
                share.hasten(pid)
                os.kill(pid, signal.SIGSTOP)
        for number in range(rounds + 1):
            yield take(road, number)


def main(*words: str) -> int:
    """`words`: so many rounds, and which of PEERS; "plain" among them, since all is a multiple of it."""
    rounds = max(2, int(words[0])) if words else ROUNDS  # one has no spread
    names = words[1:] or tuple(PEERS)
    share.alone()
    about = figures.circumstances()
    began = time.monotonic()
    taken: list[Round] = []
    for one in measure(rounds, names):
        taken.append(one)
        minutes = (time.monotonic() - began) / 60
        kept = {"about": about, "minutes": minutes, "warm-up": taken[0], "rounds": taken[1:]}
        path = figures.keep("peers-try" if words else "peers", kept)
        print(f"round {len(taken) - 1} of {rounds}, {minutes:.1f} minutes", file=sys.stderr, flush=True)
    heading = figures.heading(about, f"{rounds} rounds of {SECONDS} s a sample, {minutes:.0f} minutes")
    lines, good = report.lines(taken[1:])
    print(heading, *lines, f"all rounds: {path.relative_to(figures.ROOT)}", sep="\n")
    if not words:
        report.publish(heading, taken[1:])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
