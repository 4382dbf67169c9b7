"""A real server under a kernel that has tunnel devices: our director fills them, and so does the kernel's own IPVS."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from netns import load
from netns.host import Host
from netns.topology import Net
from netns.wiring import endpoint
from tests import sizes

SIZES = [1, 1400, 1473, 8000]  # bytes of a datagram: the third is cut, because it would not fit into the tunnel
SPARE = ("--mss", "0")  # this kernel's nf_tables has no tables
DEVICES = {4: "nfqlb-tun4", 6: "nfqlb-tun6"}


def received(server: Host, family: int) -> int:
    """Packets that came out of the kernel's device, 0 without one."""
    links = json.loads(server.run(["ip", "-s", "-j", "link"]).stdout)
    return sum(link["stats64"]["rx"]["packets"] for link in links if link["ifname"] == DEVICES[family])


def filters(server: Host) -> str:
    return server.run(["tc", "filter", "show", "dev", "eth0", "ingress"]).stdout


def state(server: Host) -> str:
    """What a set-up may touch, but for what the kernel itself counts."""
    look = "ip -o link; ip -o address; ip rule; ip route; tc qdisc; sysctl net.ipv4.conf.all net.ipv4.conf.lo"
    return server.run(["bash", "-c", look]).stdout


def direct(net: Net, family: int, port: int = 80, protocol: str = "tcp") -> None:
    service = f"{net.service(port, family)}/{protocol}"
    net.director.nfqlb(
        "--diverter", "iptables", "--mode", "tun", "--vip", service, *net.reals(port=port, family=family), timeout=60
    )


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_uploaded_comes_out_of_the_kernels_device(make_net: Callable[..., Net], family: int) -> None:
    net = make_net(servers=1, mode="tun", setup=("--by", "kernel", *SPARE))
    server = net.servers[0]
    assert filters(server) == ""
    direct(net, family)
    whole = net.storage.fill("whole", sizes.MIB)
    assert load.download(net.client, net.url("/whole", family)) == whole
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family))
    assert net.storage.sha256("incoming/whole") == whole
    assert received(server, family) > sizes.MIB // 1500
    assert net.real_server(server, "check", *net.serves, *SPARE).stdout == ""


def test_datagrams_of_any_size_come_out_of_it(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True, mode="tun", setup=SPARE)
    direct(net, 4, 7, "udp")
    for size in SIZES:
        answers = load.udp(net.client, net.vip(), 2, size)
        assert all(answer and answer[1] == net.client.v4 for answer in answers), size
    assert received(net.servers[0], 4) >= 2 * len(SIZES)


def test_it_works_where_sources_are_checked_strictly_and_is_undone(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    server, net.mode = net.servers[0], "tun"
    server.sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    server.ip(f"route replace default via {net.outside.at(254).v4}")
    found = state(server)
    for by in ("bpf", "auto"):
        net.real_server(server, "setup", *net.serves, "--by", by, *SPARE)
        assert ("nfqlb-tun4" in state(server), "nfqlb-decapsulate" in filters(server)) == (by != "bpf", by == "bpf")
    assert net.real_server(server, "check", *net.serves, *SPARE).stdout == ""
    direct(net, 4, 7)
    assert load.Held(net.client, net.vip(), 4).alive() == 4
    assert received(server, 4) >= 4
    net.real_server(server, "undo")
    assert state(server) == found


@pytest.mark.parametrize(("family", "by"), [(4, "kernel"), (6, "kernel"), (4, "bpf")])
def test_a_real_server_of_ours_serves_the_kernels_ipvs(make_net: Callable[..., Net], family: int, by: str) -> None:
    net = make_net(servers=2, web=False, echo=True, mode="tun", setup=("--by", by, *SPARE))
    service = net.service(7, family)
    net.director.run(["ipvsadm", "-A", "-t", service, "-s", "rr"])
    for server in net.servers:
        net.director.run(["ipvsadm", "-a", "-t", service, "-r", endpoint(server.address(family), 7), "-i"])
    held = load.Held(net.client, net.vip(family), 4)
    assert held.alive() == 4
    assert load.split(held.opened) == {"s1": 2, "s2": 2}
    assert all((received(server, family) > 0) == (by == "kernel") for server in net.servers)
