"""What the data path counts of handshakes: taken up, refused, or left without an answer."""

from __future__ import annotations

import pytest

from nfqlb.testing import FORWARD, icmp, tcp, udp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual


def counted(lab: Lab, protocol: str = "tcp") -> tuple[int, int, int]:
    """Answered, refused, unanswered."""
    slot = lab.slots[protocol, VIP, REAL]
    return lab.datapath.handshakes([slot])[slot]


@pytest.fixture
def lab() -> Lab:
    return Lab(Virtual(VIP, {REAL: 1}))


def test_a_handshake_is_answered_once_and_what_follows_counts_nothing(lab: Lab) -> None:
    lab.send(tcp(CLIENT, VIP, "S"))
    assert counted(lab) == (0, 0, 0)
    lab.send(tcp(REAL, CLIENT, "SA"), hook=FORWARD)
    lab.send(tcp(CLIENT, VIP, "A"))
    for packet, hook in ((tcp(CLIENT, VIP, "PA", b"x"), 0), (tcp(REAL, CLIENT, "RA"), FORWARD)):
        lab.send(packet, hook=hook)
    assert counted(lab) == (1, 0, 0), "who resets in the end has served"


def test_a_reset_in_place_of_an_answer_is_a_refusal(lab: Lab) -> None:
    lab.send(tcp(CLIENT, VIP, "S"))
    lab.send(tcp(REAL, CLIENT, "RA"), hook=FORWARD)
    assert counted(lab) == (0, 1, 0)


def test_each_syn_that_is_repeated_has_had_no_answer(lab: Lab) -> None:
    for _ in range(3):
        lab.send(tcp(CLIENT, VIP, "S"))
    assert counted(lab) == (0, 0, 2)


def test_without_replies_the_client_s_ack_is_the_answer() -> None:
    lab = Lab(Virtual(VIP, {"10.0.0.2:80": 1}, mode="dr"))
    slot = lab.slots["tcp", VIP, "10.0.0.2:80"]
    for segment in ("S", "S", "A", "A", "PA"):
        lab.send(tcp(CLIENT, VIP, segment))
    assert lab.datapath.handshakes([slot]) == {slot: (1, 0, 1)}


def test_a_syn_without_a_neighbour_has_no_answer() -> None:
    lab = Lab(Virtual(VIP, {"10.0.0.2:80": 1}, mode="dr"), ways={"10.0.0.2:80": None})
    slot = lab.slots["tcp", VIP, "10.0.0.2:80"]
    assert lab.send(tcp(CLIENT, VIP, "S")).reason == "no_neighbour"
    assert lab.datapath.handshakes([slot]) == {slot: (0, 0, 1)}


@pytest.mark.parametrize(("code", "refused"), [(1, 1), (3, 1), (4, 0)])
def test_an_icmp_error_says_that_a_datagram_did_not_get_there_unless_it_was_too_long(code: int, refused: int) -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, protocol="udp"))
    sent = lab.send(udp(CLIENT, VIP)).packet
    assert sent
    lab.send(icmp("10.0.0.2", "192.0.2.10", 3, code, sent), hook=FORWARD)
    assert counted(lab, "udp") == (0, refused, 0)
