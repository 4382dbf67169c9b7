"""Who is ejected for handshakes that fail, and how many may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.control.outliers import Run, follow, may_go
from nfqlb.control.standing import Cause, Out
from nfqlb.model import Health, Real, Service

LOOKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(LOOKS)
def test_what_fails_on_end_is_what_failed_since_a_look_in_which_most_were_answered(
    looks: list[tuple[int, ...]],
) -> None:
    run, total, failed = Run(), (0, 0, 0), 0
    for answered, refused, unanswered in looks:
        total = (total[0] + answered, total[1] + refused, total[2] + unanswered)
        run = follow(run, total)
        more = refused + unanswered
        if more > answered:
            failed += more - answered
        elif more or answered:
            failed = 0
        assert run == Run(total, failed)


def test_counters_that_begin_anew_are_no_news() -> None:
    assert follow(Run((100, 5, 5), 3), (0, 0, 0)) == Run((0, 0, 0), 3)


def farm(count: int) -> Service:
    reals = tuple(Real(f"10.0.1.{at}", 80) for at in range(1, count + 1))
    return Service("203.0.113.10", 80, reals=reals, health=Health(passive=3))


@given(st.integers(2, 20), st.integers(1, 100))
def test_one_may_go_and_more_up_to_the_ceiling_and_never_the_last(count: int, ceiling: int) -> None:
    service = farm(count)
    ends = sorted(service.ends)
    out: dict[tuple[str, int], Out] = {}
    for end in ends:
        if may_go(service, end, out, ceiling):
            out[end] = Out(Cause.EJECTED)
    assert len(out) == min(max(1, ceiling * count // 100), count - 1)


@pytest.mark.parametrize("cause", [Cause.DOWN, Cause.MAINTENANCE])
def test_who_is_out_already_is_not_ejected_and_the_last_one_that_serves_is_not_either(cause: Cause) -> None:
    service = farm(2)
    one, other = sorted(service.ends)
    assert not may_go(service, one, {one: Out(cause)}, 100)
    assert not may_go(service, other, {one: Out(cause)}, 100)


def test_the_ceiling_counts_those_who_are_ejected_now_and_nobody_else() -> None:
    service = farm(4)
    one, other, third, _ = sorted(service.ends)
    for cause, may in ((Cause.EJECTED, False), (Cause.DOWN, True), (Cause.MAINTENANCE, True)):
        assert may_go(service, third, {one: Out(Cause.EJECTED), other: Out(cause)}, 50) is may
    assert may_go(service, one, {}, 50), "whose ejection is over may go again"
