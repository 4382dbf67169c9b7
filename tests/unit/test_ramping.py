"""Slow start: shares as a function of time, and who ramps, by a clock that stands still until it is told to go on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb.control.ramping import share
from nfqlb.errors import ConfigError
from nfqlb.health.machine import Condition, Status
from nfqlb.health.runner import Seen
from nfqlb.model import SCHEDULERS, SUDDEN, WEIGHT_MAX, Health, Intent, Real, Service
from nfqlb.serving import LOOK_SECONDS, RAMP_SECONDS, Serving
from nfqlb.state import Maintenance, State

FARM = Service("203.0.113.10", 80, reals=(Real("10.0.1.1", 80, 100), Real("10.0.1.2", 80, 50)), slow_start=10)
AGES = st.floats(-10, 1e6)


class Clock:
    """A director's part that knows who gets connections, and the time that it sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, service: Service = FARM) -> None:
        self.now, self.service = 1000.0, service
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.serving = Serving(State(1, False, "", Intent((service,))), lambda: None)
        self.after(0)

    def after(self, seconds: float, **edit: object) -> dict[str, int | None]:
        """The weights other than those asked for, by the end of the address, so many seconds later."""
        self.now += seconds
        self.service = replace(self.service, **edit)
        view = self.serving.look(Intent((self.service,)))
        self.serving.settle(view)
        return {address[-1]: weight for (address, _), weight in view.asks[1].get(self.service.key, {}).items()}

    def find(self, *down: str) -> None:
        """The checks find these down, and nobody else."""
        for real in self.service.reals:
            status = Status(Condition.DOWN) if real.address[-1] in down else Status()
            self.serving.health.seen[self.service.key, real.address, real.port] = Seen(status, 0)


@given(st.integers(0, WEIGHT_MAX), AGES, AGES, st.integers(1, 86400))
def test_a_share_never_falls_and_ends_at_the_weight(weight: int, age: float, later: float, seconds: int) -> None:
    first, then = sorted((age, later))
    assert min(weight, 1) <= share(weight, first, seconds) <= share(weight, then, seconds) <= weight
    assert share(weight, seconds, seconds) == weight
    assert share(0, age, seconds) == 0
    assert share(weight, 0, seconds) <= max(1, weight / 10)


def test_a_server_that_is_added_works_up_to_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Clock(monkeypatch)
    assert farm.serving.due() == LOOK_SECONDS
    assert farm.after(0, reals=(*FARM.reals, Real("10.0.1.3", 80, 100))) == {"3": 10}
    assert farm.serving.due() == RAMP_SECONDS
    assert farm.serving.ramping((FARM.key, "10.0.1.3", 80)) == 10
    assert farm.serving.ramping((FARM.key, "10.0.1.1", 80)) == 0
    assert [farm.after(3)["3"] for _ in range(3)] == [30, 60, 90]
    assert farm.after(1) == {}
    assert farm.serving.due() == LOOK_SECONDS
    assert farm.serving.ramping((FARM.key, "10.0.1.3", 80)) == 0


def test_so_does_one_that_is_up_again_and_one_that_goes_down_meanwhile_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    farm = Clock(monkeypatch, replace(FARM, health=Health()))
    farm.find("1")
    assert farm.after(0) == {"1": None}
    farm.find()
    assert farm.after(0) == {"1": 10}
    assert farm.after(5) == {"1": 50}
    farm.find("1")
    assert farm.after(1) == {"1": None}
    farm.find()
    assert farm.after(1) == {"1": 10}


def test_so_does_one_out_of_maintenance_and_one_that_is_given_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Clock(monkeypatch)
    end = FARM.key, "10.0.1.2", 80
    farm.serving.maintenance[end] = Maintenance(str(FARM.key), "10.0.1.2:80", 0)
    assert farm.after(0) == {"2": None}
    del farm.serving.maintenance[end]
    assert farm.after(0) == {"2": 5}
    assert farm.after(0, reals=(FARM.reals[0], Real("10.0.1.2", 80, 0))) == {}
    assert farm.after(30, reals=FARM.reals) == {"2": 5}


def test_another_weight_is_worked_up_to_from_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Clock(monkeypatch)
    assert farm.after(0, reals=(*FARM.reals, Real("10.0.1.3", 80, 100))) == {"3": 10}
    assert farm.after(5, reals=(*FARM.reals, Real("10.0.1.3", 80, 10))) == {"3": 5}
    assert farm.after(0, reals=(Real("10.0.1.1", 80, 900), *farm.service.reals[1:])) == {"3": 5}
    assert farm.after(0, slow_start=5) == {}


def test_nothing_ramps_where_nobody_could_take_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Clock(monkeypatch, replace(FARM, health=Health()))
    farm.find("1", "2")
    assert farm.after(0) == {"1": None, "2": None}
    farm.find()
    assert farm.after(0) == {}
    other = Serving(State(1, False, "", Intent()), lambda: None)
    assert not other.look(Intent((FARM,))).starts


def test_nothing_ramps_without_slow_start_at_a_start_or_with_a_weight_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Clock(monkeypatch)
    assert farm.after(0) == {}
    assert farm.after(0, reals=(*FARM.reals, Real("10.0.1.3", 80, 1))) == {}
    assert farm.serving.due() == LOOK_SECONDS
    assert farm.after(0, slow_start=0, reals=(*FARM.reals, Real("10.0.1.4", 80, 9))) == {}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_without_use_for_it_refuse_it(scheduler: str) -> None:
    if scheduler not in SUDDEN:
        assert replace(FARM, scheduler=scheduler).slow_start == 10
        return
    with pytest.raises(ConfigError, match=f"slow_start '10': is nothing that scheduler {scheduler} has; choose one"):
        replace(FARM, scheduler=scheduler)
