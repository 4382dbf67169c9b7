"""Where the VIP is (on the director, routed to it, added by nfqlb) and who asks (a client, the director itself)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load
from netns.topology import Net


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize("vip", ["local", "routed"])
def test_vip_local_or_only_routed(
    make_net: Callable[..., Net], diverter: list[str], vip: str, arms: int, family: int
) -> None:
    net = make_net(servers=2, arms=arms, vip=vip)
    args = ["--vip", net.service(family=family), *net.reals(family=family), "--scheduler", "rr"]
    net.director.nfqlb(*args, *diverter)
    answers = load.whoami(net.client, net.url(family=family), 10)
    assert load.split(answers) == {"s1": 5, "s2": 5}
    assert {seen for _, seen in answers} == {net.client.address(family)}


@pytest.mark.parametrize("family", [4, 6])
def test_vip_dev_adds_the_vip_and_stop_removes_it(make_net: Callable[..., Net], family: int) -> None:
    net = make_net(servers=2, vip="free")
    before = net.director.state()["addresses"]
    args = ["--vip", net.service(family=family), *net.reals(family=family), "--vip-dev", net.uplink]
    net.director.nfqlb(*args)
    assert f" {net.vip(family)}/{32 if family == 4 else 128} " in net.director.state()["addresses"]
    assert len(load.whoami(net.client, net.url(family=family), 10)) == 10
    server = net.servers[0].address(family)
    plain = f"http://{f'[{server}]' if family == 6 else server}/whoami"
    assert load.whoami(net.director, plain) == [("s1", net.director.address(family))], "not from the VIP"
    net.director.stop()
    assert net.director.state()["addresses"] == before


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vip", ["local", "routed"])
def test_the_directors_own_client(make_net: Callable[..., Net], diverter: list[str], vip: str, family: int) -> None:
    net = make_net(servers=2, vip=vip, echo=True)
    servers = [word for server in net.servers for word in ("--real", server.address(family))]
    args = ["--vip", net.service(80, family), "--vip", f"{net.service(7, family)}/udp", *servers, "--scheduler", "rr"]
    net.director.nfqlb(*args, *diverter)
    answers = load.whoami(net.director, net.url(family=family), 10)
    assert load.split(answers) == {"s1": 5, "s2": 5}
    assert {seen for _, seen in answers} <= {net.director.address(family), net.vip(family)}
    datagrams = load.udp(net.director, net.vip(family), 10, 100)
    assert sorted(server for server, _ in filter(None, datagrams)) == ["s1"] * 5 + ["s2"] * 5


def test_other_traffic_to_and_through_the_director_is_left_alone(net: Net, diverter: list[str]) -> None:
    net.director.nfqlb("--vip", net.service(), *net.reals(), *diverter)
    for server in net.servers:
        assert load.whoami(net.client, f"http://{server.v4}/whoami", 3) == [(server.name, net.client.v4)] * 3
        assert load.whoami(net.director, f"http://{server.v4}/whoami", 3) == [(server.name, net.director.v4)] * 3


def test_a_vip_that_is_neither_local_nor_routed_here_is_warned_of(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, vip="free", web=False)
    process = net.director.nfqlb("--vip", net.service(), *net.reals())
    assert [line for line in process.text.splitlines() if net.vip() in line], process.text
