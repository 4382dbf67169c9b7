"""What bench.peers says of its rounds."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import report
from bench.measures import MEASURES
from bench.report import Round
from bench.ways import ways_of

COSTS = {"engine": 3e-6, "machine": 6e-6, "p99": 50.0, "p99.9": 70.0, "errors": 0, "lost": 0}


@pytest.fixture
def rounds() -> list[Round]:
    """Three in which all ways do the same, but the fast engine four times as much, with one worker and two, and the
    offload three times as much, with a third of the CPU.
    """
    times = {"fast": 4, "fast2": 4, "nat-bpf": 3}

    def sample(measure: str, way: str, speed: float) -> dict[str, float]:
        cost = {**COSTS, "engine": 1e-6} if way == "nat-bpf" else COSTS
        return {"figure": speed * (1 if measure == "latency" else times.get(way, 1)), **cost}

    return [
        {measure: {way: sample(measure, way, speed) for way in ways_of(measure)} for measure in MEASURES}
        for speed in (60_000.0, 90_000.0, 80_000.0)
    ]


def test_all_bars_met(rounds: list[Round]) -> None:
    _, good = report.lines(rounds)
    assert good


def test_a_median_below_its_bar_is_said_and_counts(rounds: list[Round]) -> None:
    for taken in rounds[:2]:
        taken["bulk"]["haproxy2"]["figure"] *= 4
    lines, good = report.lines(rounds)
    assert not good
    assert [line.split()[:4] for line in lines if line.endswith("NO")] == [
        ["bulk,", "fast2", "/", "haproxy2"],
        ["bulk,", "nat-bpf", "/", "haproxy2"],
    ]


def test_ratios_are_taken_inside_a_round(rounds: list[Round]) -> None:
    assert report.ratios(rounds, "udp", "fast", "plain") == [4.0, 4.0, 4.0]


def test_failed_connections_are_said(rounds: list[Round]) -> None:
    rounds[1]["connections"]["nft"]["errors"] = 2
    assert report.lines(rounds)[0][-1] == "  nftables DNAT: 2 errors in connections"


def test_the_page_has_every_way_and_its_plots_are_xml(rounds: list[Round], tmp_path: Path) -> None:
    report.publish("heading", rounds, tmp_path)
    page = (tmp_path / "peers.md").read_text()
    assert "| HAProxy, 1 thread | - | - | 0.0 | 1.00 (1.00 to 1.00) |" in page
    assert "| nfqlb, fast engine | 320.0 | 4.00 (4.00 to 4.00) |" in page
    for plot in tmp_path.glob("*.svg"):
        assert f"]({plot.name})" in page
        bars = [element for element in ElementTree.parse(plot).iter() if element.get("class") in ("bar", "ours")]
        assert len(bars) == len(ways_of(plot.stem))


def test_cpu_and_latency_have_bars(rounds: list[Round]) -> None:
    for taken in rounds[:2]:
        taken["connections"]["nat-bpf"]["engine"] = 2e-6
        taken["latency"]["nat-bpf"]["figure"] += 3
    lines, good = report.lines(rounds)
    assert not good
    assert [line.split()[:2] for line in lines if line.endswith("NO")] == [["CPU,", "connections,"], ["nfqlb,", "NAT,"]]


@pytest.mark.parametrize(("saved", "said"), [(1.2, "yes"), (1.0, "NO")])
def test_where_noise_would_decide_the_machines_cpu_does(rounds: list[Round], saved: float, said: str) -> None:
    for taken, times in zip(rounds, (0.9, 1.04, 1.2), strict=True):  # quartiles 0.97 and 1.12, the bar is 1.05
        way, peer = taken["bulk"]["nat-bpf"], taken["bulk"]["nft"]
        peer["figure"] = way["figure"] / times
        peer["machine"] = way["machine"] * saved
    lines, good = report.lines(rounds)
    about = [line for line in lines if "nat-bpf / nft" in line and line.strip().startswith("bulk")]
    assert [line.split("   ")[0].strip() for line in about] == ["bulk, nat-bpf / nft", "bulk by CPU, nat-bpf / nft"]
    assert "at least" not in about[0]
    assert about[1].endswith(f"at least 1.05: {said}")
    assert good == (said == "yes")
