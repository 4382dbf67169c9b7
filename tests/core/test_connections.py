"""Which connection a packet belongs to, and what a new one needs: a service, a server with a weight, a free place."""

from __future__ import annotations

import pytest

from nfqlb.testing import FORWARD, INPUT, OUTPUT, endpoint, tcp, udp
from tests.core.lab import CLIENT, DEFAULTS, REAL, VIP, Lab, Virtual, clients, served

OTHER = "10.0.0.3:8080"
TWO = Virtual(VIP, {REAL: 1, OTHER: 1})  # the walk begins with the newest: OTHER


def test_a_connection_keeps_its_server() -> None:
    lab = Lab(TWO)
    assert served(lab, [CLIENT]) == [OTHER]
    for payload in (b"", b"x", b"xyz"):
        assert lab.send(tcp(CLIENT, VIP, "PA", payload)).packet == tcp(CLIENT, OTHER, "PA", payload)
    assert lab.send(tcp(CLIENT, VIP, "S")).packet == tcp(CLIENT, OTHER, "S"), "a retransmitted SYN"
    assert lab.table.used == 1


@pytest.mark.parametrize("hook", range(4))
def test_both_directions_are_known_at_every_hook(hook: int) -> None:
    """The hook is only where the look-up begins."""
    lab = Lab(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, "S"), hook=hook).packet == tcp(CLIENT, REAL, "S")
    assert lab.send(tcp(REAL, CLIENT, "SA"), hook=hook) == ("rewrite", "returned", tcp(VIP, CLIENT, "SA"))
    assert lab.send(tcp(CLIENT, VIP, "A"), hook=hook) == ("rewrite", "forwarded", tcp(CLIENT, REAL, "A"))


def test_one_port_of_a_client_on_two_services_and_two_protocols() -> None:
    vips = ["203.0.113.1:80", "203.0.113.1:81", "203.0.113.2:80"]
    reals = ["10.0.0.2:8080", "10.0.0.2:8081", "10.0.0.2:8082"]
    lab = Lab(
        *(Virtual(vip, {real: 1}) for vip, real in zip(vips, reals, strict=True)),
        Virtual(VIP, {"10.0.0.2:8080": 1}, protocol="udp"),
    )
    for vip, real in zip(vips, reals, strict=True):
        assert lab.send(tcp(CLIENT, vip, "S")).packet == tcp(CLIENT, real, "S")
    assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, reals[0])
    for vip, real in zip(vips, reals, strict=True):
        assert lab.send(tcp(real, CLIENT, "SA"), hook=FORWARD).packet == tcp(vip, CLIENT, "SA")
    assert lab.send(udp(reals[0], CLIENT), hook=FORWARD).packet == udp(VIP, CLIENT)
    assert lab.table.used == 4


def test_one_client_port_on_forty_services_is_forty_connections() -> None:
    """The client's end alone is hashed: all forty share a bucket that has eight places."""
    pairs = [(f"203.0.113.{at}:80", f"10.0.0.{at}:8080") for at in range(1, 41)]
    lab = Lab(*(Virtual(vip, {real: 1}) for vip, real in pairs))

    def check(expected: list[tuple[str, str]]) -> None:
        for vip, real in pairs:
            known = (vip, real) in expected
            assert lab.send(tcp(CLIENT, vip, "A")).packet == (tcp(CLIENT, real, "A") if known else None)
            back = lab.send(tcp(real, CLIENT, "A"), hook=FORWARD)
            assert back.packet == (tcp(vip, CLIENT, "A") if known else None)

    for vip, _ in pairs:
        lab.open(CLIENT, vip)
    check(pairs)
    for start in (1, 0):  # of the rest, every third ends: in places of the bucket and in its chain
        for vip, _ in pairs[start::3]:
            lab.send(tcp(CLIENT, vip, "R"))
    rest = pairs[2::3]
    for _ in range(11):
        lab.clock.advance(1)
        for vip, _ in rest:
            lab.send(tcp(CLIENT, vip, "A"))
    assert lab.table.used == len(rest)
    check(rest)
    for vip, _ in pairs:
        lab.send(tcp(CLIENT, vip, "S"))
    check(pairs)


@pytest.mark.slow
def test_every_flow_of_a_full_table_is_found() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1, OTHER: 1}), capacity=4096)
    flows = {end: (OTHER, REAL)[at % 2] for at, end in enumerate(clients(4096, first=1000))}
    for end, real in flows.items():
        assert lab.send(tcp(end, VIP)).packet == tcp(end, real)
    for end, real in flows.items():
        assert lab.send(tcp(real, end, "SA"), hook=FORWARD).packet == tcp(VIP, end, "SA")
    assert lab.table.used == len(lab.connections()) == 4096


@pytest.mark.parametrize("segment", ["A", "FA", "R", "RA", "PA", "SR", "PU"])
def test_only_a_syn_opens(segment: str) -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, segment)) == ("accept", "no_connection", None)
    assert lab.table.used == 0


@pytest.mark.parametrize("segment", ["S", "SA", "SF", "SPU"])
def test_every_syn_without_a_reset_opens(segment: str) -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, segment)) == ("rewrite", "forwarded", tcp(CLIENT, REAL, segment))


@pytest.mark.parametrize("last", ["TIME_WAIT", "CLOSE"])
def test_a_syn_on_an_ended_connection_is_scheduled_anew(last: str) -> None:
    lab = Lab(TWO)
    assert lab.open() == OTHER
    for packet, hook in ((tcp(CLIENT, VIP, "FA"), 0), (tcp(OTHER, CLIENT, "FA"), FORWARD)):
        lab.send(packet, hook=hook)
    if last == "CLOSE":
        lab.send(tcp(CLIENT, VIP, "RA"))
    assert lab.connections()[0].name == last
    assert lab.open() == REAL
    assert [row.name for row in lab.connections()] == ["ESTABLISHED"]
    assert (lab.load(REAL), lab.load(OTHER)) == ((1, 0), (0, 0))


@pytest.mark.parametrize("ending", ["none", "fin from client", "fin from server"])
def test_a_syn_on_an_open_connection_keeps_the_server(ending: str) -> None:
    lab = Lab(TWO)
    assert lab.open() == OTHER
    if ending == "fin from client":
        lab.send(tcp(CLIENT, VIP, "FA"))
    elif ending == "fin from server":
        lab.send(tcp(OTHER, CLIENT, "FA"), hook=FORWARD)
    assert lab.send(tcp(CLIENT, VIP, "S")).packet == tcp(CLIENT, OTHER, "S")


def test_a_removed_server_loses_its_tcp_connections_and_a_syn_finds_another() -> None:
    lab = Lab(TWO)
    assert lab.open() == OTHER
    lab.configure(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, "PA", b"x")) == ("drop", "server_gone", None)
    assert lab.send(tcp(CLIENT, VIP, "RA")) == ("drop", "server_gone", None)
    assert lab.send(tcp(OTHER, CLIENT, "PA"), hook=FORWARD).packet == tcp(VIP, CLIENT, "PA"), "what it still says"
    assert lab.send(tcp(CLIENT, VIP, "S")).packet == tcp(CLIENT, REAL, "S")
    assert lab.table.used == 1


def test_a_server_that_comes_back_has_its_connections_again() -> None:
    lab = Lab(TWO)
    lab.open()
    lab.configure(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, "A")).reason == "server_gone"
    lab.configure(TWO)
    assert lab.send(tcp(CLIENT, VIP, "A")).packet == tcp(CLIENT, OTHER, "A")
    assert lab.load(OTHER) == (1, 0)


def test_udp_moves_on_at_once_when_its_server_is_removed() -> None:
    two = TWO._replace(protocol="udp")
    lab = Lab(two)
    assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, OTHER)
    lab.configure(two._replace(reals={REAL: 1}))
    assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, REAL)
    assert lab.send(udp(OTHER, CLIENT), hook=FORWARD).packet == udp(VIP, CLIENT), "an answer that was under way"
    assert lab.send(udp(REAL, CLIENT), hook=FORWARD).packet == udp(VIP, CLIENT)
    lab.clock.advance(3)
    assert lab.send(udp(OTHER, CLIENT), hook=FORWARD).reason == "unrelated"
    assert (lab.load(OTHER, protocol="udp"), lab.load(REAL, protocol="udp")) == ((0, 0), (0, 1))


def test_udp_that_comes_back_to_a_server_it_left_has_one_connection_there() -> None:
    two = TWO._replace(protocol="udp")
    lab = Lab(two._replace(reals={REAL: 1}))
    for server in (REAL, OTHER, REAL):
        lab.configure(two._replace(reals={server: 1}))
        assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, server)
    lab.clock.advance(2)
    for server in (REAL, OTHER):
        assert lab.send(udp(server, CLIENT), hook=FORWARD).packet == udp(VIP, CLIENT)
    lab.clock.advance(1)
    assert lab.workers[0].expire(lab.clock()) == 2
    assert lab.state() == ("NONE", 299)


def test_a_removed_service_takes_no_new_connections() -> None:
    lab = Lab(TWO, Virtual("203.0.113.9:80", {REAL: 1}))
    lab.open()
    lab.configure(Virtual("203.0.113.9:80", {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, "A")).reason == "server_gone"
    assert lab.send(tcp(CLIENT, VIP, "S")) == ("accept", "no_service", None)
    assert lab.table.used == 0


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc"])
def test_without_a_weight_nobody_serves(scheduler: str) -> None:
    lab = Lab(Virtual(VIP, {REAL: 1, OTHER: 1}, scheduler))
    lab.open()
    for reals in ({REAL: 0, OTHER: 0}, {}):
        lab.configure(Virtual(VIP, reals, scheduler))
        assert lab.send(tcp("192.0.2.11:40000", VIP, "S")) == ("drop", "no_server", None)
    lab.configure(Virtual(VIP, {REAL: 0, OTHER: 0}, scheduler))
    assert lab.send(tcp(CLIENT, VIP, "A")).reason == "forwarded", "a quiesced server keeps its connections"
    lab.configure(Virtual(VIP, {REAL: 7, OTHER: 0}, scheduler))
    assert served(lab, ["192.0.2.11:40000", "192.0.2.11:40001"]) == [REAL, REAL]


def test_a_full_table_drops_what_is_new_and_recovers() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, protocol="udp"), capacity=64)
    ends = list(clients(80))
    assert [lab.send(udp(end, VIP)).reason for end in ends] == ["forwarded"] * 64 + ["table_full"] * 16
    lab.clock.advance(200)
    assert [lab.send(udp(end, VIP)).reason for end in ends[:40]] == ["forwarded"] * 40
    lab.clock.advance(100)  # the other 24 are over
    assert [lab.send(udp(end, VIP)).reason for end in ends[64:]] == ["forwarded"] * 16
    assert (lab.table.used, lab.load(REAL, protocol="udp")) == (56, (0, 56))
    lab.clock.advance(300)
    for _ in range(3):
        assert [lab.send(udp(end, VIP)).reason for end in ends] == ["forwarded"] * 64 + ["table_full"] * 16
        lab.clock.advance(301)
    assert lab.reasons() == {"forwarded": 64 + 40 + 16 + 3 * 64, "table_full": 4 * 16}


def test_a_full_table_takes_a_syn_that_reuses_ports_at_the_second_try() -> None:
    """An entry that ended is free when the batch that saw it is over."""
    lab = Lab(Virtual(VIP, {REAL: 1}), capacity=64)
    ends = list(clients(64))
    served(lab, ends)
    lab.send(tcp(ends[5], VIP, "R"))
    assert [lab.send(tcp(ends[5], VIP, "S")).reason for _ in range(2)] == ["table_full", "forwarded"]


def test_slots_are_stable_and_one_for_each_server_of_a_service() -> None:
    table = Lab().table
    vip, real = endpoint(VIP), endpoint(REAL)
    first = table.slot(6, *vip, *real)
    keys = [
        (17, *vip, *real),
        (6, vip.address, 81, *real),
        (6, *vip, real.address, 81),
        (6, *endpoint("1.1.1.1:80"), *real),
    ]
    slots = [table.slot(*key) for key in keys]
    assert len({first, *slots}) == 5
    assert 0 not in slots
    assert [table.slot(*key) for key in keys] == slots
    assert table.slot(6, *vip, *real) == first


def test_slots_run_out_with_a_sentence() -> None:
    lab = Lab(capacity=64)
    vip, address = endpoint(VIP), endpoint(REAL).address
    for port in range(1, 1024):
        lab.table.slot(6, *vip, address, port)
    with pytest.raises(ValueError, match="real servers"):
        lab.table.slot(6, *vip, address, 1024)
    assert lab.table.slot(6, *vip, address, 7) == 7


def outlast(lab: Lab) -> None:
    """Everything but templates ends."""
    lab.workers[0].expire(lab.clock.advance(DEFAULTS.tcp + 1))


def test_a_slot_is_another_servers_when_its_own_left_and_no_connection_is_there() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    lab.open()
    slot = lab.slots["tcp", VIP, REAL]
    lab.configure()
    assert not lab.datapath.release(slot)
    outlast(lab)
    assert lab.drain().slots[slot][0] == 1
    assert lab.datapath.release(slot)
    assert slot not in lab.drain().slots
    lab.configure(Virtual("1.1.1.1:80", {"10.0.9.9:80": 1}))
    assert lab.slots["tcp", "1.1.1.1:80", "10.0.9.9:80"] == slot
    assert lab.drain().slots[slot] == (0,) * 9
    lab.open(vip="1.1.1.1:80")
    assert lab.load("10.0.9.9:80", "1.1.1.1:80") == (1, 0)


def test_a_template_keeps_a_slot() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, persistence=2 * DEFAULTS.tcp))
    lab.open()
    lab.configure()
    outlast(lab)
    assert lab.load(REAL) == (0, 0)
    assert not lab.datapath.release(lab.slots["tcp", VIP, REAL])
    outlast(lab)
    assert lab.datapath.release(lab.slots["tcp", VIP, REAL])


def test_more_services_come_and_go_than_the_table_has_places_for() -> None:
    """And a limit of each counts its own connections."""
    lab = Lab(capacity=64)
    for at in range(3000):
        vip, real = f"203.0.{at >> 8}.{at & 255}:80", f"10.1.{at >> 8}.{at & 255}:80"
        lab.configure(Virtual(vip, {real: 1}, connections_max=1))
        assert [lab.send(tcp(client, vip, "S")).reason for client in clients(2)] == ["forwarded", "limited"]
        lab.configure()
        outlast(lab)
        assert lab.datapath.release(lab.slots["tcp", vip, real])


def test_the_directors_own_client() -> None:
    """It sends at OUTPUT, and its replies arrive at INPUT."""
    lab = Lab(Virtual(VIP, {REAL: 1}))
    assert lab.send(tcp(CLIENT, VIP, "S"), hook=OUTPUT).packet == tcp(CLIENT, REAL, "S")
    assert lab.send(tcp(REAL, CLIENT, "SA"), hook=INPUT).packet == tcp(VIP, CLIENT, "SA")


def test_counters_of_packets_bytes_and_connections() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    lab.open()
    lab.send(tcp(CLIENT, VIP, "PA", bytes(100), trailer=b"not counted"))
    lab.send(tcp(REAL, CLIENT, "PA", bytes(1000)), hook=FORWARD)
    drained = lab.drain()
    assert drained.slots == {lab.slots["tcp", VIP, REAL]: (1, 3, 2, 40 + 40 + 140, 40 + 1040, 1, 0, 0, 0)}
    assert lab.reasons() == {"forwarded": 3, "returned": 2}
    assert (drained.packets, drained.batches) == (5, 5)
    assert lab.drain() == drained, "reading takes nothing away"


def test_the_list_of_connections() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}), Virtual("[2001:db8::1]:53", {"[fd00::2]:5353": 1}, protocol="udp"))
    lab.open()
    lab.send(udp("[2001:db8::10]:4000", "[2001:db8::1]:53"))
    lab.clock.advance(10.05)
    rows = sorted(lab.connections())
    assert rows[0] == (6, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 1, 890, False)
    assert rows[1][:7] == (
        17,
        *endpoint("[2001:db8::10]:4000"),
        *endpoint("[2001:db8::1]:53"),
        *endpoint("[fd00::2]:5353"),
    )
    assert len(lab.table.connections(lab.clock(), 1)) == 1
