"""Direct routing and tunnelling: the client's packets go on to the real server, the answers go past the director."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from netns import kernelstate, load
from netns.host import until
from netns.topology import Net
from netns.wiring import INSIDE
from tests import sizes
from tests.netns.conftest import How

MOVED = "02:00:00:00:00:99"


@pytest.fixture(params=["dr", "tun"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(net: Net, *args: str, family: int = 4, port: int = 80, protocol: str = "tcp") -> None:
    service = f"{net.service(port, family)}/{protocol}"
    net.director.nfqlb("--mode", net.mode, "--vip", service, *net.reals(port=port, family=family), *args)


def reasons(net: Net) -> dict[str, int]:
    found: dict[str, int] = net.director.show("reasons")["reasons"]
    return found


@pytest.mark.parametrize("vip", ["routed", "free"])
def test_the_vip_may_be_routed_or_added(make_net: Callable[..., Net], diverter: list[str], mode: str, vip: str) -> None:
    """Beside another VIP of the same real servers, set up after this one."""
    net = make_net(servers=2, mode=mode, vip=vip)
    for server in net.servers:
        net.real_server(server, "setup", "--mode", mode, "--vip", "10.2.0.201")
    start(net, *(["--vip-dev", net.uplink] if vip == "free" else []), "--scheduler", "rr", *diverter)
    assert load.split(load.whoami(net.client, net.url(), 4)) == {"s1": 2, "s2": 2}


@pytest.mark.parametrize("family", [4, 6])
def test_a_smaller_mtu_inside_the_tunnel_is_told_to_the_client(
    make_net: Callable[..., Net], how: How, family: int
) -> None:
    """Behind the next router: it tells the director, who sent the packet, and the director tells the client."""
    net = make_net(servers=1, mode="tun")
    server, router = net.servers[0].address(family), INSIDE.at(254).of(family)
    wide = "/128" if family == 6 else "/32"
    net.director.ip(f"route add {server}{wide} via {router}")
    net.router.ip(f"route add {server}{wide} dev eth0 mtu 1400")
    start(net, *how.args, family=family)
    whole = net.storage.fill("whole", sizes.MIB)
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family), timeout=20)
    assert net.storage.sha256("incoming/whole") == whole
    assert reasons(net)["error_reissued"] > 0


def test_a_real_server_is_as_found_when_its_set_up_is_undone(make_net: Callable[..., Net], mode: str) -> None:
    net = make_net(servers=1, web=False)
    server = net.servers[0]
    found = kernelstate.take(server, "none", {})
    serves = ["--mode", mode, "--vip", net.vip(4), "--vip", net.vip(6)]
    missing = net.real_server(server, "check", *serves, check=False)
    assert missing.returncode == 1
    assert len(missing.stdout.splitlines()) == (4 if mode == "dr" else 6)  # VIPs, sysctls, tunnel, MSS
    for _ in range(2):
        net.real_server(server, "setup", *serves)
        assert net.real_server(server, "check", *serves).stdout == ""
    server.sysctl("net.ipv4.conf.all.arp_ignore=0")
    assert "net.ipv4.conf.all.arp_ignore is 0" in net.real_server(server, "check", *serves, check=False).stdout
    net.real_server(server, "undo")
    net.real_server(server, "undo")
    assert kernelstate.difference(found, kernelstate.take(server, "none", {})) == ""
    assert "clsact" not in server.run(["tc", "qdisc", "show"]).stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--mode", "nat", "--vip", "10.0.0.1"], "--mode 'nat': is not known; choose from dr, tun"),
        (["--mode", "dr", "--vip", "10.0.0"], "--vip '10.0.0': is not an IP address; write it as 10.0.0.1"),
        (["--mode", "tun", "--vip", "10.0.0.1", "--dev", "nosuch"], "--dev 'nosuch': is not an interface"),
    ],
)
def test_a_real_servers_set_up_refuses(make_net: Callable[..., Net], args: list[str], sentence: str) -> None:
    net = make_net(servers=1, web=False)
    refused = net.real_server(net.servers[0], "setup", *args, check=False)
    assert refused.returncode != 0
    assert refused.stderr.startswith(f"nfqlb: {sentence}")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_a_server_that_announces_a_new_address_is_followed_at_once(
    make_net: Callable[..., Net], mode: str, family: int
) -> None:
    net = make_net(servers=1, mode=mode)
    start(net, family=family)
    load.whoami(net.client, net.url(family=family), 2)
    server = net.servers[0]
    server.sysctl("net.ipv4.conf.eth0.arp_notify=1", "net.ipv6.conf.eth0.ndisc_notify=1")
    server.ip(f"link set eth0 address {MOVED}")
    time.sleep(0.5)
    found = load.again(net.client, net.vip(family), 2, 34567)
    assert [server for server, _, _ in found] == ["s1"] * 2
    assert max(seconds for _, _, seconds in found) < 0.9, "a lost SYN comes again after a second"


def test_a_server_whose_address_changes_silently_is_found_again(make_net: Callable[..., Net], mode: str) -> None:
    net = make_net(servers=1, mode=mode)
    start(net)
    probe = load.Probe(net.client, net.url(), patience=load.Probe.PATIENCE)
    probe.wait()
    net.servers[0].ip(f"link set eth0 address {MOVED}")
    changed = time.monotonic()
    time.sleep(7)
    later = [ok for when, ok in probe.end() if when > changed + 5]
    assert len(later) >= 5
    assert all(later)


def test_a_server_that_is_gone_has_a_reason_and_comes_back(make_net: Callable[..., Net], mode: str) -> None:
    net = make_net(servers=2, mode=mode)
    start(net, "--scheduler", "rr")
    probe = load.Probe(net.client, net.url())
    probe.wait()
    net.servers[0].ip("link set eth0 down")
    until(lambda: reasons(net)["no_neighbour"] > 0, 20, lambda: "nobody noticed")
    probe.end()
    server, log = net.servers[0], net.director.process
    assert log is not None
    assert f"real server {server.v4}: no route, or no answer" in log.text
    server.ip("link set eth0 up", f"route replace default via {INSIDE.at(254).v4}")
    until(lambda: f"real server {server.v4}: reached" in log.text, 20, lambda: "it was not found again")
    assert load.split(load.whoami(net.client, net.url(), 4)) == {"s1": 2, "s2": 2}


def test_weights_are_changed_and_servers_added_while_packets_flow(make_net: Callable[..., Net], mode: str) -> None:
    net = make_net(servers=3, mode=mode)
    first, second, third = (f"{server.v4}:80" for server in net.servers)
    reals = ["--real", first, "--real", second]
    net.director.nfqlb("--mode", net.mode, "--vip", net.service(), *reals, "--scheduler", "rr")
    wrk = load.Wrk(net.client, net.url(), connections=20, seconds=3, keepalive=False)
    net.director.cli("real", "add", net.service(), third)
    net.director.cli("real", "edit", net.service(), first, "--weight", "0")
    until(lambda: net.director.real(first)["active"] == 0, 20, lambda: "its connections do not end")
    net.director.cli("real", "delete", net.service(), first)
    assert wrk.figures().errors == 0
    assert set(load.split(load.whoami(net.client, net.url(), 4))) == {"s2", "s3"}
