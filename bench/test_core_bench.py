"""`make bench-compare`: no step of the core costs much more than it did.

Strategy. Nanoseconds are those of the machine and the minute, so every step is counted in reads from memory that each
need the one before, taken in the same round (bench/core.py). The median of these ratios must not pass the kept one
(baseline.json) by more than its margin; pytest-benchmark shows the nanoseconds. After a change that is meant to cost
more, put the new median there, in a commit that says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import core, figures
from nfqlb._core.connection import Table
from nfqlb._core.probe import Flows, Walk

ROUNDS = 9
PACKETS = 100_000  # a round
BASELINE = json.loads(Path(__file__).with_name("baseline.json").read_text())
CASES = [(int(count), step) for count, steps in BASELINE["reads"].items() for step in steps]


@pytest.fixture(scope="module")
def flows(request: pytest.FixtureRequest) -> Iterator[tuple[Flows, Walk]]:
    with core.established(request.param) as (_, made, _):
        yield made, Walk(core.ENTRY * request.param)


@pytest.mark.parametrize(("flows", "step"), CASES, indirect=["flows"], ids=str)
def test_a_packet_costs_no_more_reads_than_it_did(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest, flows: tuple[Flows, Walk], step: str
) -> None:
    made, walk = flows
    limit = BASELINE["reads"][request.node.callspec.id.partition("-")[0]][step] * BASELINE["margin"]
    reads: list[float] = []
    packets: list[float] = []
    made.at_random(PACKETS, core.NOW, step)  # warms up
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: packets.append(made.at_random(PACKETS, core.NOW, step)),
        setup=lambda: reads.append(walk.steps(PACKETS)),
        rounds=ROUNDS,
    )
    line, good = figures.line(f"{request.node.callspec.id}, reads", core.ratios(packets, reads), ".2f", most=limit)
    assert good, line


def test_a_connection_takes_no_more_memory_than_it_did() -> None:
    table = Table(-1, 1 << 20, core.NOW)
    assert core.ENTRY == Table.ENTRY
    assert table.memory_used / table.capacity <= BASELINE["bytes"]
