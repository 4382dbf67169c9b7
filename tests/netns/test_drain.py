"""`nfqlb drain`: a server goes when its connections have ended or time is up, whoever dies meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from netns import load
from netns.director import NFQLB
from netns.topology import Net

UDP, TCP = "10.2.0.100:7/udp", "10.2.0.100:7/tcp"
S1, S2 = "10.2.0.11:7", "10.2.0.12:7"
TIMEOUTS = "[timeouts]\nudp = 6\n"
SERVICE = """
[[service]]
vip = "{vip}"
scheduler = "rr"
real = [{{ address = "10.2.0.11:7" }}, {{ address = "10.2.0.12:7" }}]
"""


@pytest.fixture
def net() -> Iterator[Net]:
    with Net(clients=2, servers=2, web=False, echo=True) as net:
        file = net.director.folder / "nfqlb.toml"
        file.write_text(TIMEOUTS + "".join(SERVICE.format(vip=vip) for vip in (UDP, TCP)))
        net.director.nfqlb("--config", str(file))
        yield net
        assert net.director.stop() == 0


def reals(net: Net, vip: str) -> list[str]:
    services = net.director.show("services")["services"]
    return [real["endpoint"] for service in services if service["key"] == vip for real in service["reals"]]


def test_a_server_goes_with_its_last_connection(net: Net) -> None:
    assert len(set(load.udp(net.client, net.vip(), 4, 50))) == 2
    done = net.director.cli("drain", UDP, S1, "--timeout", "60s")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("10.2.0.11:7: 0 active and 2 inactive connections, 60 s left")
    assert last == "10.2.0.11:7: its last connection has ended; it is deleted"
    assert reals(net, UDP) == [S2]
    assert {server for server, _ in filter(None, load.udp(net.client, net.vip(), 4, 50))} == {"s2"}


def test_a_drain_outlives_who_asked_and_the_director(net: Net) -> None:
    held = load.Held(net.client, net.vip(), 4)
    assert sorted(server for server, _ in held.opened) == ["s1", "s1", "s2", "s2"]
    api = {"NFQLB_API": str(net.director.run_folder / net.director.instance / "api.sock")}
    asked = net.director.spawn([NFQLB, "drain", TCP, S1, "--timeout", "15s"], env=api)
    asked.says("10.2.0.11:7: 2 active")
    end = time.monotonic() + 15
    assert asked.end(signal.SIGINT) == 130
    net.director.kill_director()
    more = load.Held(net.clients[1], net.vip(), 2)
    assert {server for server, _ in more.opened} == {"s2"}
    assert (held.alive(), more.alive()) == (4, 2)
    assert reals(net, TCP) == [S1, S2]
    while reals(net, TCP) != [S2]:
        assert time.monotonic() < end + 3
        time.sleep(0.2)
    assert time.monotonic() > end - 2
    late = net.director.cli("drain", TCP, S2, "--timeout", "1s", "--keep", check=False)
    assert late.returncode == 1
    assert late.stdout.splitlines()[-1] == "10.2.0.12:7: time was up, 4 connections were left; it is still there"
    assert more.alive() == 2
