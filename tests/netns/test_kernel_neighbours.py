"""The way to real servers as the kernel knows it: on the link, behind a gateway, on this machine, nowhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from netns.topology import Net
from netns.wiring import INSIDE, lan

LOOK = """
import json, sys
from nfqlb.kernel import neighbours
print(json.dumps({server: [hop.interface, hop.mtu, hop.destination.hex(":"), hop.source.hex(":"), hop.local]
                  for server, hop in neighbours.hops(sys.argv[1:]).items()}))
"""
PROBE = "import sys; from nfqlb.kernel import neighbours; neighbours.probe(sys.argv[1:])"


def look(net: Net, *servers: str, patience: float = 10.0) -> dict[str, Any]:
    """The hops, asked for until all are there or `patience` is over."""
    end = time.monotonic() + patience
    while True:
        found: dict[str, Any] = json.loads(net.director.run([sys.executable, "-c", LOOK, *servers]).stdout)
        if len(found) == len(servers) or time.monotonic() > end:
            return found
        time.sleep(0.05)


def mac(net: Net, name: str) -> str:
    host = next(host for host in net.hosts if host.name == name)
    text = host.run(["ip", "-j", "link", "show", "eth0"]).stdout
    return str(json.loads(text)[0]["address"])


def device(net: Net) -> int:
    return int(json.loads(net.director.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]["ifindex"])


@pytest.fixture
def small(make_net: Callable[..., Net]) -> Net:
    return make_net(servers=1, web=False)


@pytest.mark.parametrize("family", [4, 6])
def test_a_server_on_the_link_is_at_its_own_address(small: Net, family: int) -> None:
    server = small.servers[0].address(family)
    assert look(small, server) == {server: [device(small), 1500, mac(small, "s1"), mac(small, "d"), False]}


@pytest.mark.parametrize("family", [4, 6])
def test_a_server_elsewhere_is_at_the_gateways_address(small: Net, family: int) -> None:
    client = small.client.address(family)
    via = INSIDE.at(254).of(family)
    small.director.ip(f"route add {lan(1).prefixes.of(family)} via {via} mtu 1400")
    assert look(small, client) == {client: [device(small), 1400, mac(small, "r"), mac(small, "d"), False]}


@pytest.mark.parametrize("family", [4, 6])
def test_this_machine_is_local(small: Net, family: int) -> None:
    own = small.director.address(family)
    assert look(small, own) == {own: [0, 0, "", "", True]}


@pytest.mark.parametrize("family", [4, 6])
def test_who_answers_nothing_or_has_no_route_is_not_found(small: Net, family: int) -> None:
    nobody = INSIDE.at(77).of(family)
    assert look(small, nobody, patience=0.3) == {}
    small.director.ip(f"route delete {'0.0.0.0/0' if family == 4 else '::/0'}")
    assert look(small, "192.0.2.1" if family == 4 else "2001:db8:99::1", patience=0.3) == {}


@pytest.mark.parametrize("family", [4, 6])
def test_a_probed_server_that_is_gone_is_not_found_any_more(small: Net, family: int) -> None:
    server = small.servers[0].address(family)
    assert server in look(small, server)
    small.servers[0].ip("link set eth0 down")
    small.director.run([sys.executable, "-c", PROBE, server])
    end = time.monotonic() + 20
    while server in look(small, server, patience=0):
        assert time.monotonic() < end, "it is still thought to be there"
        time.sleep(0.1)
