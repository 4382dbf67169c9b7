"""Who gets which connection, and what the real server sees of the client: curl, one connection a request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load
from netns.topology import Net
from tests.netns.conftest import How


@pytest.mark.parametrize("family", [4, 6])
def test_wrr_splits_3_to_1_and_servers_see_the_client(net: Net, how: How, family: int) -> None:
    vip, reals = net.service(family=family), net.reals(3, 1, family=family)
    net.director.nfqlb("--mode", "nat", "--vip", vip, *reals, "--scheduler", "wrr", *how.args)
    answers = load.whoami(net.client, net.url(family=family), 40)
    assert load.split(answers) == {"s1": 30, "s2": 10}
    assert {seen for _, seen in answers} == {net.client.address(family)}


@pytest.mark.parametrize("family", [4, 6])
def test_rr_serves_udp_datagrams_in_turn(make_net: Callable[..., Net], how: How, family: int) -> None:
    net = make_net(servers=2, web=False, echo=True)
    service = f"{net.service(7, family)}/udp"
    net.director.nfqlb("--vip", service, *net.reals(port=7, family=family), "--scheduler", "rr", *how.args)
    for size in (1, 1000, 1001):
        answers = load.udp(net.client, net.vip(family), 20, size)
        client = net.client.address(family)
        assert sorted(answers, key=str) == [("s1", client)] * 10 + [("s2", client)] * 10


def test_each_vip_has_its_own_servers_and_scheduler_state(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2, echo=True)
    http, echo = net.service(80), net.service(7)
    servers = [word for server in net.servers for word in ("--real", server.v4)]
    net.director.nfqlb("--vip", http, "--vip", f"{echo}/udp", *servers, "--scheduler", "rr")
    for _ in range(3):
        assert load.split(load.whoami(net.client, net.url(), 2)) == {"s1": 1, "s2": 1}
        answers = load.udp(net.client, net.vip(), 2, 100)
        assert sorted(answers, key=str) == [("s1", net.client.v4), ("s2", net.client.v4)]


def test_clients_behind_different_routes_are_all_served(make_net: Callable[..., Net]) -> None:
    net = make_net(clients=3, servers=2)
    net.director.nfqlb("--vip", net.service(), *net.reals(), "--scheduler", "rr")
    for client in net.clients:
        assert set(load.whoami(client, net.url(), 4)) == {("s1", client.v4), ("s2", client.v4)}
