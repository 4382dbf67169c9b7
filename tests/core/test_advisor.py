"""Schedulers in Python, and shadows, as the data path asks them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nfqlb._core.advisor import Advisor, Flow, Server
from nfqlb.testing import tcp
from tests.core.lab import CLIENT, VIP, Lab, Virtual, clients, served

FIRST, SECOND, THIRD = "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"
REALS: dict[str, int | tuple[int, int, int]] = {FIRST: 1, SECOND: 1, THIRD: 1}
SECONDS = 30  # that a test waits for another thread
MILLISECOND = 1_000_000
PAGE = Path(__file__).parents[2] / "docs" / "own-schedulers.md"


def advisor(pick: Callable[[Flow, Sequence[Server]], Any], budget: int = 1000 * MILLISECOND) -> Advisor:
    return Advisor("test.py", pick, budget)


def lab(advisor: Advisor, reals: Any = REALS, **more: Any) -> Lab:
    return Lab(Virtual(VIP, reals, advisor=advisor, **more))


def last(flow: Flow, servers: Sequence[Server]) -> Server:
    return servers[-1]


def test_a_function_chooses() -> None:
    asked = advisor(last)
    assert served(lab(asked), list(clients(5))) == [THIRD] * 5
    assert asked.statistics()[1:7] == (5, 0, 0, 0, 0, 0)


def test_it_sees_the_flow_and_the_servers_that_take_connections() -> None:
    seen: list[object] = []

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        seen.append((flow.protocol, flow.client, flow.client_port, flow.virtual, flow.virtual_port, flow.mark))
        seen.append([(one.address, one.port, one.weight, one.active, one.inactive) for one in servers])
        return servers[0]

    here = lab(advisor(pick), {FIRST: (3, 2, 1), SECOND: 0, THIRD: 1})
    assert served(here, [CLIENT, "192.0.2.11:40000", "192.0.2.12:40000"]) == [FIRST, FIRST, THIRD]
    assert seen[0] == ("tcp", "192.0.2.10", 40000, "203.0.113.1", 80, 0)
    assert seen[1::2] == [
        [("10.0.0.2", 8080, 3, 0, 0), ("10.0.0.4", 8080, 1, 0, 0)],
        [("10.0.0.2", 8080, 3, 1, 0), ("10.0.0.4", 8080, 1, 0, 0)],
        [("10.0.0.4", 8080, 1, 0, 0)],  # the other one has as many as it may
    ]


def test_ipv6_addresses_are_text_too() -> None:
    seen: list[str] = []

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        seen.extend([flow.client, flow.virtual, *map(repr, servers)])
        return servers[0]

    here = Lab(Virtual("[2001:db8::1]:80", {"[2001:db8::2]:80": 1}, advisor=advisor(pick)))
    here.send(tcp("[2001:db8:9::1]:4000", "[2001:db8::1]:80", "S"))
    assert seen == ["2001:db8:9::1", "2001:db8::1", "[2001:db8::2]:80"]


def test_only_the_first_packet_of_a_connection_asks() -> None:
    asked = advisor(last)
    here = lab(asked)
    here.open()
    for _ in range(20):
        assert here.send(tcp(CLIENT, VIP, "PA", b"x")).reason == "forwarded"
    assert asked.statistics().chosen == 1


def test_a_client_that_has_its_server_is_not_asked_about() -> None:
    asked = advisor(last)
    here = lab(asked, persistence=300)
    assert served(here, [f"192.0.2.10:{port}" for port in range(4000, 4005)]) == [THIRD] * 5
    assert asked.statistics().chosen == 1


def raising(flow: Flow, servers: Sequence[Server]) -> Server:
    raise LookupError("nobody")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class Odd:
    def __repr__(self) -> str:
        raise SystemExit


class Blank:
    def __repr__(self) -> str:
        return ""


def muttering(flow: Flow, servers: Sequence[Server]) -> Server:
    raise Mute


@pytest.mark.parametrize(
    ("pick", "counted", "error"),
    [
        (lambda flow, servers: None, "declined", ""),
        (raising, "failed", "LookupError: nobody, line "),
        (lambda flow, servers: "10.0.0.2", "wrong", "answered '10.0.0.2', not one of the servers"),
        (lambda flow: None, "failed", "TypeError: "),
        (muttering, "failed", "Mute, line "),
        (lambda flow, servers: Odd(), "wrong", "answered Odd, not one of the servers"),
        (lambda flow, servers: Blank(), "wrong", "answered "),
    ],
)
def test_the_scheduler_behind_it_chooses_where_it_does_not(pick: Any, counted: str, error: str) -> None:
    asked = advisor(pick)
    assert served(lab(asked), list(clients(3))) == [THIRD, SECOND, FIRST]  # rr
    about = asked.statistics()
    assert getattr(about, counted) == 3 == sum(about[1:7])
    assert about.error.startswith(error)
    assert bool(about.error) == bool(error)


def test_the_scheduler_behind_it_has_its_flags() -> None:
    asked = advisor(lambda flow, servers: None)
    ends = [f"192.0.2.10:{port}" for port in range(4000, 4040)]
    for flags, count in (((), 1), (("sh-port",), 3)):
        assert len(set(served(lab(asked, scheduler="sh", flags=flags), ends))) == count


def test_an_error_that_cannot_be_told_gives_no_connection_to_a_drained_server() -> None:
    asked = advisor(muttering)
    assert served(lab(asked, {FIRST: 1, SECOND: 1, THIRD: 0}), list(clients(4))) == [SECOND, FIRST] * 2
    assert asked.statistics().failed == 4


def test_what_comes_late_does_not_count() -> None:
    asked = advisor(last, budget=0)
    assert served(lab(asked), list(clients(3))) == [THIRD, SECOND, FIRST]
    about = asked.statistics()
    assert about.late == 3
    assert re.fullmatch(r"took \d+ microseconds", about.error)
    assert about.spent >= about.longest > 0


def test_a_server_of_another_service_is_wrong() -> None:
    kept: list[Server] = []

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        kept.extend(servers)
        return kept[0]

    asked = advisor(pick)
    here = Lab(
        Virtual(VIP, {FIRST: 1}, advisor=asked),
        Virtual("203.0.113.2:80", {SECOND: 1}, advisor=asked),
    )
    assert here.open() == FIRST
    assert here.open("192.0.2.11:4000", "203.0.113.2:80") == SECOND
    assert asked.statistics()[1:5] == (1, 0, 0, 1)


def test_after_eight_failures_in_a_row_it_is_left_alone_for_a_second() -> None:
    asked = advisor(raising)
    here = lab(asked)
    ends = clients(30)
    served(here, [next(ends) for _ in range(10)])
    assert asked.statistics()[3:7] == (8, 0, 0, 2)
    here.clock.advance(1.1)
    served(here, [next(ends)])
    assert asked.statistics()[3:7] == (9, 0, 0, 2)


def test_a_success_between_failures_keeps_it_at_work() -> None:
    turns = iter(range(100))

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        if next(turns) % 8 == 7:
            return servers[0]
        raise LookupError

    asked = advisor(pick)
    served(lab(asked), list(clients(24)))
    assert asked.statistics()[1:7] == (3, 0, 21, 0, 0, 0)


def test_another_function_takes_its_place_at_once() -> None:
    asked = advisor(raising)
    here = lab(asked)
    served(here, list(clients(9)))
    asked.use(last)
    assert served(here, list(clients(2, 50000))) == [THIRD] * 2
    assert asked.statistics()[1:8:2] == (2, 8, 0, asked.statistics().spent)
    assert asked.statistics().error == ""


def test_after_a_change_it_sees_the_new_servers() -> None:
    kept: list[Server] = []

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        kept.append(servers[0])
        return servers[-1]

    asked = advisor(pick)
    here = lab(asked)
    here.open()
    here.configure(Virtual(VIP, {FIRST: 2, SECOND: 1}, advisor=asked))
    assert here.open("192.0.2.11:4000") == SECOND
    assert kept[0] == kept[1]
    assert hash(kept[0]) == hash(kept[1])
    assert [one.weight for one in kept] == [1, 2]
    assert asked.statistics().chosen == 2


def test_a_server_that_was_kept_still_counts_after_a_change() -> None:
    kept: list[Server] = []

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        kept.append(servers[-1])
        return kept[0]

    asked = advisor(pick)
    here = lab(asked)
    assert here.open() == THIRD
    here.configure(Virtual(VIP, {SECOND: 1, THIRD: 1, FIRST: 1}, advisor=asked))
    assert here.open("192.0.2.11:4000") == THIRD
    here.configure(Virtual(VIP, {SECOND: 1, FIRST: 1}, advisor=asked))
    assert here.open("192.0.2.12:4000") in (FIRST, SECOND)
    assert asked.statistics()[1:5] == (2, 0, 0, 1)


class Endless(Exception):
    def __str__(self) -> str:
        while True:
            pass

    def __repr__(self) -> str:
        return str(self)


def looping(flow: Flow, servers: Sequence[Server]) -> Server:
    while True:
        pass


def telling(flow: Flow, servers: Sequence[Server]) -> Server:
    raise Endless


@pytest.mark.parametrize("pick", [looping, telling, lambda flow, servers: Endless()])
def test_a_function_that_does_not_come_back_is_ended(pick: Any) -> None:
    asked = advisor(pick, budget=MILLISECOND)
    here = lab(asked)
    found: list[str] = []
    worker = threading.Thread(target=lambda: found.append(here.open()))
    worker.start()
    deadline = time.monotonic() + SECONDS
    while worker.is_alive() and time.monotonic() < deadline:
        asked.interrupt()
        time.sleep(0.005)
    worker.join(1)
    assert found == [THIRD]
    assert asked.statistics().late == 1
    assert asked.interrupt() == 0


def test_nobody_waits_for_a_worker_that_waits_for_python() -> None:
    """The second worker gets the same flow's SYN meanwhile: both end with one connection."""
    inside, leave = threading.Event(), threading.Event()

    def pick(flow: Flow, servers: Sequence[Server]) -> Server:
        if inside.is_set():
            return servers[0]
        inside.set()
        assert leave.wait(SECONDS)
        return servers[-1]

    asked = advisor(pick, budget=SECONDS * 1000 * MILLISECOND)
    here = Lab(Virtual(VIP, REALS, advisor=asked), workers=2)
    syn = tcp(CLIENT, VIP, "S")
    found: list[Any] = []
    worker = threading.Thread(target=lambda: found.append(here.send(syn)))
    worker.start()
    assert inside.wait(SECONDS)
    second = here.send(syn, worker=1)
    leave.set()
    worker.join(SECONDS)
    assert second.packet == tcp(CLIENT, FIRST, "S") == found[0].packet
    assert len(here.connections()) == 1


def example() -> Callable[[Flow, Sequence[Server]], Any]:
    names: dict[str, Any] = {}
    exec(PAGE.read_text().split("```python\n")[1].split("```")[0], names)
    pick: Callable[[Flow, Sequence[Server]], Any] = names["Scheduler"]().pick
    return pick


def test_the_example_of_the_page() -> None:
    asked = advisor(example())
    here = lab(asked, {"10.0.0.11:80": 1, "10.0.0.12:80": 2, "10.0.0.13:80": 1})
    assert served(here, [f"192.0.2.9:{port}" for port in range(1000, 1010)]) == ["10.0.0.13:80"] * 10
    others = served(here, [f"198.51.100.9:{port}" for port in range(1000, 1090)])
    assert [others.count(f"10.0.0.{host}:80") for host in (11, 12, 13)] == [30, 59, 1]
    assert asked.statistics()[1:7] == (100, 0, 0, 0, 0, 0)


# --- shadows ----------------------------------------------------------------------------------------------------------


def test_a_shadow_says_where_it_differs() -> None:
    here = Lab(Virtual(VIP, {FIRST: 1, SECOND: 2, THIRD: 1}, "rr", shadow="fo"))
    served(here, list(clients(9)))
    slots = {real: here.slots["tcp", VIP, real] for real in (FIRST, SECOND, THIRD)}
    compared, differed, tallies, latest = here.services[0].compared()
    assert (compared, differed) == (9, 6)
    assert tallies == {slots[FIRST]: (3, 0), slots[SECOND]: (3, 9), slots[THIRD]: (3, 0)}
    assert [(port, live, other) for _, port, live, other in latest[:2]] == [
        (20008, slots[FIRST], slots[SECOND]),
        (20006, slots[THIRD], slots[SECOND]),
    ]
    assert len(latest) == 6


def test_a_shadow_remembers_the_last_differences_only() -> None:
    here = Lab(Virtual(VIP, REALS, "rr", shadow="fo"))
    served(here, list(clients(60)))
    compared, differed, _, latest = here.services[0].compared()
    assert (compared, differed) == (60, 40)
    assert [port for _, port, *_ in latest] == [20059, 20058, 20056, 20055, 20053, 20052, 20050, 20049]


BUILT_IN = ("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "lblc", "sh", "mh")


@pytest.mark.parametrize("live", BUILT_IN)
def test_a_shadow_changes_nothing(live: str) -> None:
    reals = {FIRST: (1, 9, 3), SECOND: (3, 12, 6), THIRD: 2}

    def sent(here: Lab) -> list[bytes | None]:
        return [here.send(tcp(client, VIP, "S")).packet for client in clients(40)]

    plain = sent(Lab(Virtual(VIP, reals, live)))
    for candidate in BUILT_IN:
        if candidate != live:
            assert sent(Lab(Virtual(VIP, reals, live, shadow=candidate))) == plain


def test_a_shadow_has_a_state_of_its_own_that_changes_carry_on() -> None:
    here = Lab(Virtual(VIP, REALS, "fo", shadow="rr"))
    served(here, list(clients(4)))
    here.configure(Virtual(VIP, {**REALS, "10.0.0.5:8080": 0}, "fo", shadow="rr"))
    served(here, list(clients(2, 50000)))
    compared, differed, tallies, _ = here.services[0].compared()
    assert (compared, differed) == (6, 4)
    assert [tallies[here.slots["tcp", VIP, real]] for real in (FIRST, SECOND, THIRD)] == [(0, 2), (0, 2), (6, 2)]


def test_another_shadow_begins_to_count_anew() -> None:
    here = Lab(Virtual(VIP, REALS, "fo", shadow="rr"))
    served(here, list(clients(4)))
    here.configure(Virtual(VIP, REALS, "fo", shadow="wrr"))
    assert here.services[0].compared()[:2] == (0, 0)


def test_a_shadow_in_python_is_counted_but_not_heard() -> None:
    asked = advisor(lambda flow, servers: servers[0])
    here = Lab(Virtual(VIP, REALS, "rr", shadow="rr", candidate=asked))
    assert served(here, list(clients(3))) == [THIRD, SECOND, FIRST]
    assert here.services[0].compared()[:2] == (3, 2)
    assert asked.statistics().chosen == 3


def test_thresholds_count_for_the_shadow_as_well() -> None:
    here = Lab(Virtual(VIP, {FIRST: (1, 1, 1), SECOND: 1}, "fo", shadow="rr"))
    here.open()  # to SECOND, the newest
    here.open("192.0.2.11:4000")
    assert here.services[0].compared()[2] == {
        here.slots["tcp", VIP, FIRST]: (0, 1),
        here.slots["tcp", VIP, SECOND]: (2, 1),
    }
