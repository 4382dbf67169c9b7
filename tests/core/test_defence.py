"""What a table does when it runs out of places, and limits of connections."""

from __future__ import annotations

from collections import Counter

import pytest

from nfqlb._core.tracking import SECURED, STATE_NAMES
from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import CLIENT, KIND, REAL, VIP, Lab, Policy, Virtual, clients

WEB = Virtual(VIP, {REAL: 1})
DNS = Virtual(VIP, {REAL: 1}, protocol="udp")
SHORT = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"]


def policy(**options: int) -> Policy:
    return KIND._replace(**options)  # type: ignore[arg-type]


def defend(lab: Lab, seconds: int) -> int:
    """So many rounds of a second; how many connections were ended. The clock stands still."""
    return sum(lab.datapath.defend(lab.clock()) for _ in range(seconds))


def states(lab: Lab) -> Counter[str]:
    return Counter(row.name for row in lab.connections() if not row.template)


# --- drop_packet


def test_one_first_packet_of_so_many_is_dropped() -> None:
    """The oracle of ipvs: in mode 3, at rate 10, those that have the numbers 1, 11, 21, ... 91 of 100."""
    lab = Lab(WEB, policy=policy(drop_packet=3, am_droprate=10))
    defend(lab, 1)
    dropped = [at for at, end in enumerate(clients(100), 1) if lab.send(tcp(end, VIP, "S")).reason == "drop_packet"]
    assert dropped == [*range(1, 100, 10)]
    assert lab.reasons()["drop_packet"] == 10


def test_established_connections_lose_no_packet_by_it() -> None:
    lab = Lab(WEB)
    lab.open()
    lab.configure(WEB, policy=policy(drop_packet=3, am_droprate=1))
    defend(lab, 1)
    assert [lab.send(tcp(CLIENT, VIP, "PA")).reason for _ in range(5)] == ["forwarded"] * 5
    assert lab.send(tcp("192.0.2.11:1", VIP, "S")).reason == "drop_packet"


def test_while_places_are_few_more_are_dropped_the_fewer_they_are() -> None:
    """(amemthresh / (amemthresh - what is free))"""
    lab = Lab(WEB, capacity=100, policy=policy(drop_packet=1, amemthresh=50))
    ends = clients(200)
    for free, rate in ((50, 0), (49, 50), (40, 5), (30, 2), (20, 1)):
        lab.configure(WEB, policy=policy(amemthresh=50))
        defend(lab, 1)
        while 100 - lab.table.used > free:
            lab.send(tcp(next(ends), VIP, "S"))
        lab.configure(WEB, policy=policy(drop_packet=2, amemthresh=50))
        defend(lab, 1)
        assert lab.datapath.defences["drop_packet"] == rate, free


# --- drop_entry


@pytest.mark.parametrize(
    ("mode", "full", "up"), [(0, True, 0), (1, False, 0), (1, True, 1), (2, True, 1), (3, False, 1)]
)
def test_what_never_came_about_is_ended_while_places_are_few_or_always(mode: int, full: bool, up: int) -> None:
    lab = Lab(WEB, capacity=1000, policy=policy(drop_entry=mode))
    for end in clients(990 if full else 100):
        lab.send(tcp(end, VIP, "S"))
    assert defend(lab, 1) > 0 if up else defend(lab, 1) == 0
    assert lab.datapath.defences["drop_entry"] == up
    assert lab.datapath.defences["evicted"] == (990 if full else 100) - lab.table.used


def test_it_goes_on_until_there_are_places_enough_and_leaves_what_is_established() -> None:
    lab = Lab(WEB, capacity=1000, policy=policy(drop_entry=1, amemthresh=300))
    established = list(clients(100))
    for end in established:
        lab.open(end)
    for end in clients(850, 50000):
        lab.send(tcp(end, VIP, "S"))
    defend(lab, 500)
    assert states(lab)["ESTABLISHED"] == 100
    assert lab.table.used <= 700
    assert lab.datapath.defences == {
        "drop_entry": 0,
        "drop_packet": 0,
        "secure_tcp": 0,
        "evicted": 950 - lab.table.used,
    }
    assert lab.load(REAL) == (lab.table.used, 0)
    assert {lab.send(tcp(end, VIP, "PA")).reason for end in established} == {"forwarded"}


@pytest.mark.parametrize("segments", [("FA",), ("R",), ("A",)])
def test_states_behind_the_handshake_stay(segments: tuple[str, ...]) -> None:
    lab = Lab(WEB, policy=policy(drop_entry=3))
    for end in clients(50):
        lab.open(end)
        for segment in segments:
            lab.send(tcp(end, VIP, segment))
    lab.clock.advance(5)
    assert defend(lab, 100) == 0
    assert lab.table.used == 50


@pytest.mark.parametrize(("packets", "goes"), [(1, True), (2, True), (8, True), (9, False)])
def test_of_what_is_idle_for_a_minute_some_go_by_chance(packets: int, goes: bool) -> None:
    """Of those with n packets each n-th is ended, with more than 8 none (todrop_entry)."""
    lab = Lab(DNS, policy=policy(drop_entry=3))
    for end in clients(64):
        for _ in range(packets):
            lab.send(udp(end, VIP))
    lab.clock.advance(59)
    assert defend(lab, 50) == 0
    lab.clock.advance(2)
    gone = defend(lab, 1)
    assert lab.table.used == 64 - gone
    assert gone == (64 // packets if goes else 0)


def test_a_template_goes_with_the_last_connection_that_never_came_about() -> None:
    sticky = WEB._replace(persistence=300)
    lab = Lab(sticky, policy=policy(drop_entry=3))
    lab.open("192.0.2.9:1000")
    for host in range(10, 20):
        lab.send(tcp(f"192.0.2.{host}:1000", VIP, "S"))
    assert defend(lab, 1) == 20
    assert sorted(row.template for row in lab.connections()) == [False, True]
    assert lab.drain().slots[lab.slots["tcp", VIP, REAL]][5:] == (1, 0, 1, 0)


# --- secure_tcp


def test_with_secure_tcp_a_client_alone_establishes_nothing() -> None:
    """The oracle of ipvs: SYN_RECV, with the server's SYN/ACK SYNACK, its next segment ESTABLISHED."""
    lab = Lab(WEB, policy=policy(secure_tcp=3))
    assert lab.datapath.defences["secure_tcp"] == 0
    defend(lab, 1)
    life = [("c", "S", "SYN_RECV"), ("c", "A", "SYN_RECV"), ("s", "SA", "SYNACK"), ("c", "A", "SYNACK")]
    for sender, segment, state in [*life, ("s", "A", "ESTABLISHED"), ("c", "PA", "ESTABLISHED")]:
        lab.send(
            tcp(CLIENT, VIP, segment) if sender == "c" else tcp(REAL, CLIENT, segment),
            hook=0 if sender == "c" else FORWARD,
        )
        assert states(lab) == {state: 1}
    lab.configure(WEB, policy=policy())
    defend(lab, 1)
    lab.open("192.0.2.11:1")
    assert states(lab) == {"ESTABLISHED": 2}


def test_with_secure_tcp_a_syn_alone_is_not_trusted_where_answers_do_not_pass() -> None:
    lab = Lab(WEB._replace(reals={"10.0.0.2:80": 1}, mode="dr"), policy=policy(secure_tcp=3))
    defend(lab, 1)
    for segment, state in (("S", "SYNACK"), ("A", "ESTABLISHED"), ("FA", "FIN_WAIT")):
        lab.send(tcp(CLIENT, VIP, segment))
        assert states(lab) == {state: 1}


def test_the_secured_table_is_the_kernels() -> None:
    """net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_states_dos: where it is another one than tcp_states."""
    from nfqlb._core.tracking import TRANSITIONS

    found = {
        (way, row, SHORT[column]): cell
        for way, rows in SECURED.items()
        for row, cells in rows.items()
        for column, cell in enumerate(cells.split())
        if cell != TRANSITIONS[way][row].split()[column]
    }
    inside = {("from client", "syn", "SA"): "SA", ("from client", "fin", "SA"): "SA"}
    inside |= {
        ("from client", "ack", "SR"): "SR",
        ("from client", "ack", "SA"): "SA",
        ("from client", "rst", "SA"): "CL",
    }
    outside = {("from server", "syn", "SR"): "SA", ("from server", "syn", "SA"): "SA"}
    alone = {("client only", "syn", state): "SA" for state in ("NO", "FW", "TW", "CL", "CW", "LA", "LI", "SA")}
    assert found == inside | outside | alone
    assert len(STATE_NAMES) == len(SHORT)


@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_a_template_of_datagrams_each_on_its_own_stays_once_it_was_used_again(mode: str) -> None:
    """It has no connections that could be answered. (The kernel holds such templates against their packets, and they
    have none: todrop_entry.) Those that were made by one datagram only are as many as somebody likes to make.
    """
    service = Virtual(VIP, {REAL: 1}, protocol="udp", mode=mode, persistence=300, one_packet=True)
    lab = Lab(service, policy=policy(drop_entry=3))
    for at in range(1, 41):
        for port in range(1, 1 + at % 2 + 1):
            lab.send(udp(f"192.0.2.{at}:{port}", VIP))
    assert lab.table.used == 40
    assert defend(lab, 100) == 20
    assert {row.client[15] % 2 for row in lab.connections()} == {1}


# --- limits


def test_a_service_has_no_more_connections_than_it_may() -> None:
    other = Virtual("203.0.113.2:80", {REAL: 1, "10.0.0.3:80": 1})
    limited = Virtual(VIP, {REAL: 1, "10.0.0.3:80": 1}, connections_max=5)
    lab = Lab(limited, other)
    ends = list(clients(8))
    assert [lab.send(tcp(end, VIP, "S")).reason for end in ends] == ["forwarded"] * 5 + ["limited"] * 3
    assert {lab.send(tcp(end, other.vip, "S")).reason for end in clients(8, 50000)} == {"forwarded"}
    assert lab.send(tcp(ends[0], VIP, "A")).reason == "forwarded"
    lab.send(tcp(ends[0], VIP, "R"))
    lab.clock.advance(10)
    assert lab.send(tcp(ends[7], VIP, "S")).reason == "forwarded", "one has ended"
    lab.configure(limited._replace(connections_max=0), other)
    assert lab.send(tcp(ends[6], VIP, "S")).reason == "forwarded"


def test_all_services_together_have_no_more_than_they_may() -> None:
    lab = Lab(WEB, DNS, policy=policy(connections_max=3))
    reasons = [lab.send(udp(end, VIP)).reason for end in clients(2)]
    reasons += [lab.send(tcp(end, VIP, "S")).reason for end in clients(3)]
    assert reasons == ["forwarded"] * 3 + ["limited"] * 2
    assert lab.reasons()["limited"] == 2
