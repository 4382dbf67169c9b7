"""Deadlines when the wall clock is set."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nfqlb import clock


@pytest.mark.parametrize("step", [-7200, 7200])
def test_a_step_of_the_wall_clock_moves_no_deadline_and_is_told(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    deadline, wall = clock.now() + 60, time.time
    assert 59 < clock.wall(deadline) - time.time() <= 60
    monkeypatch.setattr(time, "time", lambda: wall() + step)
    assert 59 < deadline - clock.now() <= 60
    assert 59 < clock.wall(deadline) - time.time() <= 60


def test_directors_of_one_boot_have_one_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state" / "state.clock"
    monkeypatch.setattr(clock, "_ahead", 1000.0)
    clock.keep(file)
    monkeypatch.setattr(clock, "_ahead", 5000.0)
    clock.keep(file)
    assert clock._ahead == 1000.0
    file.write_text("another-boot 7.0")
    monkeypatch.setattr(clock, "_ahead", 5000.0)
    clock.keep(file)
    assert clock._ahead == 5000.0
    clock.keep(file)
    assert clock._ahead == 5000.0
