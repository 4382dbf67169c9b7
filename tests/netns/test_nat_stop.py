"""After a stop the machine is as it was found: rules, sets, sysctls, addresses, shared memory, run folder."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from netns import kernelstate, load
from netns.topology import Net
from tests.netns.conftest import How

USERS_OWN = [
    "ipset create mine hash:ip,port",
    "ipset add mine 192.0.2.1,tcp:80",
    "iptables -t mangle -A PREROUTING -p tcp --dport 8080 -j MARK --set-mark 7",
    "iptables -t raw -A OUTPUT -p udp --dport 9 -j NOTRACK",
    "iptables -A FORWARD -m set --match-set mine dst,dst -j DROP",
    "iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "ip6tables -A FORWARD -p udp --dport 9 -j DROP",
    "nft add table inet mine",
    "nft add chain inet mine pre { type filter hook prerouting priority -149 ; }",
    "nft add rule inet mine pre tcp dport 8081 counter",
    "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth0.send_redirects=1",
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_stop_leaves_everything_as_found(make_net: Callable[..., Net], how: How, number: signal.Signals) -> None:
    net = make_net(servers=2, vip="free")
    for line in USERS_OWN:
        net.director.run(line.split())
    found = net.director.state()
    process = net.director.nfqlb("--vip", net.service(), *net.reals(), "--vip-dev", net.uplink, *how.args)
    net.director.cli("service", "add", net.service(80, 6), *net.reals(family=6))
    for family in (4, 6):
        assert len(load.whoami(net.client, net.url(family=family), 4)) == 4
    assert kernelstate.difference(found, net.director.state())
    assert process.end(number, 15) == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def test_an_empty_machine_is_empty_again(net: Net, diverter: list[str]) -> None:
    found = net.director.state()
    assert found["iptables"] == found["nft"] == found["ipset"] == ""
    net.director.nfqlb("--vip", net.service(), *net.reals(), *diverter)
    assert len(load.whoami(net.client, net.url(), 4)) == 4
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def test_start_stop_start_with_the_same_name(net: Net, diverter: list[str]) -> None:
    found = net.director.state()
    for _ in range(3):
        net.director.nfqlb("--vip", net.service(), *net.reals(), *diverter)
        assert len(load.whoami(net.client, net.url(), 4)) == 4
        assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def test_stop_under_load_ends_in_time(net: Net, how: How) -> None:
    found = net.director.state()
    net.director.nfqlb("--vip", net.service(), *net.reals(), *how.args)
    wrk = load.Wrk(net.client, net.url(), connections=50, seconds=3)
    load.Probe(net.client, net.url())
    assert wrk.process.running
    assert net.director.stop(timeout=5) == 0
    assert kernelstate.difference(found, net.director.state()) == ""
