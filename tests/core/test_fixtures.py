"""Runs the table of packet fixtures."""

from __future__ import annotations

from collections import Counter

import pytest

from nfqlb._core.telemetry import MEANINGS, REASON_NAMES, VERDICT_NAMES
from tests.core.fixtures import CONFIG, ROWS, WAYS, Row
from tests.core.lab import Lab


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_packet(row: Row) -> None:
    lab = Lab(*CONFIG, capacity=64, policy=row.policy, ways=WAYS)
    for packet, hook in row.before:
        assert lab.send(packet, hook=hook).verdict in ("rewrite", "transmit", "mark")
    if row.then is not None:
        stay = {real for virtual in row.then for real in virtual.reals}
        lab.configure(*row.then, gone=[slot for key, slot in lab.slots.items() if key[-1] not in stay], fate=row.fate)
    lab.datapath.defend(lab.clock())
    lab.datapath.stand_by(row.standby)
    before = lab.reasons()
    assert lab.send(row.packet, hook=row.hook, flags=row.flags, behind=row.behind) == (row.verdict, row.reason, row.out)
    assert lab.workers[0].outgoing() == ([row.answer] if row.answer else [])
    assert Counter(lab.reasons()) - Counter(before) == {row.reason: 1}, "counted once, under its reason"


def test_every_reason_has_its_row() -> None:
    assert {row.reason for row in ROWS} == set(REASON_NAMES) == set(MEANINGS)
    assert {row.verdict for row in ROWS} == set(VERDICT_NAMES)
    verdict = {row.reason: row.verdict for row in ROWS}
    assert all(row.verdict == verdict[row.reason] for row in ROWS), "a reason alone says what becomes of a packet"


def test_no_two_rows_have_one_name() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []
