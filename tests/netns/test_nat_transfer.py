"""Bulk: what arrives is what was sent, byte for byte, both ways, with super-packets and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import Net, load
from tests import sizes
from tests.netns.conftest import How


def down_and_up(net: Net, family: int) -> None:
    whole = net.storage.fill("whole", sizes.TRANSFER)
    assert load.download(net.client, net.url("/whole", family)) == whole
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family))
    assert net.storage.sha256("incoming/whole") == whole


@pytest.mark.parametrize("family", [4, 6])
def test_download_and_upload_have_equal_sha256(net: Net, how: How, family: int) -> None:
    net.director.nfqlb("--vip", net.service(family=family), *net.reals(family=family), *how.args)
    down_and_up(net, family)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("family", [4, 6])
def test_transfer_with_checksum_offload_off_on_all_devices(net: Net, engine: str, family: int) -> None:
    net.offload(False)
    net.director.nfqlb("--vip", net.service(family=family), *net.reals(family=family), "--engine", engine)
    down_and_up(net, family)


def test_transfer_between_two_networks(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=2, arms=2)
    net.director.nfqlb("--vip", net.service(), *net.reals(), *diverter)
    down_and_up(net, 4)
