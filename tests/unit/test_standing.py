"""Who gets connections: quorum, sorry server, panic, damping, as functions of who is out and of the clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb.control.damping import Record, fell, is_over, returned
from nfqlb.control.standing import Cause, Out, Standing, judge
from nfqlb.errors import ConfigError
from nfqlb.model import ON_DOWN, Health, Intent, Quorum, Real, Service

SORRY = "10.0.9.9:80"
SORRY_END = ("10.0.9.9", 80)


def farm(*weights: int, **more: Any) -> Service:
    reals = tuple(Real(f"10.0.1.{at}", 80, weight) for at, weight in enumerate(weights, 1))
    return Service("203.0.113.10", 80, reals=reals, **{"health": Health(), **more})


def end(number: int) -> tuple[str, int]:
    return f"10.0.1.{number}", 80


def after(service: Service, out: Mapping[int, Cause], lost: bool = False) -> Standing:
    gone = {(service.key, *end(number)): Out(cause) for number, cause in out.items()}
    return judge(Intent((service,)), gone, {service.key} if lost else set())


def down(*numbers: int) -> dict[int, Cause]:
    return dict.fromkeys(numbers, Cause.DOWN)


def test_who_is_well_costs_nothing() -> None:
    assert after(farm(1, 1), {}) == Standing()


@pytest.mark.parametrize(
    ("on_down", "weight", "fate"),
    [
        ("remove", None, "remove"),
        ("keep", None, "keep"),
        ("reset", None, "reset"),
        ("move", None, "move"),
        ("quiesce", 0, None),
    ],
)
def test_who_is_down_is_left_out_and_its_connections_have_the_fate_that_was_asked_for(
    on_down: str, weight: int | None, fate: str | None
) -> None:
    service = farm(3, 1, health=Health(on_down=on_down))
    standing = after(service, down(1))
    assert standing.weights == {service.key: {end(1): weight}}
    assert standing.fates.get((service.key, *end(1))) == fate


@pytest.mark.parametrize("on_down", ON_DOWN)
def test_connections_go_on_in_maintenance_whatever_happens_when_it_is_down(on_down: str) -> None:
    service = farm(3, 1, health=Health(on_down=on_down))
    standing = after(service, {1: Cause.MAINTENANCE})
    assert standing.weights == {service.key: {end(1): None}}
    assert standing.fates == {(service.key, *end(1)): "keep"}


# --- quorum


def test_the_quorum_of_keepalived() -> None:
    """Four servers of weight 1, quorum 3, hysteresis 1: lost when less than 2 are up, back from 4 on."""
    service = farm(1, 1, 1, 1, quorum=Quorum(3, 1))
    lost, seen = False, []
    for out in (down(), down(1), down(1, 2), down(1, 2, 3), down(1, 2), down(1), down()):
        lost = service.key in after(service, out, lost).lost
        seen.append(lost)
    assert seen == [False, False, False, True, True, True, False]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(1, 12).flatmap(lambda weight: st.tuples(st.just(weight), st.integers(0, weight - 1))),
    st.lists(st.sets(st.integers(1, 6)), max_size=12),
)
def test_a_quorum_turns_at_its_two_thresholds_and_nowhere_else(
    weights: list[int], quorum: tuple[int, int], story: list[set[int]]
) -> None:
    service = farm(*weights, quorum=Quorum(*quorum, sorry=SORRY))
    weight, hysteresis = quorum
    lost = False
    for out in story:
        out = {number for number in out if number <= len(weights)}
        up = sum(one for number, one in enumerate(weights, 1) if number not in out)
        before = lost
        standing = after(service, down(*out), lost)
        lost = service.key in standing.lost
        if lost != before:
            assert (up < weight - hysteresis) if lost else (up >= weight + hysteresis)
        elif lost:
            assert up < weight + hysteresis
        else:
            assert up >= weight - hysteresis
        given_weights = standing.weights[service.key]
        assert (given_weights[SORRY_END] == 1) == lost
        takes = {end(n) for n, one in enumerate(weights, 1) if one and given_weights.get(end(n), one)}
        assert takes == (set() if lost else {end(n) for n, one in enumerate(weights, 1) if one and n not in out})


def test_the_sorry_server_gets_all_and_those_who_are_well_finish_what_they_have() -> None:
    service = farm(1, 1, quorum=Quorum(2, sorry=f"{SORRY},weight=7"), health=Health(on_down="reset"))
    standing = after(service, down(1))
    assert standing.weights == {service.key: {end(1): None, end(2): None, SORRY_END: 7}}
    assert standing.fates == {(service.key, *end(1)): "reset", (service.key, *end(2)): "keep"}


@pytest.mark.parametrize(("inhibit", "weight"), [(False, None), (True, 0)])
def test_the_sorry_server_is_no_part_of_a_service_that_is_well_unless_it_is_inhibited(
    inhibit: bool, weight: int | None
) -> None:
    service = farm(1, 1, quorum=Quorum(sorry=SORRY, sorry_inhibit=inhibit))
    assert after(service, {}).weights == {service.key: {SORRY_END: weight}}


def test_without_a_sorry_server_those_who_are_up_go_on_without_a_quorum() -> None:
    service = farm(1, 1, 1, quorum=Quorum(3))
    standing = after(service, down(1))
    assert standing.lost == {service.key}
    assert standing.weights == {service.key: {end(1): None}}


def test_every_service_loses_a_quorum_when_nobody_is_up() -> None:
    service = farm(1, 1)
    assert after(service, down(1)).lost == frozenset()
    assert after(service, down(1, 2)).lost == {service.key}


@pytest.mark.parametrize(
    ("quorum", "why"),
    [
        ({"weight": 0}, "quorum weight"),
        ({"weight": 2, "hysteresis": 2}, "quorum hysteresis"),
        ({"sorry_inhibit": True}, "quorum sorry_inhibit"),
        ({"sorry": "10.0.1.1:80"}, "is a real server of the service"),
        ({"sorry": "nobody"}, "quorum sorry 'nobody': is not an IP address"),
        ({"sorry": "[2001:db8::1]:80"}, "is not of the VIP's family"),
        ({"sorry": "10.0.9.9,weight=0"}, "takes no connections"),
    ],
)
def test_a_quorum_that_cannot_be(quorum: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("[", r"\[")):
        farm(1, quorum=Quorum(**quorum))


# --- panic


@given(st.integers(1, 40), st.integers(0, 100), st.data())
def test_below_its_panic_threshold_a_service_uses_all_but_those_in_maintenance(
    count: int, panic: int, data: st.DataObject
) -> None:
    service = farm(*[1] * count, health=Health(panic=panic))
    causes = data.draw(st.dictionaries(st.integers(1, count), st.sampled_from(Cause), max_size=count))
    standing = after(service, causes)
    could = [number for number in range(1, count + 1) if causes.get(number) is not Cause.MAINTENANCE]
    up = [number for number in could if number not in causes]
    panics = bool(panic) and bool(could) and 100 * len(up) < panic * len(could)
    assert (service.key in standing.panic) == panics
    weights = standing.weights.get(service.key, {})
    assert {number for number in could if end(number) not in weights} == set(could if panics else up)


def test_thousand_servers_of_which_three_in_ten_fail() -> None:
    failing = down(*range(1, 301))
    reals = tuple(Real(f"10.1.{at // 250}.{at % 250 + 1}", 80) for at in range(1000))
    for panic, used in ((70, 700), (71, 1000)):
        service = replace(farm(), reals=reals, health=Health(panic=panic))
        gone = {(service.key, reals[at - 1].address, 80): Out(cause) for at, cause in failing.items()}
        standing = judge(Intent((service,)), gone)
        assert 1000 - len(standing.weights.get(service.key, {})) == used


def test_a_sorry_server_steps_in_before_anybody_panics() -> None:
    service = farm(1, 1, quorum=Quorum(sorry=SORRY), health=Health(panic=90))
    assert after(service, down(1)).panic == {service.key}
    standing = after(service, down(1, 2))
    assert (standing.panic, standing.lost) == (frozenset(), {service.key})


# --- flapping


def test_each_time_again_costs_more() -> None:
    record, now, waits = Record(), 1000.0, []
    for _ in range(6):
        record = fell(record, now, 10, 35)
        waits.append(record.until - now)
        now += 50
        record = returned(record, now)
        now += 5
    assert waits == [0, 10, 20, 30, 35, 35]


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), max_size=20))
def test_it_is_forgotten_after_serving_long_enough_and_never_before(story: list[tuple[float, float]]) -> None:
    record, now, times = Record(), 1000.0, 0
    for out, back in story:
        record = fell(record, now, 10, 100)
        times += 1
        assert record.times == times
        assert record.until == now + min(100, 10 * (times - 1))
        now = max(now + out, record.until)
        record = returned(record, now)
        then = now
        now += back
        assert is_over(record, now, 100) == (now - then >= 100)
        if is_over(record, now, 100):
            times = 0


@pytest.mark.parametrize("health", [{"hold": -1.0}, {"hold": 10.0, "hold_max": 5.0}, {"panic": 101}])
def test_a_hold_that_cannot_be(health: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="health "):
        Health(**health)
