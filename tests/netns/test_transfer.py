"""Bulk: what arrives is what was sent, byte for byte, both ways, with super-packets and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import load, web
from netns.topology import Net
from netns.wiring import endpoint
from tests import sizes


def down_and_up(net: Net, family: int) -> None:
    whole = net.storage.fill("whole", sizes.TRANSFER)
    assert load.download(net.client, net.url("/whole", family)) == whole
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family))
    assert net.storage.sha256("incoming/whole") == whole


@pytest.mark.cell(kind="transfer")
@pytest.mark.parametrize(
    ("engine", "offload"),
    [("fast", True), ("fast", False), ("reference", True)],
    ids=["fast-offload", "fast-no-offload", "reference-offload"],
)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mode", ["nat", "dr", "tun", "local"])
def test_download_and_upload_have_equal_sha256(
    make_net: Callable[..., Net], mode: str, family: int, engine: str, offload: bool
) -> None:
    net = make_net(servers=2, mode="nat" if mode == "local" else mode)
    net.offload(offload)
    reals = net.reals(family=family)
    if mode == "local":
        web.launch(net.director, net.storage.files)
        net.director.listens(80)
        reals = ["--real", endpoint(net.director.address(family), 80)]
    net.director.nfqlb("--mode", net.mode, "--vip", net.service(family=family), *reals, "--engine", engine)
    down_and_up(net, family)


def test_transfer_between_two_networks(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=2, arms=2)
    net.director.nfqlb("--vip", net.service(), *net.reals(), *diverter)
    down_and_up(net, 4)
