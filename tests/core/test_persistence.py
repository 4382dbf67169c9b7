"""Persistence (a client stays with its real server), and datagrams that are each scheduled on their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nfqlb.testing import FORWARD, FakeClock, endpoint, tcp, udp
from tests.core.lab import CLIENT, VIP, Lab, Virtual

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
REALS: dict[str, int | tuple[int, int, int]] = {A: 1, B: 1, C: 1}
STICKY = Virtual(VIP, REALS, "rr", persistence=60)
SLASH24 = b"\xff" * 15 + b"\0"


def real(lab: Lab, client: str, vip: str = VIP, mark: int = 0) -> str | None:
    """The real server of a new connection, as text; None where nobody serves."""
    packet = lab.send(tcp(client, vip, "S"), mark=mark).packet
    if packet is None:
        return None
    return f"10.0.0.{packet[19]}:{int.from_bytes(packet[22:24], 'big')}"


def close(lab: Lab, client: str) -> None:
    """A reset: the connection is gone ten seconds later."""
    lab.send(tcp(client, VIP, "R"))


def templates(lab: Lab) -> list[tuple[str, int, int]]:
    """(state, client's port, seconds left) of each template, once those whose time is over were looked at."""
    lab.workers[0].expire(lab.clock())
    return [("ASSURED" if row.state else "NONE", row.cport, row.left) for row in lab.connections() if row.template]


def persistent(lab: Lab) -> dict[str, int]:
    """PersistConn by server, where there is some."""
    slots = lab.drain().slots
    return {key[-1]: slots[slot][7] for key, slot in lab.slots.items() if slots[slot][7]}


def test_all_connections_of_a_client_go_to_one_server_and_clients_are_spread() -> None:
    lab = Lab(STICKY)
    for host in range(1, 7):
        assert len({real(lab, f"192.0.2.{host}:{port}") for port in range(1000, 1005)}) == 1
    assert Counter(persistent(lab)) == {A: 2, B: 2, C: 2}
    assert sum(lab.load(server)[0] + lab.load(server)[1] for server in (A, B, C)) == 30, "templates do not count there"


def test_a_netmask_makes_a_network_one_client() -> None:
    """The oracle of ipvs: with /24, .1 and .9 get the same server."""
    lab = Lab(STICKY._replace(mask=SLASH24))
    assert real(lab, "192.0.2.1:1000") == real(lab, "192.0.2.9:1000") == C
    assert real(lab, "192.0.3.1:1000") == B
    (row,) = (row for row in lab.connections() if row.template and row.client[15] == 0 and row.client[14] == 2)
    assert row.cport == 0


def test_the_time_begins_anew_with_each_connection_and_not_with_packets() -> None:
    lab = Lab(STICKY)
    first = lab.open("192.0.2.1:1000")
    close(lab, "192.0.2.1:1000")
    lab.clock.advance(59)
    assert lab.open("192.0.2.1:1001") == first
    close(lab, "192.0.2.1:1001")
    lab.clock.advance(59)
    assert templates(lab) == [("ASSURED", 0, 1)]
    lab.clock.advance(1.1)
    assert lab.open("192.0.2.1:1002") != first


def test_a_template_outlives_its_time_while_it_has_connections() -> None:
    """It gets 60 s more at a time; afterwards the service's own timeout counts again, unlike in the kernel."""
    lab = Lab(STICKY._replace(persistence=10))
    first = lab.open("192.0.2.1:1000")
    lab.clock.advance(100)
    assert len(templates(lab)) == 1
    assert real(lab, "192.0.2.1:1001") == first
    assert templates(lab) == [("ASSURED", 0, 10)]
    close(lab, "192.0.2.1:1000")
    lab.clock.advance(70)
    assert len(templates(lab)) == 1
    lab.clock.advance(60)
    assert templates(lab) == []
    assert persistent(lab) == {}
    assert lab.table.used == 0


def test_a_template_is_assured_when_a_connection_is_established_or_answered() -> None:
    lab = Lab(STICKY, STICKY._replace(protocol="udp"))
    real(lab, CLIENT)
    assert templates(lab) == [("NONE", 0, 60)]
    lab.open("192.0.2.11:1000")
    assert sorted(templates(lab)) == [("ASSURED", 0, 60), ("NONE", 0, 60)]
    sent = lab.send(udp(CLIENT, VIP)).packet
    assert sent is not None
    assert len([row for row in templates(lab) if row[0] == "ASSURED"]) == 1
    lab.send(udp(f"10.0.0.{sent[19]}:80", CLIENT), hook=FORWARD)
    assert len([row for row in templates(lab) if row[0] == "ASSURED"]) == 2


@pytest.mark.parametrize("moves", [False, True])
def test_a_quiesced_server_keeps_its_clients_or_loses_them(moves: bool) -> None:
    """(expire_quiescent_template)"""
    service = STICKY._replace(moves_quiesced=moves)
    lab = Lab(service)
    first = real(lab, "192.0.2.1:1000")
    assert first is not None
    lab.configure(service._replace(reals=REALS | {first: 0}))
    assert (real(lab, "192.0.2.1:1001") == first) is not moves
    assert real(lab, "192.0.2.2:1001") != first
    assert lab.send(tcp("192.0.2.1:1000", VIP, "A")).packet == tcp("192.0.2.1:1000", first, "A"), "it goes on"


def test_a_removed_server_loses_its_clients() -> None:
    lab = Lab(STICKY)
    first = real(lab, "192.0.2.1:1000")
    lab.configure(STICKY._replace(reals={server: 1 for server in REALS if server != first}))
    second = real(lab, "192.0.2.1:1001")
    assert second != first
    assert real(lab, "192.0.2.1:1002") == second


def test_a_server_over_its_threshold_keeps_its_clients() -> None:
    lab = Lab(STICKY._replace(reals={A: 1, B: (1, 1, 1)}))
    assert [real(lab, f"192.0.2.1:{port}") for port in (1000, 1001, 1002)] == [B] * 3
    assert [real(lab, f"192.0.2.{host}:1000") for host in (2, 3, 4)] == [A] * 3


def test_a_persistent_connection_is_not_scheduled_anew_when_its_port_comes_again() -> None:
    lab = Lab(STICKY)
    first = lab.open(CLIENT)
    close(lab, CLIENT)
    assert real(lab, CLIENT) == first
    slots = lab.drain().slots
    assert sum(slots[slot][0] for slot in lab.slots.values()) == 1, "it is the same connection"


def test_every_port_of_a_vip_goes_to_one_server_on_the_port_of_the_packet() -> None:
    """A port-0 service; a real server's port counts only where the service's own is asked (ip_vs_sched_persist)."""
    lab = Lab(Virtual("203.0.113.1:0", {"10.0.0.1:0": 1, "10.0.0.2:8080": 1}, persistence=60))
    assert [real(lab, "192.0.2.1:1000", f"203.0.113.1:{port}") for port in (80, 443)] == ["10.0.0.2:80", "10.0.0.2:443"]
    assert real(lab, "192.0.2.2:1000", "203.0.113.1:80") == "10.0.0.1:80"


def test_all_that_a_mark_marks_goes_to_one_server() -> None:
    """Several VIPs, ports and protocols are grouped; another mark is another group."""
    reals = {"10.0.0.1:0": 1, "10.0.0.2:0": 1}
    groups = [Virtual("0.0.0.0:0", reals, mark=mark, persistence=60) for mark in (7, 8)]
    lab = Lab(*groups)
    assert real(lab, "192.0.2.9:1", "203.0.113.9:1", mark=8) == "10.0.0.2:1"
    assert real(lab, "192.0.2.1:1000", "203.0.113.1:80", mark=7) == "10.0.0.2:80"
    assert real(lab, "192.0.2.2:1000", "203.0.113.1:80", mark=7) == "10.0.0.1:80"
    assert real(lab, "192.0.2.1:1001", "203.0.113.2:443", mark=7) == "10.0.0.2:443"
    assert lab.send(udp("192.0.2.1:53", "203.0.113.3:53"), mark=7).packet == udp("192.0.2.1:53", "10.0.0.2:53")
    assert real(lab, "192.0.2.1:1002", "203.0.113.2:443", mark=8) == "10.0.0.1:443"


def test_passive_ftp_data_goes_where_the_control_connection_went() -> None:
    """To the persistent service on port 21 belong its VIP's unprivileged ports, and no other service's."""
    reals = {"10.0.0.1:21": 1, "10.0.0.2:21": 1}
    ftp = Virtual("203.0.113.1:21", reals, persistence=60)
    other = Virtual("203.0.113.1:8080", {"10.0.0.3:8080": 1})
    lab = Lab(ftp, other)
    assert real(lab, "192.0.2.1:1000", "203.0.113.1:21") == "10.0.0.2:21"
    assert real(lab, "192.0.2.2:1000", "203.0.113.1:21") == "10.0.0.1:21"
    assert real(lab, "192.0.2.1:1001", "203.0.113.1:50000") == "10.0.0.2:50000"
    assert real(lab, "192.0.2.2:1001", "203.0.113.1:20") == "10.0.0.1:20"
    assert real(lab, "192.0.2.1:1002", "203.0.113.1:8080") == "10.0.0.3:8080"
    assert lab.send(tcp("192.0.2.1:1003", "203.0.113.1:80", "S")).reason == "no_service"
    assert lab.send(udp("192.0.2.1:1003", "203.0.113.1:50000")).reason == "no_service"
    lab.configure(ftp._replace(persistence=0), other)
    assert lab.send(tcp("192.0.2.1:1004", "203.0.113.1:50000", "S")).reason == "no_service"


def test_ftp_and_every_other_port_of_a_vip_have_a_template_each() -> None:
    """(In the kernel they share one, and with it a server that may be none of the other service's.)"""
    every = Virtual("203.0.113.1:0", {f"10.0.0.{at}:0": 1 for at in range(1, 4)}, persistence=300)
    ftp = Virtual("203.0.113.1:21", {f"10.0.0.{at}:21": 1 for at in range(2, 5)}, persistence=300)
    lab = Lab(every, ftp)
    for host in (1, 2):
        found: dict[int, set[str | None]] = {80: set(), 21: set()}
        for port in range(1000, 1006):
            for vport, reals in found.items():
                reals.add(real(lab, f"192.0.2.{host}:{port}", f"203.0.113.1:{vport}"))
        assert {vport: len(reals) for vport, reals in found.items()} == {80: 1, 21: 1}
    assert len(templates(lab)) == 4
    assert sum(persistent(lab).values()) == 4


@pytest.mark.parametrize("family", [4, 6])
def test_templates_are_found_again_after_a_crash(tmp_path: Path, family: int) -> None:
    clock = FakeClock()
    client, vip, servers = (
        ("192.0.2.1", VIP, [A, B, C])
        if family == 4
        else ("[2001:db8:1::1]", "[2001:db8::1]:80", ["[fd00::1]:80", "[fd00::2]:80", "[fd00::3]:80"])
    )
    service = Virtual(vip, dict.fromkeys(servers, 1), persistence=60)
    with (tmp_path / "table").open("w+b") as file:
        lab = Lab(service, fd=file.fileno(), clock=clock)
        lab.send(tcp(f"{client}:1000", vip, "S"))
        lab.send(tcp(f"{client}:1001", vip, "S"))
        before = sorted(lab.connections())
        lab.table.close(False)
        lab = Lab(service, fd=file.fileno(), clock=clock)
        assert lab.table.adopted == 3
        assert sorted(lab.connections()) == before
        lab.send(tcp(f"{client}:1002", vip, "S"))
        servers_now = {row.server for row in lab.connections()}
        assert len(servers_now) == 1
        clock.advance(59)
        lab.workers[0].expire(clock())
        assert len(templates(lab)) == 1
        clock.advance(62)  # the connections, then their template
        lab.workers[0].expire(clock())
        clock.advance(60)
        lab.workers[0].expire(clock())
        assert lab.table.used == 0


def test_ipv6_prefixes_group_clients() -> None:
    lab = Lab(
        Virtual(
            "[2001:db8::1]:80",
            {"[fd00::1]:80": 1, "[fd00::2]:80": 1},
            persistence=60,
            mask=b"\xff" * 8 + bytes(8),
        )
    )
    for end in ("[2001:db8:1:1::1]:1000", "[2001:db8:1:1::ffff]:1000"):
        assert lab.send(tcp(end, "[2001:db8::1]:80", "S")).packet == tcp(end, "[fd00::2]:80", "S")
    end = "[2001:db8:1:2::1]:1000"
    assert lab.send(tcp(end, "[2001:db8::1]:80", "S")).packet == tcp(end, "[fd00::1]:80", "S")


# --- one-packet scheduling --------------------------------------------------------------------------------------------

DNS = Virtual("203.0.113.1:53", {"10.0.0.1:53": 1, "10.0.0.2:53": 1}, protocol="udp", one_packet=True)


def test_each_datagram_of_a_flow_is_scheduled_and_none_is_kept() -> None:
    lab = Lab(DNS)
    sent = [lab.send(udp("192.0.2.1:1000", "203.0.113.1:53", bytes([at]))).packet for at in range(10)]
    assert sent == [udp("192.0.2.1:1000", f"10.0.0.{2 - at % 2}:53", bytes([at])) for at in range(10)]
    assert (lab.connections(), lab.table.used) == ([], 0)
    slots = lab.drain().slots
    for server in ("10.0.0.1:53", "10.0.0.2:53"):
        assert slots[lab.slots["udp", "203.0.113.1:53", server]] == (5, 5, 0, 145, 0, 0, 0, 0, 0)


def test_with_persistence_the_datagrams_of_a_client_stay_together() -> None:
    lab = Lab(DNS._replace(persistence=60))
    for host in (1, 2):
        packets = [lab.send(udp(f"192.0.2.{host}:{1000 + at}", "203.0.113.1:53")).packet for at in range(5)]
        assert {packet[16:20] for packet in packets if packet} == {endpoint(f"10.0.0.{3 - host}:53").address[12:]}
    assert len(templates(lab)) == len(lab.connections()) == 2
    lab.clock.advance(61)
    lab.workers[0].expire(lab.clock())
    assert lab.table.used == 0


def test_tcp_of_a_mark_keeps_its_connections() -> None:
    lab = Lab(Virtual("0.0.0.0:0", {"10.0.0.1:0": 1, "10.0.0.2:0": 1}, mark=7, one_packet=True))
    assert real(lab, CLIENT, "203.0.113.1:80", mark=7) == "10.0.0.2:80"
    assert lab.send(tcp(CLIENT, "203.0.113.1:80", "A"), mark=7).packet == tcp(CLIENT, "10.0.0.2:80", "A")
    assert lab.send(udp(CLIENT, "203.0.113.1:80"), mark=7).packet == udp(CLIENT, "10.0.0.1:80")
    assert lab.send(udp(CLIENT, "203.0.113.1:80"), mark=7).packet == udp(CLIENT, "10.0.0.2:80")


# --- a server that is down


def test_persistent_clients_of_a_server_that_is_down_go_elsewhere_and_come_back_to_none() -> None:
    lab = Lab(STICKY)
    assert real(lab, "192.0.2.1:1000") == C
    slot = next(slot for key, slot in lab.slots.items() if key[-1] == C)
    down = STICKY._replace(reals={**REALS, C: 0})
    lab.configure(down)
    assert real(lab, "192.0.2.1:1001") == C, "quiesced: the template still leads there"
    lab.configure(down, gone=[slot])
    moved = real(lab, "192.0.2.1:1002")
    assert moved in (A, B)
    lab.configure(STICKY)
    assert real(lab, "192.0.2.1:1003") == moved


def test_flows_of_a_server_that_is_down_go_elsewhere_or_end() -> None:
    lab = Lab(Virtual(VIP, REALS, "rr"), Virtual(VIP, REALS, "rr", protocol="udp"))
    assert real(lab, "192.0.2.1:1000") == C
    first = lab.send(udp("192.0.2.1:53", VIP)).packet
    assert first
    assert first[19] == 3
    slots = [slot for key, slot in lab.slots.items() if key[-1] == C]
    quiet: dict[str, int | tuple[int, int, int]] = {**REALS, C: 0}
    lab.configure(Virtual(VIP, quiet, "rr"), Virtual(VIP, quiet, "rr", protocol="udp"), gone=slots)
    assert lab.send(tcp("192.0.2.1:1000", VIP, "A")).reason == "server_gone"
    again = lab.send(udp("192.0.2.1:53", VIP)).packet
    assert again
    assert again[19] in (1, 2)
    assert real(lab, "192.0.2.1:1000") in (A, B), "a SYN begins anew"
