"""Every scheduler in the core: what a choice costs, how fair it is, whom it moves. `python -m bench.schedulers`.

Strategy. All is done by the compiled core, without a kernel. A turn is a choice, the beginning of its connection and
the end of an older one, so that what a scheduler does about changing loads is paid for; 2 connections a server are open
meanwhile. Sizes take turns inside a round, and only ratios inside a round are held against the bar. Rounds are fixed in
advance, round 0 warms up and is not counted. Exit code 1 when a bar is missed.

It writes the table into docs/scheduling.md, between its marks, and the plots into docs/bench. `--check` writes and
measures nothing: it says whether the table names every scheduler, by the rules that stand here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bench import figures, plot, share
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.probe import Flows
from nfqlb._core.schedulers import SCHEDULERS
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import TCP, endpoint, tcp

ROUNDS = 9
TURNS = 50_000  # a round
SIZES = (10, 1_000, 10_000)  # servers
BAR = 3.0  # times the cost among the fewest that it may have among the most
VIP = endpoint("203.0.113.1:80")
CLIENTS = 100_000  # of the plots
WEIGHTS = (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
UNEQUAL = ("fo", "ovf", "dh", "lblc", "lblcr", "rr", "lc")  # do not share by weight, or not by client
HASHES = ("hrw", "mh", "sh", "dh")
PAGE = figures.ROOT / "docs" / "scheduling.md"
PLOTS = figures.ROOT / "docs" / "bench"
BEGIN, END = "<!-- written by python -m bench.schedulers -->\n", "<!-- up to here -->\n"


class About(NamedTuple):
    rule: str  # the next connection goes to
    use: str
    held: bool = True  # against the bar


ABOUT = {
    "rr": About("each in turn", "equal servers, short and similar connections"),
    "wrr": About("each in turn, by weight", "unequal servers, short and similar connections"),
    "lc": About("the least 256 x ActiveConn + InActConn", "equal servers, connections of any length"),
    "wlc": About("the same for its weight; the default", "unequal servers, connections of any length"),
    "sed": About("the shortest expected delay, (ActiveConn + 1) / weight", "few connections, very unequal servers"),
    "nq": About("an idle one first, else as sed", "as sed, where nobody should wait behind another"),
    "fo": About("the greatest weight", "a server and its stand-ins"),
    "ovf": About("the greatest weight with no more ActiveConn than that", "fill one server before the next"),
    "dh": About("by a hash of the destination", "caches behind a mark, few destinations at a time"),
    "sh": About("by a hash of the client", "clients that should stay, without persistence; at most 256 servers"),
    "mh": About("by Maglev's table: a server that goes moves hardly anybody else", "the same on several directors"),
    "lblc": About("where its destination's went, unless overloaded; else as wlc", "caches: each object in one place"),
    "lblcr": About(
        "the same with several servers for a destination; as many as it has are looked at",
        "caches with very popular objects; hundreds of servers",
        held=False,
    ),
    "twos": About(
        "the better of two drawn by weight", "several directors that do not know each other's connections", held=False
    ),
    "p2c": About("the one of two drawn by weight that has less under way", "as twos; new servers are not run down"),
    "ewma": About("the same, by (connections under way + 1) x time to reply", "servers that are now and then slow"),
    "hrw": About(
        "the server that draws the best number for the client, by weight; all are looked at",
        "the same on several directors, servers that come and go; up to hundreds",
        held=False,
    ),
}


def flows(scheduler: str, weights: Sequence[int], numbers: Sequence[int] = ()) -> Flows:
    """Clients of one service with a server for each weight; newest first, as always."""
    table = Table(-1, 1 << 16, 0)
    datapath = Datapath(table)
    servers = []
    for number, weight in zip(numbers or range(1, len(weights) + 1), weights, strict=True):
        real = endpoint(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80")
        servers.append((table.slot(TCP, *VIP, *real), *real, weight, "nat"))
    datapath.publish(Snapshot([Service(TCP, *VIP, scheduler, servers)]))
    return Flows(datapath.worker(), tcp("10.0.0.1:10000", str(VIP), "S"), CLIENTS)


def costs(scheduler: str) -> dict[int, list[float]]:
    """Nanoseconds a turn in each round, by the number of servers."""
    ways = {size: flows(scheduler, [1 + at % 10 for at in range(size)]) for size in SIZES}
    taken: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(ROUNDS + 1):
        for size, made in ways.items():
            nanoseconds, _ = made.connections(TURNS + 2 * size, 2 * size)
            if number:
                taken[size].append(nanoseconds)
    return taken


# --- plots ------------------------------------------------------------------------------------------------------------


def spread(scheduler: str) -> list[float]:
    """Connections that each server got, as a multiple of what its weight says."""
    _, chosen = flows(scheduler, WEIGHTS).connections(CLIENTS, 1000)
    return [chosen.count(at) / CLIENTS * sum(WEIGHTS) / weight for at, weight in enumerate(WEIGHTS)]


def moved(scheduler: str, count: int) -> list[float]:
    """When one of the servers leaves, the percentage of the others' clients (dh: destinations) that lose theirs too;
    for each server that may leave.
    """
    servers = range(1, count + 1)
    by = scheduler == "dh"
    _, before = flows(scheduler, [1] * count).connections(CLIENTS, 0, by)
    shares = []
    for gone in servers:
        left = [number for number in servers if number != gone]
        _, after = flows(scheduler, [1] * (count - 1), left).connections(CLIENTS, 0, by)
        stay = [(old + 1, left[new]) for old, new in zip(before, after, strict=True) if old + 1 != gone]
        shares.append(100 * sum(old != new for old, new in stay) / len(stay))
    return shares


def draw() -> None:
    fair = [name for name in SCHEDULERS if name not in UNEQUAL]
    title = f"{CLIENTS:,} connections over ten servers of weight 1 to 5: a server's share / its weight's"
    (PLOTS / "spread.svg").write_text(plot.bars(title, [(name, spread(name)) for name in fair]))
    title = "One of ten servers leaves: % of the others' clients that lose theirs, too"
    (PLOTS / "disruption.svg").write_text(plot.bars(title, [(name, moved(name, 10)) for name in HASHES]))


# --- the page ---------------------------------------------------------------------------------------------------------


def table(costs_of: dict[str, dict[int, float]], about: dict[str, str | int]) -> str:
    sizes = " | ".join(f"{size:,}" for size in SIZES)
    lines = [
        f"Nanoseconds for a choice, a beginning and an ending among so many servers; {about['cpu']}, commit",
        f"{about['commit']}.",
        "",
        f"| name | the next connection goes to | when to use it | {sizes} |",
        "|---|---|---|" + "---:|" * len(SIZES),
    ]
    for name, one in ABOUT.items():
        figures_of = " | ".join(f"{costs_of[name][size]:,.0f}" for size in SIZES)
        lines.append(f"| `{name}` | {one.rule} | {one.use} | {figures_of} |")
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.split(END)[1])


def missing() -> list[str]:
    """Schedulers without a word here, or without their row on the page."""
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    known = {
        name for name, one in ABOUT.items() if any(f"| `{name}` | {one.rule} | {one.use} |" in row for row in rows)
    }
    return sorted(set(SCHEDULERS) ^ known)


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        for name in missing():
            print(f"{name}: run python -m bench.schedulers", file=sys.stderr)
        return 1 if missing() else 0
    share.alone()
    share.take(share.ENGINE)
    about = figures.circumstances()
    print(figures.heading(about, f"{ROUNDS} rounds of {TURNS:,} turns, median (spread)"), flush=True)
    sheet, medians, kept = figures.Sheet(), {}, {}
    for name in SCHEDULERS:
        taken = kept[name] = costs(name)
        medians[name] = {size: statistics.median(values) for size, values in taken.items()}
        for size, values in taken.items():
            sheet.figure(f"{name} among {size:,}, ns", values, ".1f")
        ratios = [most / least for least, most in zip(taken[SIZES[0]], taken[SIZES[-1]], strict=True)]
        sheet.figure(f"{name}, most / fewest", ratios, ".2f", most=BAR if ABOUT[name].held else None)
    write(table(medians, about))
    draw()
    return sheet.end(figures.keep("schedulers", {"about": about, **kept}))


if __name__ == "__main__":
    sys.exit(main())
