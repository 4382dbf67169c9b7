"""p2c and ewma: what is measured, at which packet, and who gets the next connection for it."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import CLIENT, VIP, Lab, Virtual, clients, served

FIRST, SECOND, THIRD = "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"
DIRECT = "203.0.113.1:80"


def latency(lab: Lab, real: str, vip: str = VIP, protocol: str = "tcp") -> float:
    """Seconds."""
    slot = lab.slots[protocol, vip, real]
    return lab.datapath.counted([slot])[slot][-1] / 1e6


def ask(lab: Lab, client: str, seconds: float) -> str:
    """A connection with one exchange, for which its server takes so long; who it was."""
    real = lab.open(client)
    lab.send(tcp(client, VIP, "PA", b"GET /"))
    lab.clock.advance(seconds)
    lab.send(tcp(real, client, "PA", b"200"), hook=FORWARD)
    return real


def close(lab: Lab, client: str, real: str) -> None:
    lab.send(tcp(client, VIP, "FA"))
    lab.send(tcp(real, client, "FA"), hook=FORWARD)


def test_nat_measures_from_the_first_ack_to_the_first_data_of_the_server() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma"))
    lab.send(tcp(CLIENT, VIP, "S"))
    lab.send(tcp(FIRST, CLIENT, "SA"), hook=FORWARD)
    lab.clock.advance(0.030)  # to the client and back
    lab.send(tcp(CLIENT, VIP, "A"))
    lab.send(tcp(CLIENT, VIP, "PA", b"GET /"))
    lab.send(tcp(FIRST, CLIENT, "A"), hook=FORWARD)
    assert latency(lab, FIRST) == 0
    lab.clock.advance(0.250)
    lab.send(tcp(FIRST, CLIENT, "PA", b"200"), hook=FORWARD)
    assert latency(lab, FIRST) == pytest.approx(0.250)
    lab.clock.advance(0.900)
    lab.send(tcp(FIRST, CLIENT, "PA", b"more"), hook=FORWARD)
    assert latency(lab, FIRST) == pytest.approx(0.250), "only the first exchange counts"


def test_a_server_that_closes_without_a_word_has_replied() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma"))
    lab.open()
    lab.clock.advance(0.4)
    lab.send(tcp(FIRST, CLIENT, "FA"), hook=FORWARD)
    assert latency(lab, FIRST) == pytest.approx(0.4)


@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_reset_measures_nothing(sender: str) -> None:
    """Who refuses at once would look fast."""
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma"))
    lab.open()
    if sender == "client":
        lab.send(tcp(CLIENT, VIP, "R"))
    else:
        lab.send(tcp(FIRST, CLIENT, "RA"), hook=FORWARD)
    lab.send(tcp(FIRST, CLIENT, "PA", b"200"), hook=FORWARD)
    assert latency(lab, FIRST) == 0


def test_a_late_syn_ack_counts_at_once() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma"))
    lab.send(tcp(CLIENT, VIP, "S"))
    lab.clock.advance(0.7)
    lab.send(tcp(FIRST, CLIENT, "SA"), hook=FORWARD)
    assert latency(lab, FIRST) == pytest.approx(0.7)


def test_direct_routing_infers_it_from_what_the_client_acknowledges() -> None:
    lab = Lab(Virtual(DIRECT, {"10.0.0.2:80": 1}, "ewma", mode="dr"))
    lab.send(tcp(CLIENT, DIRECT, "S"))
    lab.clock.advance(0.030)  # what the handshake takes, there and back
    lab.send(tcp(CLIENT, DIRECT, "A", ack=501))
    lab.send(tcp(CLIENT, DIRECT, "PA", b"GET /", ack=501))
    lab.clock.advance(0.280)
    assert latency(lab, "10.0.0.2:80", DIRECT) == 0
    lab.send(tcp(CLIENT, DIRECT, "A", ack=1501))
    assert latency(lab, "10.0.0.2:80", DIRECT) == pytest.approx(0.250)


def test_datagrams_are_measured_by_their_first_answer() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma", "udp"))
    lab.send(udp(CLIENT, VIP, b"?"))
    lab.clock.advance(0.05)
    lab.send(udp(FIRST, CLIENT, b"!"), hook=FORWARD)
    lab.clock.advance(0.50)
    lab.send(udp(FIRST, CLIENT, b"!"), hook=FORWARD)
    assert latency(lab, FIRST, protocol="udp") == pytest.approx(0.05)


def test_other_schedulers_measure_nothing() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "wlc"))
    ask(lab, CLIENT, 0.2)
    assert latency(lab, FIRST) == 0


def test_an_estimate_rises_fast_and_falls_slowly_and_fades() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1}, "ewma"))
    ends = clients(10)
    seen = []
    for seconds in (0.100, 0.200, 0.070):
        ask(lab, next(ends), seconds)
        seen.append(latency(lab, FIRST))
    assert seen == pytest.approx([0.100, 0.150, 0.140])
    lab.clock.advance(3.1)
    ask(lab, next(ends), 0.070)
    assert latency(lab, FIRST) == pytest.approx(0.070), "it had halved meanwhile"


def test_who_is_slower_is_not_chosen_while_it_has_nothing_to_do() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1, SECOND: 1}, "ewma"))
    ends = clients(60)
    pace = {FIRST: 0.001, SECOND: 0.100}
    for _ in range(2):  # one each: connections alone decide where nothing is known
        real = lab.open(end := next(ends))
        lab.send(tcp(end, VIP, "PA", b"GET /"))
        lab.clock.advance(pace[real])
        lab.send(tcp(real, end, "PA", b"200"), hook=FORWARD)
    assert [latency(lab, real) for real in pace] == pytest.approx([*pace.values()])
    assert Counter(served(lab, [next(ends) for _ in range(40)])) == {FIRST: 40}


def test_who_was_slow_is_tried_again_as_one_among_others() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1, SECOND: 1}, "ewma"))
    ends = clients(100)
    opened = [(end := next(ends), lab.open(end)) for _ in range(2)]
    for (client, real), pace in zip(opened, (0.001, 0.015), strict=True):  # the second answers 16 ms after the ACK
        lab.clock.advance(pace)
        lab.send(tcp(real, client, "PA", b"200"), hook=FORWARD)
        close(lab, client, real)
    fast, slow = (real for _, real in opened)
    for _ in range(40):  # 20 s: the slow one's estimate fades, the other's does not
        lab.clock.advance(0.5)
        end = next(ends)
        close(lab, end, ask(lab, end, 0.001))
    assert 0.0005 <= latency(lab, fast) <= 0.001, "half of it at least, where it was not asked for a while"
    assert latency(lab, slow) < 0.016, "it was asked, and was fast"
    assert Counter(served(lab, [next(ends) for _ in range(40)]))[slow] > 10


def exchanges(lab: Lab, seconds: float, rate: float, pace: dict[str, float]) -> Iterator[tuple[float, str]]:
    """Requests at random times, each on a connection of its own that ends with its answer: when, and who."""
    chance, ends, number = random.Random(7), clients(40000, 1), 0
    begin, now = lab.clock() / 1e9, 0.0
    heap = [(0.0, 0, "", "")]
    while heap and now < seconds:
        now, _, client, real = heapq.heappop(heap)
        lab.clock.now = round((begin + now) * 1e9)
        number += 1
        if client:
            lab.send(tcp(real, client, "PA", b"200"), hook=FORWARD)
            close(lab, client, real)
            continue
        client = next(ends)
        real = lab.open(client)
        lab.send(tcp(client, VIP, "PA", b"GET /"))
        yield now, real
        heapq.heappush(heap, (now + pace[real], number, client, real))
        heapq.heappush(heap, (now + chance.expovariate(rate), -number, "", ""))


def test_one_of_ten_that_is_ten_times_slower_gets_next_to_nothing() -> None:
    reals = {f"10.0.0.{host}:8080": 1 for host in range(2, 12)}
    lab = Lab(Virtual(VIP, reals, "ewma"), capacity=1 << 14)
    slow = "10.0.0.7:8080"
    pace = {real: 0.2 if real == slow else 0.02 for real in reals}
    found = Counter(real for now, real in exchanges(lab, 15, 200, pace) if now > 5)
    assert found[slow] <= 0.02 * found.total()
    healthy = [found[real] for real in reals if real != slow]
    assert max(healthy) < 2 * min(healthy)


# --- two choices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["p2c", "ewma"])
def test_of_two_servers_both_are_looked_at(scheduler: str) -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1, SECOND: 1}, scheduler))
    assert Counter(served(lab, list(clients(40)))) == {FIRST: 20, SECOND: 20}


@pytest.mark.parametrize("scheduler", ["p2c", "ewma"])
def test_weights_are_shares(scheduler: str) -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1, SECOND: 3, THIRD: 0}, scheduler))
    assert Counter(served(lab, list(clients(40)))) == {FIRST: 10, SECOND: 30}


@pytest.mark.parametrize("scheduler", ["p2c", "ewma"])
def test_all_are_looked_at_where_neither_takes_connections(scheduler: str) -> None:
    reals = {f"10.0.0.{host}:80": (100, 1, 1) for host in range(2, 8)}
    lab = Lab(Virtual(VIP, {**reals, THIRD: 1}, scheduler))
    assert Counter(served(lab, list(clients(30)))) == {**dict.fromkeys(reals, 1), THIRD: 24}
    assert Lab(Virtual(VIP, {FIRST: 0}, scheduler)).send(tcp(CLIENT, VIP, "S")).reason == "no_server"


def test_connections_are_even_among_many() -> None:
    reals = {f"10.0.{host >> 8}.{host & 255}:80": 1 for host in range(1, 101)}
    lab = Lab(Virtual(VIP, reals, "p2c"), capacity=1 << 12)
    found = Counter(served(lab, list(clients(1000))))
    assert len(found) == 100
    assert max(found.values()) <= 20, "one draw would leave somebody with more"


def test_datagrams_are_under_way_though_none_is_active() -> None:
    lab = Lab(Virtual(VIP, {FIRST: 1, SECOND: 1}, "p2c", "udp"))
    for client in clients(20):
        assert lab.send(udp(client, VIP, b"?")).reason == "forwarded"
    assert [lab.load(real, protocol="udp") for real in (FIRST, SECOND)] == [(0, 10), (0, 10)]


@pytest.mark.parametrize("weights", [(1, 2**31 - 1, 1, 3), (5,), (0, 0, 7, 0, 1), tuple(range(60))])
def test_each_server_is_drawn_as_often_as_its_weight_says(weights: tuple[int, ...]) -> None:
    """Of the two that are drawn the one is taken that is behind its share, so shares are met closely."""
    reals = {f"10.0.1.{at + 1}:80": weight for at, weight in enumerate(weights)}
    lab = Lab(Virtual(VIP, reals, "p2c"), capacity=1 << 12)
    found = Counter(served(lab, list(clients(400))))
    assert set(found) <= {real for real, weight in reals.items() if weight}
    total = sum(weights)
    for real, weight in reals.items():
        assert abs(found[real] - 400 * weight / total) <= 12, (real, weight)


@pytest.mark.parametrize("scheduler", ["p2c", "ewma"])
@pytest.mark.parametrize("mark", [0, 7])
def test_all_datagrams_flows_are_under_way_by_mark_too(scheduler: str, mark: int) -> None:
    """Blind draws would leave 50 or so between the ends."""
    reals = {f"10.0.0.{at}:{0 if mark else 80}": 1 for at in range(1, 11)}
    service = Virtual("0.0.0.0:0" if mark else VIP, reals, scheduler, "udp", mark=mark)
    lab = Lab(service, capacity=4096)
    chosen = Counter()
    for end in clients(2000):
        packet = lab.send(udp(end, VIP), mark=mark).packet
        assert packet is not None
        chosen[packet[19]] += 1
    assert len(chosen) == 10
    assert max(chosen.values()) - min(chosen.values()) < 15
