"""A client that connects again from the port that it just had, and datagrams of a server that goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load
from netns.host import until
from netns.topology import Net

ROUNDS = 10
RIGHT_ENDS = {"forwarded", "returned", "routed", "tunnelled", "marked", "no_service", "icmp", "other_protocol"}


@pytest.mark.parametrize("mode", ["nat", "dr", "tun"])
@pytest.mark.parametrize("family", [4, 6])
def test_connects_from_one_source_port_succeed_at_once(make_net: Callable[..., Net], mode: str, family: int) -> None:
    """Each is scheduled anew, to the other server, and none waits for the second SYN, which comes after a second."""
    net = make_net(servers=2, mode=mode)
    service = net.service(family=family)
    net.director.nfqlb("--mode", mode, "--vip", service, *net.reals(family=family), "--scheduler", "rr")
    found = load.again(net.client, net.vip(family), ROUNDS, 34567)
    servers = [server for server, _, _ in found]
    assert len(set(servers)) == 2
    assert servers == servers[:2] * (ROUNDS // 2)
    assert {seen for _, seen, _ in found} == {net.client.address(family)}
    took = sorted(seconds for _, _, seconds in found)
    assert took[0] < 0.1
    assert took[ROUNDS // 2] < 0.9, "however slow the machine, most did not wait for a second SYN"
    reasons = net.director.show("reasons")["reasons"]
    assert {reason for reason, count in reasons.items() if count} <= RIGHT_ENDS


def test_connections_of_datagrams_go_with_their_server(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2, web=False, echo=True)
    service = f"{net.service(7)}/udp"
    net.director.nfqlb("--vip", service, *net.reals(port=7), "--scheduler", "rr")
    net.director.cli("set", "options.expire_quiescent_udp=yes")
    load.udp(net.client, net.vip(), 8, 50)
    first, second = (f"{server.v4}:7" for server in net.servers)
    assert (net.director.real(first)["inactive"], net.director.real(second)["inactive"]) == (4, 4)
    net.director.cli("real", "edit", service, first, "--weight", "0")
    until(lambda: net.director.real(first)["inactive"] == 0, 10, lambda: "they are still there")
    assert net.director.real(second)["inactive"] == 4
