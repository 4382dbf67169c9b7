"""kill -9 of the holder, of the director, of both: services, servers and open connections are there as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import Net, kernelstate, load
from tests import sizes


def crash(net: Net, victim: str) -> None:
    """After it, a director serves again: the one that the holder restarted, or a new start without arguments."""
    director = net.director
    if victim == "director":
        killed = director.kill_director()
        wait_for_successor(net, killed)
    else:
        director.kill_holder() if victim == "holder" else director.kill_both()
        director.nfqlb()


def wait_for_successor(net: Net, killed: int, timeout: float = 10.0) -> None:
    done = net.director.cli("show", "daemon", check=False, patience=timeout)
    assert done.returncode == 0, f"no answer {timeout} s after director {killed} was killed: {done.stderr}"
    assert net.director.director_pid() != killed


@pytest.mark.parametrize("victim", ["holder", "director", "both"])
def test_services_and_open_connections_survive(make_net: Callable[..., Net], diverter: list[str], victim: str) -> None:
    net = make_net(servers=3, echo=True, vip="free")
    found = net.director.state()
    vips = ["--vip", net.service(80), "--vip", net.service(7)]
    reals = [word for server in net.servers[:2] for word in ("--real", server.v4)]
    net.director.nfqlb(*vips, *reals, "--scheduler", "rr", "--vip-dev", net.uplink, *diverter)
    running = net.director.state()
    held = load.Held(net.client, net.vip(), sizes.HELD)
    assert len(held.opened) == sizes.HELD
    net.director.cli("real", "add", net.service(80), f"{net.servers[2].v4}:80,weight=2")
    net.director.cli("real", "edit", net.service(80), f"{net.servers[0].v4}:80", "--weight", "0")
    configured = services(net)

    crash(net, victim)

    assert held.alive() == sizes.HELD
    assert services(net) == configured
    assert set(load.split(load.whoami(net.client, net.url(), 12))) == {"s2", "s3"}
    for what in ("addresses", "sysctls", "queues", "shared memory"):
        assert running[what] == net.director.state()[what]
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


@pytest.mark.parametrize("victim", ["holder", "both"])
def test_a_stop_after_a_crash_and_a_start_leaves_nothing(net: Net, diverter: list[str], victim: str) -> None:
    found = net.director.state()
    args = ["--vip", net.service(), *net.reals(), *diverter]
    for _ in range(2):
        net.director.nfqlb(*args)
        assert len(load.whoami(net.client, net.url(), 4)) == 4
        net.director.kill_holder() if victim == "holder" else net.director.kill_both()
    net.director.nfqlb(*args)
    assert len(load.whoami(net.client, net.url(), 4)) == 4
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def test_director_killed_again_and_again_under_load(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=2, echo=True)
    servers = [word for server in net.servers for word in ("--real", server.v4)]
    net.director.nfqlb("--vip", net.service(80), "--vip", net.service(7), *servers, *diverter)
    held = load.Held(net.client, net.vip(), sizes.HELD)
    load.Wrk(net.client, net.url(), connections=10, seconds=10)
    for _ in range(3):
        wait_for_successor(net, net.director.kill_director())
        assert held.alive() == sizes.HELD
    assert len(load.whoami(net.client, net.url(), 10)) == 10


def services(net: Net) -> list[object]:
    """What is configured, without the figures that go on."""
    shown = net.director.show("services")["services"]
    return [
        (service["key"], service["scheduler"], [(real["endpoint"], real["weight"]) for real in service["reals"]])
        for service in shown
    ]
