"""Paths on which nobody hears that a packet was too long: without a lower MSS TCP hangs there, with it it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load
from netns.host import Host
from netns.topology import Net
from netns.wiring import lan
from tests import sizes

FILTERED = {4: ["iptables", "icmp", "fragmentation-needed"], 6: ["ip6tables", "icmpv6", "packet-too-big"]}
PATIENCE = "2"  # seconds in which a megabyte would have passed many times
TIMED_OUT = 28  # curl's exit code


def deafen(router: Host, family: int, chain: str) -> None:
    """From here on the router drops what would tell of its, or the director's, MTU."""
    program, protocol, kind = FILTERED[family]
    router.run([program, "-A", chain, "-p", protocol, f"--{protocol}-type", kind, "-j", "DROP"])


def hangs(client: Host, *args: str) -> bool:
    return client.run([*load.CURL, "--max-time", PATIENCE, *args], check=False).returncode == TIMED_OUT


def start(net: Net, family: int) -> str:
    service = net.service(family=family)
    net.director.nfqlb("--mode", net.mode, "--vip", service, *net.reals(family=family))
    return service


@pytest.mark.parametrize("family", [4, 6])
def test_an_upload_through_a_tunnel_needs_no_icmp(make_net: Callable[..., Net], family: int) -> None:
    """What the real server announces fits into the tunnel."""
    net = make_net(servers=1, mode="tun")
    net.offload(False)  # super-packets are cut to fit in any case
    deafen(net.router, family, "FORWARD")
    start(net, family)
    whole = net.storage.fill("whole", sizes.MIB)
    file, url = net.storage.files / "whole", net.url("/incoming/whole", family)
    net.real_server(net.servers[0], "setup", *net.serves, "--mss", "0")
    assert hangs(net.client, "--upload-file", str(file), url)
    assert net.director.show("reasons")["reasons"]["too_big"] > 0
    net.real_server(net.servers[0], "setup", *net.serves)
    load.upload(net.client, file, url, timeout=20)
    assert net.storage.sha256("incoming/whole") == whole


@pytest.mark.parametrize(("mode", "family"), [("nat", 4), ("dr", 6), ("tun", 4)])
def test_a_narrow_way_to_the_client_needs_no_icmp(make_net: Callable[..., Net], mode: str, family: int) -> None:
    """The client's SYN passes the director whatever the mode, and bounds what the server sends."""
    net = make_net(servers=1, mode=mode)
    net.router.narrow(lan(1).prefixes.of(family), "lan1", 1300)
    deafen(net.router, family, "OUTPUT")
    service = start(net, family)
    whole = net.storage.fill("whole", sizes.MIB)
    assert hangs(net.client, "--output", "/dev/null", net.url("/whole", family))
    net.director.cli("service", "edit", service, "--mss", "1200")
    assert load.download(net.client, net.url("/whole", family), timeout=20) == whole
    assert net.director.show("services")["services"][0]["mss"] == 1200


def test_under_nat_the_servers_answer_is_held_down_as_well(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1)
    service = start(net, 6)
    net.director.cli("service", "edit", service, "--mss", "1200")
    with net.client.capture("ip6 and tcp", "eth0") as capture:
        load.whoami(net.client, net.url(family=6), 1)
    said = net.client.run(["tcpdump", "-nr", str(capture)]).stdout
    (answer,) = [line for line in said.splitlines() if "[S.]" in line]
    assert "mss 1200" in answer
