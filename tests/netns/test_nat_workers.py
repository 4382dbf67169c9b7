"""Several workers: one client's flows reach all of them, each flow one, and what they do together is what one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load
from netns.topology import Net
from tests import sizes
from tests.netns.conftest import How


def packets(net: Net, kind: str) -> list[int]:
    """How many packets each worker's queue of that class brought so far."""
    return [queue["packets"] for queue in net.director.show("daemon")["queues"] if queue["class"] == kind]


def start(make_net: Callable[..., Net], diverter: list[str], family: int) -> Net:
    net = make_net(servers=2, web=False, echo=True)
    services = [word for kind in ("tcp", "udp") for word in ("--vip", f"{net.service(7, family)}/{kind}")]
    reals = net.reals(port=7, family=family)
    net.director.nfqlb(*services, *reals, "--scheduler", "rr", "--workers", "2", *diverter)
    return net


@pytest.mark.parametrize("family", [4, 6])
def test_one_clients_flows_reach_both_workers(make_net: Callable[..., Net], diverter: list[str], family: int) -> None:
    net = start(make_net, diverter, family)
    answers = load.udp(net.client, net.vip(family), 40, 100, apart=True)
    assert load.split([answer or ("nobody", "") for answer in answers]) == {"s1": 20, "s2": 20}
    assert min(packets(net, "plain")) >= 10


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_stays_with_one_worker(make_net: Callable[..., Net], diverter: list[str], family: int) -> None:
    net = start(make_net, diverter, family)
    before = packets(net, "gso")
    held = load.Held(net.client, net.vip(family), 1)
    for _ in range(10):
        assert held.alive() == 1
    after = packets(net, "gso")
    assert sorted(new - old for old, new in zip(before, after, strict=True))[0] == 0
    assert sum(after) - sum(before) > 20


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_under_load_are_split_as_by_one_worker(net: Net, how: How, workers: int) -> None:
    args = [*net.reals(3, 1), "--scheduler", "wrr", "--workers", str(workers), *how.args]
    net.director.nfqlb("--vip", net.service(), *args)
    size = {"connections": sizes.CONNECTIONS, "seconds": sizes.LOAD_SECONDS}
    figures = load.Wrk(net.client, net.url(), **size, keepalive=False).figures()
    assert figures.errors == 0, figures.text
    assert figures.requests > 3 * sizes.CONNECTIONS
    (service,) = net.director.show("stats")["services"]
    second = -(-service["conns"] // 4)  # s2, added last, has the first of every four
    assert [real["conns"] for real in service["reals"]] == [service["conns"] - second, second]
    counted = packets(net, "gso")
    assert len(counted) == workers
    assert min(counted) > 0.1 * sum(counted)
