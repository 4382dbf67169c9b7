"""SCTP through a director: user-space peers, who look at every checksum, and what the director says of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from netns.topology import Net

PORT = 5000
SCTP = [sys.executable, "-m", "netns.sctp"]
WAYS = [("nat", "nft", 5001), ("nat", "iptables", PORT), ("dr", "nft", PORT), ("tun", "nft", PORT)]


def ask(net: Net, count: int, first: int, end: str) -> list[list[str]]:
    words = ["ask", net.vip(), *map(str, (PORT, count, first)), end]
    return [json.loads(line) for line in net.client.run([*SCTP, *words], timeout=30).stdout.splitlines()]


@pytest.mark.parametrize(("mode", "diverter", "port"), WAYS)
def test_associations_are_spread_and_followed(
    make_net: Callable[..., Net], mode: str, diverter: str, port: int
) -> None:
    net = make_net(servers=2, mode=mode)
    for server in net.servers:
        server.spawn([*SCTP, "serve", str(port), server.name]).says("ready")
    reals = [word for server in net.servers for word in ("--real", f"{server.v4}:{port}")]
    vip = f"{net.vip()}:{PORT}/sctp"
    net.director.nfqlb("--mode", mode, "--vip", vip, *reals, "--scheduler", "rr", "--diverter", diverter)
    assert sorted(ask(net, 10, 40000, "close")) == [["s1", net.client.v4]] * 5 + [["s2", net.client.v4]] * 5
    assert sorted(ask(net, 2, 41000, "keep")) == [["s1", net.client.v4], ["s2", net.client.v4]]
    rows = net.director.show("connections")["connections"]
    states = sorted(row["state"] for row in rows if row["protocol"] == "sctp")
    assert states == ["CLOSED"] * 10 + ["ESTABLISHED"] * 2
    listing = net.director.cli("ipvsadm", "-Ln").stdout
    assert f"SCTP {net.vip()}:{PORT} rr" in listing
    assert [line.split()[-2:] for line in listing.splitlines() if "-> " in line][1:] == [["1", "5"]] * 2
    assert any("ESTABLISHED" in line for line in net.director.cli("ipvsadm", "-Lnc").stdout.splitlines())
    net.director.cli("ipvsadm", "-D", "--sctp-service", f"{net.vip()}:{PORT}")
    assert "SCTP" not in net.director.cli("ipvsadm", "-Ln").stdout
