"""Many connections at once, by wrk, while the operator changes the real servers: not one request may fail."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from netns import load
from netns.topology import Net
from tests import sizes
from tests.netns.conftest import How


@pytest.mark.parametrize("keepalive", [True, False], ids=["keep-alive", "closing"])
def test_concurrent_connections_without_an_error(net: Net, how: How, keepalive: bool) -> None:
    check_load(net, 4, keepalive, how.args)


@pytest.mark.parametrize("keepalive", [True, False], ids=["keep-alive", "closing"])
def test_concurrent_connections_without_an_error_over_ipv6(net: Net, keepalive: bool) -> None:
    check_load(net, 6, keepalive, [])


def check_load(net: Net, family: int, keepalive: bool, args: list[str]) -> None:
    net.director.nfqlb("--vip", net.service(family=family), *net.reals(family=family), *args)
    size = {"connections": sizes.CONNECTIONS, "seconds": sizes.LOAD_SECONDS}
    figures = load.Wrk(net.client, net.url(family=family), **size, keepalive=keepalive).figures()
    assert figures.errors == 0, figures.text
    assert figures.requests > 10 * sizes.CONNECTIONS


def test_server_drained_removed_and_added_again_under_load(make_net: Callable[..., Net], how: How) -> None:
    net = make_net(servers=3)
    vip, leaving = net.service(), f"{net.servers[1].v4}:80"
    net.director.nfqlb("--vip", vip, *net.reals(), *how.args)
    wrk = load.Wrk(net.client, net.url(), connections=20, seconds=60, keepalive=False)
    for _ in range(2):
        net.director.cli("real", "edit", vip, leaving, "--weight", "0")
        wait_until_idle(net, leaving)
        assert "s2" not in load.split(load.whoami(net.client, net.url(), 12))
        net.director.cli("real", "delete", vip, leaving)
        assert "s2" not in load.split(load.whoami(net.client, net.url(), 12))
        net.director.cli("real", "add", vip, leaving)
        assert "s2" in load.split(load.whoami(net.client, net.url(), 60))
    figures = wrk.stop()
    assert figures.errors == 0, figures.text


def wait_until_idle(net: Net, real: str, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while net.director.real(real)["active"]:
        assert time.monotonic() < end, f"{real} still has active connections after {timeout} s at weight 0"
        time.sleep(0.05)
