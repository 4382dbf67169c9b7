"""Established flows that the kernel forwards by itself: bytes, counters, endings, changes, crashes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import Net, load
from tests import sizes

ON = ["--offload", "auto"]


@pytest.fixture(params=["nat", "dr", "tun"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(net: Net, *args: str, family: int = 4, port: int = 80, protocol: str = "tcp") -> None:
    service = f"{net.service(port, family)}/{protocol}"
    net.director.nfqlb("--mode", net.mode, "--vip", service, *net.reals(port=port, family=family), *ON, *args)
    state = net.director.show("daemon")["offload"]["state"]
    assert state == "on", state


def offload(net: Net) -> dict[str, int]:
    net.director.show("stats")  # counts
    found: dict[str, int] = net.director.show("daemon")["offload"]
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_streams_are_forwarded_by_the_kernel_unharmed(make_net: Callable[..., Net], mode: str, family: int) -> None:
    net = make_net(servers=1, mode=mode)
    start(net, family=family)
    sent = net.storage.fill("whole", 8 * sizes.MIB)
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family), timeout=20)
    assert net.storage.sha256("incoming/whole") == sent
    assert load.download(net.client, net.url("/incoming/whole", family), timeout=20) == sent
    found = offload(net)
    assert found["packets"] > 100
    print(found, net.director.show("reasons"), net.director.show("stats"), net.director.show("connections"))
