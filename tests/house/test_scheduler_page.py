"""The page about schedulers says the rule and the use of every one, as bench.schedulers has them."""

from __future__ import annotations

from bench import schedulers


def test_every_scheduler_has_its_row() -> None:
    assert schedulers.missing() == [], "say what it is for in bench/schedulers.py, and run python -m bench.schedulers"
