"""Services of several ports, of every port, and of the packets that the user's own rules mark; in every mode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from netns import kernelstate, load
from netns.host import Host
from netns.topology import Net

MARK = 7
MODES = ("nat", "dr", "tun")
SPEAKER = """
import socket
listener = socket.create_server(("", 4711))
print("ready", flush=True)
connection, _ = listener.accept()
input()
connection.sendall(b"heard")
connection.recv(1)
"""
LISTENER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 4711), 5)
print("connected", flush=True)
connection.settimeout(10)
print(connection.recv(5).decode(), flush=True)
"""


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mark(director: Host, family: int, *match: str, value: int = MARK) -> None:
    """As every guide to LVS does it."""
    program = "iptables" if family == 4 else "ip6tables"
    for protocol in ("tcp", "udp"):
        rule = ["-p", protocol, *match, "-j", "MARK", "--set-mark", str(value)]
        director.run([program, "-t", "mangle", "-A", "PREROUTING", *rule])


def reals(net: Net, family: int) -> list[str]:
    return [word for server in net.servers for word in ("--real", server.address(family))]


def start(net: Net, vips: list[str], family: int, *args: str) -> None:
    words = [word for vip in vips for word in ("--vip", vip)]
    net.director.nfqlb("--mode", net.mode, *words, *reals(net, family), "--scheduler", "rr", *args)


def fwmark(family: int) -> str:
    return f"fwmark:{MARK}" + ("/ipv6" if family == 6 else "")


def check_both(net: Net, family: int) -> None:
    """TCP on port 80 and UDP on port 7 are spread, and the servers see who asks."""
    client = net.client.address(family)
    answers = load.whoami(net.client, net.url(family=family), 10)
    assert sorted(answers) == [("s1", client)] * 5 + [("s2", client)] * 5
    datagrams = load.udp(net.client, net.vip(family), 10, 500)
    assert sorted(datagrams, key=str) == [("s1", client)] * 5 + [("s2", client)] * 5


@pytest.mark.parametrize("family", [4, 6])
def test_marked_packets_are_one_service(
    make_net: Callable[..., Net], diverter: list[str], mode: str, family: int
) -> None:
    net = make_net(servers=2, echo=True, mode=mode)
    mark(net.director, family, "-d", net.vip(family), "-m", "multiport", "--dports", "7,80")
    start(net, [fwmark(family)], family, *diverter)
    check_both(net, family)
    # what the rule does not mark stays the director's own
    refused = net.client.run(["curl", "-s", "-m", "2", net.url(family=family).replace(":80/", ":81/")], check=False)
    assert refused.returncode == 7


def test_a_mark_that_is_set_later_counts_too(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=2, echo=True)
    start(net, [fwmark(4)], 4, *diverter)
    mark(net.director, 4, "-d", net.vip())
    if "iptables" in diverter:  # whose jump has to get behind the new rule again
        end = time.monotonic() + 3
        while "MARK" in net.director.run(["iptables", "-t", "mangle", "-S", "PREROUTING"]).stdout.splitlines()[-1]:
            assert time.monotonic() < end, "our jump is still before the mark"
            time.sleep(0.05)
    check_both(net, 4)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocols", [("tcp", "udp"), ("udp", "tcp")], ids="-".join)
def test_every_port_and_a_range_are_services(
    make_net: Callable[..., Net], diverter: list[str], mode: str, protocols: tuple[str, str], family: int
) -> None:
    """Every port of the first protocol, and a range of the second."""
    net = make_net(servers=2, echo=True, mode=mode)
    vips = [f"{net.service(0, family)}/{protocols[0]}", f"{net.service(7, family)}-80/{protocols[1]}"]
    start(net, vips, family, *diverter)
    check_both(net, family)


def test_a_port_of_its_own_goes_before_a_range_and_a_range_before_every_port(
    make_net: Callable[..., Net], diverter: list[str]
) -> None:
    net = make_net(servers=3, echo=True)
    s1, s2, s3 = (server.v4 for server in net.servers)
    start(net, [net.service(0)], 4, *diverter)
    for vip, real in ((f"{net.vip()}:70-90", s2), (f"{net.vip()}:80", s3)):
        assert load.Held(net.client, net.vip(), 2).alive() == 2
        net.director.cli("service", "add", vip, "--real", real)
    assert load.split(load.whoami(net.client, net.url(), 4)) == {"s3": 4}
    net.director.cli("service", "delete", f"{net.vip()}:80")
    assert load.split(load.whoami(net.client, net.url(), 4)) == {"s2": 4}
    net.director.cli("service", "edit", f"{net.vip()}:70-90", "--scheduler", "rr")
    net.director.cli("real", "add", f"{net.vip()}:70-90", s1)
    assert load.split(load.whoami(net.client, net.url(), 4)) == {"s1": 2, "s2": 2}
    net.director.cli("service", "delete", f"{net.vip()}:70-90")
    assert set(load.split(load.whoami(net.client, net.url(), 6))) == {"s1", "s2", "s3"}
    assert {row["key"] for row in net.director.show("services")["services"]} == {f"{net.vip()}:0/tcp"}


@pytest.mark.parametrize("wide", ["fwmark", "every-port"])
def test_a_servers_own_connections_are_not_touched(
    make_net: Callable[..., Net], diverter: list[str], wide: str
) -> None:
    """They go out masqueraded, from any port, although the server may answer clients from any port."""
    net = make_net(servers=2, arms=2, echo=True)
    net.client.start_echo()
    net.director.run(["iptables", "-t", "nat", "-A", "POSTROUTING", "-o", net.uplink, "-j", "MASQUERADE"])
    mark(net.director, 4, "-d", net.vip())
    start(net, [fwmark(4)] if wide == "fwmark" else [f"{net.service(0)}/{p}" for p in ("tcp", "udp")], 4, *diverter)
    check_both(net, 4)
    for server in net.servers:
        assert set(load.udp(server, net.client.v4, 3, 100)) <= {("c1", net.director.v4), ("c1", net.vip())}
        held = load.Held(server, net.client.v4, 2)
        assert held.alive() == 2
        assert {seen for _, seen in held.opened} <= {net.director.v4, net.vip()}
    check_both(net, 4)


@pytest.mark.parametrize("wide", ["fwmark", "every-port"])
def test_forward_may_drop(make_net: Callable[..., Net], diverter: list[str], wide: str) -> None:
    net = make_net(servers=2, echo=True)
    rules = ["-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate INVALID -j DROP"]
    for rule in rules:
        net.director.run(["iptables", *rule.split()])
    mark(net.director, 4, "-d", net.vip())
    start(net, [fwmark(4)] if wide == "fwmark" else [f"{net.service(0)}/{p}" for p in ("tcp", "udp")], 4, *diverter)
    check_both(net, 4)


@pytest.mark.parametrize("wide", ["fwmark", "every-port"])
def test_silent_connections_survive_a_crash(make_net: Callable[..., Net], diverter: list[str], wide: str) -> None:
    """The server speaks first after it: that its packets are replies has to be known still."""
    net = make_net(servers=1, web=False)
    mark(net.director, 4, "-d", net.vip())
    start(net, [fwmark(4)] if wide == "fwmark" else [net.service(0)], 4, *diverter)
    server = net.servers[0].spawn([sys.executable, "-c", SPEAKER], log="speaker.log")
    server.says("ready")
    client = net.client.spawn([sys.executable, "-c", LISTENER, net.vip()], log="listener.log")
    client.says("connected")
    net.director.kill_director()
    net.director.cli("real", "add", f"fwmark:{MARK}" if wide == "fwmark" else net.service(0), "10.2.0.99")
    server.tell("say")
    client.says("heard", 3)


def test_all_of_it_is_gone_after_a_stop(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=1)
    found = net.director.state()
    start(net, [net.service(0), f"{net.service(7)}-9/udp", fwmark(4)], 4, *diverter)
    net.director.cli("service", "add", fwmark(6), "--real", net.servers[0].v6)
    net.director.stop()
    assert kernelstate.difference(found, net.director.state()) == ""
