"""When a connection gives way: to a new one on its ports, or because its real server is not there any more."""

from __future__ import annotations

import pytest

from nfqlb.testing import FORWARD, endpoint, tcp, udp
from tests.core.lab import CLIENT, KIND, TICK, VIP, Lab, Virtual

A, B = "10.0.0.1:80", "10.0.0.2:80"
REALS = {A: 1, B: 1}
CLOSERS = {  # segments after the handshake, each with who sends it, and the state after them
    "TIME_WAIT": (("client", "FA"), ("server", "FA"), ("client", "A")),
    "FIN_WAIT": (("server", "FA"), ("client", "A")),
    "CLOSE": (("client", "R"),),
    "CLOSE_WAIT": (("client", "FA"),),
    "ESTABLISHED": (),
}
CLOSERS_ALONE = {"FIN_WAIT": (("client", "FA"), ("client", "A")), "CLOSE": (("client", "R"),), "ESTABLISHED": ()}


def server(lab: Lab) -> str:
    """The real server of the only connection."""
    (row,) = (row for row in lab.connections() if not row.template)
    return next(real for real in REALS if endpoint(real) == (row.server, row.sport))


def close(lab: Lab, segments: tuple[tuple[str, str], ...]) -> None:
    real = server(lab)
    for sender, flags in segments:
        if sender == "client":
            lab.send(tcp(CLIENT, VIP, flags))
        else:
            lab.send(tcp(real, CLIENT, flags), hook=FORWARD)


@pytest.mark.parametrize(
    ("mode", "state", "reuse", "anew"),
    [
        *(("nat", state, 1, state in ("TIME_WAIT", "CLOSE")) for state in CLOSERS),
        *(("nat", state, 3, state in ("TIME_WAIT", "CLOSE")) for state in CLOSERS),
        *(("nat", state, 0, False) for state in CLOSERS),
        *(("dr", state, 1, state == "CLOSE") for state in CLOSERS_ALONE),
        *(("tun", state, 3, state != "ESTABLISHED") for state in CLOSERS_ALONE),
        *(("dr", state, 2, state != "ESTABLISHED") for state in CLOSERS_ALONE),
        *(("dr", state, 0, False) for state in CLOSERS_ALONE),
    ],
)
def test_a_syn_on_a_connection_that_closes_is_scheduled_anew(mode: str, state: str, reuse: int, anew: bool) -> None:
    """(conn_reuse_mode; ip_vs_core.c, is_new_conn_expected)"""
    lab = Lab(Virtual(VIP, REALS, mode=mode), policy=KIND._replace(conn_reuse_mode=reuse))
    if mode == "nat":
        lab.open()
    else:
        lab.send(tcp(CLIENT, VIP, "S"))
        lab.send(tcp(CLIENT, VIP, "A"))
    first = server(lab)
    close(lab, (CLOSERS if mode == "nat" else CLOSERS_ALONE)[state])
    assert lab.connections()[0].name == state
    assert lab.send(tcp(CLIENT, VIP, "S")).reason == {"nat": "forwarded", "dr": "routed", "tun": "tunnelled"}[mode]
    assert (server(lab) != first) == anew
    assert lab.connections()[0].name == ("ESTABLISHED" if state == "ESTABLISHED" else "SYN_RECV")


def test_a_template_keeps_a_connection_that_closes() -> None:
    lab = Lab(Virtual(VIP, REALS, persistence=60))
    first = lab.open()
    close(lab, CLOSERS["TIME_WAIT"])
    lab.send(tcp(CLIENT, VIP, "S"))
    assert server(lab) == first


@pytest.mark.parametrize("expire", [False, True])
def test_a_syn_leaves_a_server_of_weight_0_if_it_may(expire: bool) -> None:
    """(expire_nodest_conn)"""
    policy = KIND._replace(expire_nodest_conn=expire)
    lab = Lab(Virtual(VIP, REALS), policy=policy)
    first = lab.open()
    other = B if first == A else A
    lab.configure(Virtual(VIP, {first: 0, other: 1}), policy=policy)
    assert lab.send(tcp(CLIENT, VIP, "PA")).reason == "forwarded"
    assert server(lab) == first
    lab.send(tcp(CLIENT, VIP, "S"))
    assert server(lab) == (other if expire else first)


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(
    ("expire", "answer", "reason"),
    [(False, "pass", "server_gone"), (True, "pass", "no_connection"), (True, "reset", "refused")],
)
def test_tcp_of_a_removed_server_waits_for_it_or_ends(swept: bool, expire: bool, answer: str, reason: str) -> None:
    policy = KIND._replace(expire_nodest_conn=expire, no_connection=answer)
    lab = Lab(Virtual(VIP, REALS), policy=policy)
    first = lab.open()
    lab.configure(Virtual(VIP, {B if first == A else A: 1}), policy=policy)
    if swept:
        assert lab.datapath.sweep(lab.clock()) == expire
        assert lab.load(first) == ((0, 0) if expire else (1, 0))
    assert lab.send(tcp(CLIENT, VIP, "PA")).reason == reason
    lab.configure(Virtual(VIP, REALS), policy=policy)
    assert lab.send(tcp(CLIENT, VIP, "PA")).reason == ("forwarded" if not expire else reason)


@pytest.mark.parametrize("how", ["removed", "down", "weight 0"])
@pytest.mark.parametrize("expire", [False, True])
def test_datagrams_leave_a_server_at_once_and_so_do_those_that_nobody_sends(how: str, expire: bool) -> None:
    """(expire_quiescent_udp)"""
    policy = KIND._replace(expire_quiescent_udp=expire)
    lab = Lab(Virtual(VIP, REALS, protocol="udp"), policy=policy)
    for port in range(40000, 40004):
        lab.send(udp(f"192.0.2.10:{port}", VIP))
    assert lab.load(A, protocol="udp") == (0, 2)
    reals = {B: 1} if how == "removed" else {A: 0 if how == "weight 0" else 1, B: 1}
    gone = [lab.slots["udp", VIP, A]] if how == "down" else []
    lab.configure(Virtual(VIP, reals, protocol="udp"), policy=policy, gone=gone)
    goes = expire or how != "weight 0"
    assert lab.datapath.sweep(lab.clock()) == (2 if goes else 0)
    lab.clock.advance(3 + TICK)
    lab.workers[0].expire(lab.clock())
    assert lab.load(A, protocol="udp") == ((0, 0) if goes else (0, 2))
    assert lab.load(B, protocol="udp") == (0, 2)
    assert lab.datapath.sweep(lab.clock()) == 0


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("moves", ["", "service", "options"])
def test_datagrams_of_a_persistent_client_leave_a_server_of_weight_0_if_it_does(moves: str, swept: bool) -> None:
    policy = KIND._replace(expire_quiescent_udp=True, expire_quiescent_template=moves == "options")
    service = Virtual(VIP, REALS, protocol="udp", persistence=60, moves_quiesced=moves == "service")
    lab = Lab(service, capacity=64, policy=policy)
    lab.send(udp(CLIENT, VIP))
    first = server(lab)
    lab.configure(service._replace(reals={**REALS, first: 0}), policy=policy)
    if swept:
        assert lab.datapath.sweep(lab.clock()) == (moves != "")
    assert {lab.send(udp(CLIENT, VIP)).reason for _ in range(200)} == {"forwarded"}
    lab.workers[0].expire(lab.clock.advance(3 + TICK))
    assert (server(lab) == first) == (moves == "")
    assert lab.table.used == (3 if moves else 2), "the flow, its template, and for some time yet the one that it had"


@pytest.mark.parametrize("how", ["was never led", "its template is over"])
def test_a_flow_whose_template_does_not_lead_back_leaves_a_server_of_weight_0(how: str) -> None:
    policy = KIND._replace(expire_quiescent_udp=True)
    service = Virtual(VIP, REALS, protocol="udp", persistence=60 if how == "its template is over" else 0)
    lab = Lab(service, policy=policy)
    lab.send(udp(CLIENT, VIP))
    first = server(lab)
    other = B if first == A else A
    if service.persistence:
        lab.configure(service._replace(reals={other: 1}), policy=policy)
        lab.send(udp("192.0.2.10:1", VIP))  # the same client, another flow: a template to the other one
    lab.configure(service._replace(reals={first: 0, other: 1}, persistence=60), policy=policy)
    sent = [lab.send(udp(CLIENT, VIP)).packet for _ in range(3)]
    assert all(packet and endpoint(other)[0].endswith(packet[16:20]) for packet in sent)


@pytest.mark.parametrize("expire", [False, True])
def test_one_datagram_is_enough_to_leave_a_server_of_weight_0(expire: bool) -> None:
    policy = KIND._replace(expire_quiescent_udp=expire)
    lab = Lab(Virtual(VIP, REALS, protocol="udp"), policy=policy)
    lab.send(udp(CLIENT, VIP))
    first = server(lab)
    other = B if first == A else A
    lab.configure(Virtual(VIP, {first: 0, other: 1}, protocol="udp"), policy=policy)
    sent = lab.send(udp(CLIENT, VIP)).packet
    assert sent is not None
    assert endpoint(other if expire else first)[0].endswith(sent[16:20])
    assert lab.send(udp(first, CLIENT), hook=FORWARD).reason == "returned", "an answer that was under way"


@pytest.mark.parametrize("expire", [False, True])
def test_persistent_clients_leave_a_server_of_weight_0_if_the_options_say_so(expire: bool) -> None:
    """(expire_quiescent_template)"""
    policy = KIND._replace(expire_quiescent_template=expire)
    lab = Lab(Virtual(VIP, REALS, persistence=60), policy=policy)
    first = lab.open("192.0.2.10:1000")
    lab.configure(Virtual(VIP, {first: 0, B if first == A else A: 1}, persistence=60), policy=policy)
    assert (lab.open("192.0.2.10:1001") != first) == expire
    assert lab.send(tcp("192.0.2.10:1000", VIP, "PA")).reason == "forwarded"
