"""Connections of a real server that is down: dropped, kept, reset or moved, as its service wants it."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP

from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual

OTHER = "10.0.0.3:8080"
TWO, ONE = Virtual(VIP, {REAL: 1, OTHER: 1}), Virtual(VIP, {REAL: 1})


def down(fate: str, *, mode: str = "nat") -> Lab:
    """A client had a connection to OTHER, which is down now."""
    lab = Lab(TWO._replace(mode=mode))
    if mode == "nat":
        assert lab.open() == OTHER
    else:
        lab.send(tcp(CLIENT, VIP, "S"))
        lab.send(tcp(CLIENT, VIP, "A"))
    slot = next(slot for key, slot in lab.slots.items() if key[-1] == OTHER)
    lab.configure(ONE._replace(mode=mode), gone=[slot], fate=fate)
    return lab


def test_removed_segments_are_dropped_and_nobody_hears() -> None:
    lab = down("remove")
    assert lab.send(tcp(CLIENT, VIP, "PA", b"x")).reason == "server_gone"
    assert lab.workers[0].outgoing() == []


def test_kept_connections_go_on_and_end() -> None:
    lab = down("keep")
    assert lab.send(tcp(CLIENT, VIP, "PA", b"x")).packet == tcp(CLIENT, OTHER, "PA", b"x")
    assert lab.send(tcp(OTHER, CLIENT, "FA"), hook=FORWARD).packet == tcp(VIP, CLIENT, "FA")
    assert lab.send(tcp(CLIENT, VIP, "FA")).packet == tcp(CLIENT, OTHER, "FA")
    assert lab.send(tcp(CLIENT, VIP, "S")).packet == tcp(CLIENT, REAL, "S"), "a new one goes elsewhere"


@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_reset_clients_hear_it_with_their_next_segment_and_the_connection_ends(mode: str) -> None:
    lab = down("reset", mode=mode)
    assert lab.send(tcp(CLIENT, VIP, "PA", b"xyz", seq=7, ack=9)).reason == "server_down"
    (answer,) = map(IP, lab.workers[0].outgoing())
    assert (answer.src, answer.dst, answer[TCP].flags, answer[TCP].seq) == ("203.0.113.1", "192.0.2.10", "R", 9)
    assert lab.state()[0] == "CLOSE"
    assert lab.send(tcp(CLIENT, VIP, "R")).reason == "server_down"
    assert lab.workers[0].outgoing() == [], "who resets is not reset"
    lab.clock.advance(11)
    lab.workers[0].expire(lab.clock())
    assert lab.table.used == 0


def test_a_reset_connection_is_over_when_the_server_is_back() -> None:
    lab = down("reset")
    lab.send(tcp(CLIENT, VIP, "A"))
    assert lab.send(tcp(CLIENT, VIP, "S")).packet == tcp(CLIENT, REAL, "S")


def test_moved_connections_go_on_with_another_server_in_mid_stream() -> None:
    lab = down("move")
    assert lab.send(tcp(CLIENT, VIP, "R")).reason == "server_gone", "a reset begins nothing"
    assert lab.send(tcp(CLIENT, VIP, "PA", b"x")).packet == tcp(CLIENT, REAL, "PA", b"x")
    assert lab.state()[0] == "ESTABLISHED"
    assert (lab.load(OTHER), lab.load(REAL)) == ((0, 0), (1, 0))
    lab.configure(TWO)
    assert lab.send(tcp(CLIENT, VIP, "A")).packet == tcp(CLIENT, REAL, "A"), "it stays there"


def test_other_segments_in_mid_stream_still_begin_nothing() -> None:
    lab = down("move")
    assert lab.send(tcp("192.0.2.77:1", VIP, "A")).reason == "no_connection"


@pytest.mark.parametrize("fate", ["remove", "keep", "reset", "move"])
def test_datagrams_go_elsewhere_at_once_in_any_case(fate: str) -> None:
    two = TWO._replace(protocol="udp")
    lab = Lab(two)
    assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, OTHER)
    slot = next(slot for key, slot in lab.slots.items() if key[-1] == OTHER)
    lab.configure(ONE._replace(protocol="udp"), gone=[slot], fate=fate)
    assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, REAL)


@pytest.mark.parametrize("fate", ["remove", "keep", "reset", "move"])
def test_persistent_clients_go_elsewhere_in_any_case(fate: str) -> None:
    lab = Lab(TWO._replace(persistence=300))
    assert lab.open() == OTHER
    slot = next(slot for key, slot in lab.slots.items() if key[-1] == OTHER)
    lab.configure(ONE._replace(persistence=300), gone=[slot], fate=fate)
    assert lab.send(tcp("192.0.2.10:40001", VIP, "S")).packet == tcp("192.0.2.10:40001", REAL, "S")
