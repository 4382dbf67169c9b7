"""Several threads at once: configurations published under traffic, and many workers on one table.

Nothing here waits for a time to pass; threads meet at barriers and end when their work is done.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from nfqlb._core.datapath import Result
from nfqlb._core.script import Player
from nfqlb._core.snapshot import Snapshot
from nfqlb.testing import FORWARD, PREROUTING, fragments, icmp, tcp, udp
from tests.core.lab import KIND, REAL, VIP, Lab, Virtual, clients
from tests.sizes import PUBLISHES, ROUNDS, SYNS

pytestmark = pytest.mark.slow

OTHER = "10.0.0.3:8080"


def together(*work: Callable[[], None]) -> None:
    """Run all at once; the first error of any is raised here."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], None]) -> None:
        barrier.wait(30)
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        if thread.is_alive():
            faulthandler.dump_traceback()  # of all threads: where each of them stands
            pytest.fail("a thread does not end")
    if errors:
        raise errors[0]


def test_publishing_under_traffic_loses_and_misroutes_nothing() -> None:
    """Known flows keep their server through every change; new ones go to a server that one of the two forms has."""
    stays = {f"10.0.0.{at}:8080": 1 for at in range(2, 6)}
    lab = Lab(Virtual(VIP, stays, "wrr"), capacity=8192, workers=2)
    flows = {client: lab.open(client) for client in clients(40)}
    other = Virtual("203.0.113.2:80", {"10.0.9.9:8080": 1}, "rr")
    done = threading.Event()
    counts = Counter[str]()

    def publish() -> None:
        for number in range(PUBLISHES):
            extra = {"10.0.0.9:8080": 3} if number % 2 else {}
            weights = {real: 1 + (number + at) % 3 for at, real in enumerate(stays)}
            lab.configure(
                Virtual(VIP, weights | extra, ("wrr", "rr", "wlc")[number // 10 % 3]), *[other] * (number % 3 > 0)
            )
            if number % 50 == 0:
                gc.collect()
        done.set()

    def known_flows() -> None:
        while not done.is_set():
            for client, real in flows.items():
                assert lab.send(tcp(client, VIP, "A")).packet == tcp(client, real, "A")
                assert lab.send(tcp(real, client, "A"), hook=FORWARD).packet == tcp(VIP, client, "A")
                counts["known"] += 2

    def new_flows() -> None:
        servers = {*stays, "10.0.0.9:8080"}
        for client in clients(4000, first=1000):
            result = lab.send(tcp(client, VIP), worker=1)
            assert result.reason == "forwarded"
            assert result.packet in {tcp(client, real) for real in servers}
            counts["new"] += 1
            if done.is_set():
                break

    together(publish, known_flows, new_flows)
    assert counts["known"] > 0
    assert counts["new"] > 0
    assert set(lab.reasons()) == {"forwarded", "returned"}
    assert lab.table.used == 40 + counts["new"]


def test_every_publish_is_seen_by_the_next_packet() -> None:
    lab = Lab(capacity=4096, workers=3)
    for number in range(PUBLISHES):
        real = f"10.0.{number % 7}.2:8080"
        lab.configure(Virtual(VIP, {real: 1}))
        client = f"192.0.2.10:{1000 + number}"
        assert lab.send(tcp(client, VIP), worker=number % 3).packet == tcp(client, real)


def dealt(lab: Lab, sent: list[tuple[bytes, int]], order: list[int]) -> list[Result | None]:
    """What becomes of packets that four workers share in this order."""
    results: list[Result | None] = [None] * len(sent)

    def share(worker: int) -> None:
        for at in order[worker::4]:
            results[at] = lab.send(sent[at][0], hook=sent[at][1], worker=worker)

    together(*(partial(share, worker) for worker in range(4)))
    return results


DEALT = [
    *(Virtual(f"203.0.113.1:{port}", {f"10.0.0.2:{8000 + port}": 1}) for port in range(80, 84)),
    Virtual("203.0.113.1:53", {"10.0.0.2:5353": 1}, protocol="udp"),
]


def one_packet(chance: Random, at: int, client: str) -> tuple[bytes, int]:
    """A request, an answer, an ICMP error about one of them, or a piece of a request; the service follows from `at`."""
    virtual = DEALT[at % len(DEALT)]
    (real,) = virtual.reals
    segment, payload = chance.choice(["S", "A", "A", "PA", "FA", "RA", "SA"]), chance.randbytes(at % 5)

    def between(source: str, destination: str) -> bytes:
        if virtual.protocol == "udp":
            return udp(source, destination, payload)
        return tcp(source, destination, segment, payload)

    about_request = icmp("10.0.0.1", client.partition(":")[0], 3, 1, between(client, real)), FORWARD
    about_answer = icmp("192.0.2.1", virtual.vip.partition(":")[0], 3, 4, between(virtual.vip, client)), PREROUTING
    request, answer = (between(client, virtual.vip), PREROUTING), (between(real, client), FORWARD)
    piece = chance.choice(fragments(request[0], 8)), PREROUTING
    return chance.choice([request] * 4 + [answer] * 2 + [about_request, about_answer, piece])


@pytest.mark.parametrize("seed", range(3))
def test_packets_dealt_to_any_worker_come_out_as_from_one(seed: int) -> None:
    """Each round, every flow has one packet; they are shuffled, dealt to four workers and sent at once."""
    chance = Random(seed)
    many, one = (Lab(*DEALT, capacity=512, workers=count) for count in (4, 1))
    ends = list(clients(80))
    for _ in range(ROUNDS):
        sent = [one_packet(chance, at, client) for at, client in enumerate(ends)]
        results = dealt(many, sent, chance.sample(range(len(sent)), len(sent)))
        assert results == [one.send(packet, hook=hook) for packet, hook in sent]
        step = chance.choice([0, 1, 30, 121])
        many.clock.advance(step)
        one.clock.advance(step)
        for lab in (many, one):
            lab.workers[0].expire(lab.clock())
        assert sorted(many.connections()) == sorted(one.connections())
    assert many.reasons() == one.reasons()
    assert many.drain().slots == one.drain().slots
    assert {"forwarded", "returned", "no_connection", "error_forwarded", "error_returned", "fragment"} <= set(
        one.reasons()
    )


@pytest.mark.parametrize("scheduler", ["rr", "wrr"])
def test_four_workers_share_out_new_connections_exactly(scheduler: str) -> None:
    weights = {"10.0.0.2:8080": 3, "10.0.0.3:8080": 2, "10.0.0.4:8080": 1}
    lab = Lab(Virtual(VIP, weights, scheduler), capacity=4096, workers=4)
    ends = list(clients(1200))

    def opened(worker: int) -> None:
        for client in ends[worker::4]:
            assert lab.send(tcp(client, VIP), worker=worker).reason == "forwarded"

    together(*(partial(opened, worker) for worker in range(4)))
    shares = [600, 400, 200] if scheduler == "wrr" else [400, 400, 400]
    assert [lab.load(real) for real in weights] == [(share, 0) for share in shares]
    assert lab.table.used == 1200


def test_a_worker_alone_never_waits() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1, OTHER: 1}, "wrr"), capacity=64)
    for client in clients(200):
        lab.open(client)
        lab.clock.advance(20)
    assert lab.table.expired > 0
    assert lab.table.waited == {"bucket": 0, "free list": 0, "wheel": 0}
    assert [service.waited for service in lab.services] == [0]


def test_one_syn_at_all_workers_makes_one_connection() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1, OTHER: 1}), capacity=2 * SYNS, workers=4)
    packets = [tcp(client, VIP) for client in clients(SYNS)]
    seen: list[list[Result]] = [[], [], [], []]

    def opened(worker: int) -> None:
        process, now = lab.workers[worker].process, lab.clock()
        seen[worker].extend(process(packet, now) for packet in packets)

    together(*(partial(opened, worker) for worker in range(4)))
    assert lab.table.used == SYNS
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert sum(sum(lab.load(real)) for real in (REAL, OTHER)) == SYNS
    assert sum(slot[0] for slot in lab.drain().slots.values()) == SYNS


def test_a_crowded_table_under_four_workers_stays_whole() -> None:
    """More flows than places, endings and new beginnings everywhere: in the end all places are free again."""
    lab = Lab(Virtual(VIP, {REAL: 1, OTHER: 1}, "lc"), capacity=128, workers=4)
    ends = list(clients(200))

    def churn(worker: int) -> None:
        chance = Random(worker)
        for _ in range(ROUNDS * 40):
            client = chance.choice(ends)
            result = lab.send(tcp(client, VIP, chance.choice(["S", "S", "R", "A", "FA"])), worker=worker)
            assert result.reason in ("forwarded", "no_connection", "table_full")
            if chance.random() < 0.02:
                lab.clock.advance(chance.choice([0.1, 10, 60]))

    together(*(partial(churn, worker) for worker in range(4)))
    rows = lab.connections()
    assert len({row[:5] for row in rows}) == len(rows), "no flow has two connections"
    lab.clock.advance(0.2)  # the wheel has looked at this tick already, and something may have ended in it since
    lab.workers[0].expire(lab.clock())
    rows = lab.connections()
    assert lab.table.used == len(rows) == sum(sum(lab.load(real)) for real in (REAL, OTHER))
    lab.clock.advance(901)
    lab.workers[0].expire(lab.clock())
    assert (lab.table.used, lab.load(REAL), lab.load(OTHER)) == (0, (0, 0), (0, 0))
    reasons = [lab.send(tcp(client, VIP)).reason for client in ends]
    assert reasons == ["forwarded"] * 128 + ["table_full"] * 72


@pytest.mark.parametrize("persistence", [0, 60])
def test_defences_and_sweeps_under_four_workers_leave_the_table_whole(persistence: int) -> None:
    """Connections and templates end before their time while packets come for them and real servers come and go."""
    both = Virtual(VIP, {REAL: 1, OTHER: 1}, persistence=persistence, connections_max=150)
    alone = both._replace(reals={OTHER: 1})
    policy = KIND._replace(drop_entry=3, expire_nodest_conn=True, secure_tcp=1, drop_packet=1)
    lab = Lab(both, capacity=400, workers=4, policy=policy)
    ends = list(clients(300))
    going = threading.Event()

    def churn(worker: int) -> None:
        chance = Random(worker)
        for _ in range(ROUNDS * 40):
            segment = chance.choice(["S", "S", "A", "FA"])
            result = lab.send(tcp(chance.choice(ends), VIP, segment), worker=worker)
            assert result.reason in ("forwarded", "no_connection", "table_full", "limited", "drop_packet")
        going.set()

    def keep() -> None:
        for number in itertools.count():
            lab.datapath.defend(lab.clock())
            lab.configure(alone if number % 8 == 7 else both, policy=policy)
            lab.datapath.sweep(lab.clock())
            if going.is_set():
                break

    together(*(partial(churn, worker) for worker in range(4)), keep)
    packet = tcp(ends[0], VIP), PREROUTING, 0, 0, 0
    player = Player(lab.datapath, lab.workers, [Snapshot(lab.services)], [packet], lab.clock())
    with pytest.raises(AssertionError, match="packets were counted"):  # of its own; the table is whole
        player.audit()
    assert lab.datapath.defences["evicted"] > 0
    lab.clock.advance(2000)
    lab.workers[0].expire(lab.clock())
    lab.clock.advance(2000)
    lab.workers[0].expire(lab.clock())
    assert (lab.table.used, lab.load(REAL), lab.load(OTHER)) == (0, (0, 0), (0, 0))


def test_a_table_serves_no_more_than_its_number_of_workers() -> None:
    lab = Lab(workers=67)
    with pytest.raises(ValueError, match="67 workers"):
        lab.datapath.worker()
