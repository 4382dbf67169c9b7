"""Rounds of bench.peers as lines for a terminal, as a page and as plots; docs/bench is written by nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench import figures, plot
from bench.measures import Sample
from bench.ways import PEERS, ways_of

Round = dict[str, dict[str, Sample]]  # by measure, by way
PAGE = figures.ROOT / "docs" / "bench"
TITLES = {  # what, in which unit, and how many of it is one of ours
    "udp": ("Small UDP packets", "thousand packets per second", 1e-3),
    "bulk": ("Two TCP streams", "Gbit/s", 1e-9),
    "connections": ("TCP connections, one HTTP request each", "thousand per second", 1e-3),
    "latency": ("Round trip of a lone datagram, median", "µs", 1.0),
}
BARS: list[tuple[str, str, str, float | None]] = [  # measure, way, its peer, at least so many times as much
    ("udp", "fast", "plain", 0.5),
    ("udp", "fast", "callback", 3.0),
    ("udp", "fast", "percall", 1.7),
    ("udp", "fast", "accept", 0.85),
    ("bulk", "fast2", "plain", 0.42),
    ("bulk", "fast2", "haproxy2", 1.2),  # as many threads as HAProxy has
    ("udp", "dr-bpf", "plain", 0.5),
    ("udp", "local-bpf", "plain", 0.4),
    ("udp", "tun-bpf", "plain", 0.45),
    ("bulk", "dr-bpf", "plain", 0.5),
    ("bulk", "local-bpf", "plain", 0.4),
    ("udp", "nat-bpf", "plain", 1.0),
    ("udp", "nat-bpf", "nft", 1.25),
    ("bulk", "nat-bpf", "plain", 0.92),
    ("bulk", "nat-bpf", "nft", 1.05),
    ("bulk", "nat-bpf", "haproxy2", 2.1),
    ("connections", "nat-bpf", "haproxy2", 1.25),
    # what the programs and the memory of a machine let any balancer reach
    ("bulk", "ends", "haproxy2", None),
    ("bulk", "nat-bpf", "ends", None),
    ("connections", "nat-bpf", "ends", None),
    # every packet through the queue
    ("udp", "dr", "plain", None),
    ("udp", "dr-local", "plain", None),
    ("udp", "tun", "plain", None),
    ("bulk", "dr-mark", "plain", None),
    ("bulk", "dr-local", "plain", None),
    # by which direct routing chooses its way
    ("udp", "dr-mark", "dr", None),
    ("bulk", "dr-mark", "dr", None),
    ("connections", "dr-mark", "dr", None),
    # what one worker reaches, and the ceiling: no bars
    ("bulk", "fast", "plain", None),
    ("bulk", "fast", "haproxy2", None),
    ("udp", "accept", "callback", None),
    ("udp", "accept", "percall", None),
    ("bulk", "accept", "plain", None),
    ("bulk", "accept", "haproxy2", None),
    ("connections", "fast2", "haproxy2", None),
]
CLOSE = 0.1  # of the distance of the quartiles: see `judged`
CPU_BARS = [("connections", "nat-bpf", "haproxy2", 0.4)]  # measure, way, its peer, at most so many times its CPU
LATENCY_BARS = {"nat-bpf": 2.0}  # microseconds added to the median
PERCENTILES = {"figure": "median", "p99": "p99", "p99.9": "p99.9"}
# whose added latency is told on the terminal
ADDED = ["fast", "dr", "dr-mark", "dr-local", "tun", "nat-bpf", "dr-bpf", "local-bpf", "tun-bpf"]
CALLBACK_BAR = 55_000.0  # packets per second of a callback that is no straw man
INTRODUCTION = """# nfqlb beside its peers

Written by `python -m bench.peers` (`make bench`); [bench/README.md](../../bench/README.md) says how the figures are
taken. Medians of paired ratios inside a round, with their quartiles; every round counts. Microseconds of CPU a packet
are seconds of CPU a million packets. Where a median is nearer to its bar than a tenth of its quartiles' distance, the
CPU decides that the whole machine spends for each packet or bit: what the peer needs, as a multiple of ours.
"""


def there(rounds: Sequence[Round], measure: str) -> list[str]:
    """The ways that were measured."""
    return [way for way in ways_of(measure) if way in rounds[0][measure]]


def values(rounds: Sequence[Round], measure: str, way: str, key: str = "figure") -> list[float]:
    return [taken[measure][way][key] for taken in rounds if way in taken[measure]]


def ratios(rounds: Sequence[Round], measure: str, way: str, peer: str, key: str = "figure") -> list[float]:
    """What a way did in each round, as a multiple of what its peer did in the same."""
    pairs = zip(values(rounds, measure, way, key), values(rounds, measure, peer, key), strict=True)
    return [mine / other for mine, other in pairs]


def judged(
    rounds: Sequence[Round], measure: str, way: str, peer: str, bar: float | None
) -> list[tuple[str, list[float], float | None]]:
    """The ratio and its bar as (what it is of, values, bar). A median nearer to its bar than a tenth of the quartiles'
    distance is what noise makes of it: then the CPU that the machine spends for each packet or bit decides, the peer's
    as a multiple of the way's.
    """
    found = ratios(rounds, measure, way, peer)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    if bar is None or abs(middle - bar) > CLOSE * (high - low):
        return [(measure, found, bar)]
    return [(measure, found, None), (f"{measure} by CPU", ratios(rounds, measure, peer, way, "machine"), bar)]


def added(rounds: Sequence[Round], way: str, key: str) -> list[float]:
    """Microseconds that a way adds to plain forwarding's round trip."""
    pairs = zip(values(rounds, "latency", way, key), values(rounds, "latency", "plain", key), strict=True)
    return [mine - other for mine, other in pairs]


def lines(rounds: Sequence[Round]) -> tuple[list[str], bool]:
    """All figures and bars; whether all bars are met."""
    found = []
    for measure, (title, unit, scale) in TITLES.items():
        found.append((f"{title}, {unit}", True))
        for way in there(rounds, measure):
            scaled = [scale * value for value in values(rounds, measure, way)]
            bar = scale * CALLBACK_BAR if (measure, way) == ("udp", "callback") else None
            found.append(figures.line(f"  {PEERS[way].title}", scaled, ",.1f", bar))
    found.append(("Ratios", True))
    for measure, way, peer, bar in BARS:
        if {way, peer} <= set(there(rounds, measure)):
            for what, multiples, least in judged(rounds, measure, way, peer, bar):
                found.append(figures.line(f"  {what}, {way} / {peer}", multiples, ".2f", least))
    for measure, way, peer, bar in CPU_BARS:
        if {way, peer} <= set(there(rounds, measure)):
            spent = ratios(rounds, measure, way, peer, "engine")
            found.append(figures.line(f"  CPU, {measure}, {way} / {peer}", spent, ".2f", most=bar))
    found.append(("Added to plain forwarding's round trip, µs", True))
    for way in filter(there(rounds, "latency").__contains__, ADDED):
        for key, title in PERCENTILES.items():
            most = LATENCY_BARS.get(way) if key == "figure" else None
            found.append(figures.line(f"  {PEERS[way].title}, {title}", added(rounds, way, key), ".1f", most=most))
    for measure, key in (("connections", "errors"), ("latency", "lost")):
        totals = {PEERS[way].title: sum(values(rounds, measure, way, key)) for way in there(rounds, measure)}
        found += [(f"  {title}: {total:.0f} {key} in {measure}", True) for title, total in totals.items() if total]
    return [text for text, _ in found], all(good for _, good in found)


def publish(heading: str, rounds: Sequence[Round], folder: Path = PAGE) -> None:
    """Write the page and its plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for measure, (title, unit, scale) in TITLES.items():
        rows = [(PEERS[way].title, [scale * v for v in values(rounds, measure, way)]) for way in ways_of(measure)]
        (folder / f"{measure}.svg").write_text(plot.bars(f"{title}, {unit}", rows))
    parts = [INTRODUCTION, heading + "\n", *tables(rounds)]
    parts += [f"![{title}]({measure}.svg)\n" for measure, (title, _, _) in TITLES.items()]
    (folder / "peers.md").write_text("\n".join(parts))


def tables(rounds: Sequence[Round]) -> list[str]:
    throughput = ["udp", "bulk", "connections"]
    rates = [["", "UDP kpackets/s", "/ plain", "TCP Gbit/s", "/ plain", "kconnections/s", "/ plain"]]
    costs = [["", "CPU, µs/packet: engine", "machine", "CPU, µs/connection: engine", "machine"]]
    costs[0] += [f"added {title}, µs" for title in PERCENTILES.values()]
    for way, peer in PEERS.items():
        rates.append([peer.title])
        for measure in throughput:
            if way in ways_of(measure):
                rates[-1].append(f"{TITLES[measure][2] * statistics.median(values(rounds, measure, way)):,.1f}")
                rates[-1].append(spread(ratios(rounds, measure, way, "plain"), ".2f"))
            else:
                rates[-1] += ["-", "-"]
        costs.append([peer.title])
        for measure in ("udp", "connections"):
            for key in ("engine", "machine"):
                spent = [1e6 * value for value in values(rounds, measure, way, key)]
                costs[-1].append(f"{statistics.median(spent):.1f}" if spent else "-")
        for key in PERCENTILES:
            costs[-1].append(spread(added(rounds, way, key), ".1f") if way in ways_of("latency") else "-")
    bars = [["", "median", "least", "quartiles", "most", "bar"]]
    for measure, way, other, bar in BARS:
        for what, multiples, least in judged(rounds, measure, way, other, bar):
            bars.append(barred(f"{what}: {PEERS[way].title} / {PEERS[other].title}", multiples, ".2f", least))
    for measure, way, other, most in CPU_BARS:
        name = f"CPU of the engine, {measure}: {PEERS[way].title} / {PEERS[other].title}"
        bars.append(barred(name, ratios(rounds, measure, way, other, "engine"), ".2f", most=most))
    for way, most in LATENCY_BARS.items():
        bars.append(barred(f"added median, µs: {PEERS[way].title}", added(rounds, way, "figure"), ".1f", most=most))
    return [table(bars), table(rates), table(costs)]


def barred(
    name: str, found: Sequence[float], form: str, bar: float | None = None, *, most: float | None = None
) -> list[str]:
    """A row: the median, the spread, and whether it is at least, or at most, what it has to be."""
    low, middle, high = (f"{value:{form}}" for value in statistics.quantiles(found, n=4, method="inclusive"))
    good = figures.line(name, found, form, bar, most=most)[1]
    limit = f"at least {bar:{form}}" if bar is not None else f"at most {most:{form}}" if most is not None else ""
    verdict = f"{limit}: {'yes' if good else '**no**'}" if limit else ""
    return [name, middle, f"{min(found):{form}}", f"{low} to {high}", f"{max(found):{form}}", verdict]


def spread(found: Sequence[float], form: str) -> str:
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body, ""])
