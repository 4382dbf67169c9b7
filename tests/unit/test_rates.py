"""Rates and counters, of real servers and of services whose servers come and go."""

from __future__ import annotations

from nfqlb.control.rates import NOTHING, Meter


def test_rates_follow_the_kernels_estimator() -> None:
    """200 connections in two seconds, as recorded on Linux 6.1; then none."""
    meter, conns, shown = Meter(), 0, []
    for _ in range(12):
        conns += 200
        meter.tick({3: (conns, 0, 0, 0, 0)})
        shown.append(meter.rates([3])[0])
    assert shown == [25, 44, 58, 68, 76, 82, 87, 90, 92, 94, 96, 97]
    for _ in range(40):
        meter.tick({3: (conns, 0, 0, 0, 0)})
    assert meter.rates([3]) == (0, 0, 0, 0, 0)


def test_bytes_have_an_average_of_their_own() -> None:
    """4000 bytes in two seconds, a quarter of the way there at each tick."""
    meter, shown = Meter(), []
    for tick in range(1, 4):
        meter.tick({0: (0, 0, 0, 4000 * tick, 0)})
        shown.append(meter.rates([0, None])[3])
    assert shown == [500, 875, 1156]


def row(conns: int) -> tuple[int, ...]:
    return conns, 2 * conns, 3 * conns, 4 * conns, 5 * conns


def test_a_service_keeps_what_a_server_counted_that_left() -> None:
    meter, rows = Meter(), {1: row(10), 2: row(1)}
    meter.tick(rows)
    before = meter.service(rows, "web", [1, 2])
    assert before[:5] == row(11)
    meter.follow("web", [1, 2], [2], {})
    assert meter.service(rows, "web", [2]) == before
    meter.release(rows, 1)
    assert meter.service({2: row(1)}, "web", [2])[:5] == row(11)
    meter.follow("web", [2], [2, 1], {})
    assert meter.service({1: row(5), 2: row(1)}, "web", [2, 1])[:5] == row(16), "the slot is another's"


def test_a_server_that_comes_back_in_time_is_counted_once() -> None:
    meter, rows = Meter(), {1: row(10), 2: row(1)}
    meter.follow("web", [1, 2], [2], {})
    meter.follow("web", [2], [1, 2], {})
    assert meter.service(rows, "web", [1, 2])[:5] == row(11)


def test_a_service_that_was_deleted_begins_from_nought() -> None:
    meter, rows = Meter(), {1: row(10), 2: row(1)}
    meter.follow("web", [1, 2], [1], {})
    meter.follow("web", [1], None, {})
    meter.follow("web", None, [1, 2], rows)
    assert meter.service(rows, "web", [1, 2]) == (*NOTHING, *NOTHING)
    assert meter.service({1: row(12), 2: row(1)}, "web", [1, 2])[:5] == row(2)


def test_zeroing_a_service_zeroes_what_left_it_too() -> None:
    meter, rows = Meter(), {1: row(10), 2: row(1), 3: row(100)}
    meter.follow("web", [1, 2, 3], [3], {})
    meter.release(rows, 1)
    meter.zero(rows, [3], ["web"])
    assert meter.service(rows, "web", [3]) == (*NOTHING, *NOTHING)
