"""Changes of a service under load lose nothing: every datagram arrives, and every answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns import changes
from netns.topology import Net
from tests import sizes


@pytest.mark.parametrize("workers", [1, 2])
def test_no_datagram_is_lost_while_the_service_changes(
    make_net: Callable[..., Net], diverter: list[str], workers: int
) -> None:
    net = make_net(servers=3, web=False)
    done = changes.run(
        net, *diverter, "--workers", str(workers), changes=sizes.CHANGES, rate=sizes.RATE, within=sizes.CHANGING
    )
    assert done.sent >= sizes.RATE
    assert (done.lost_there, done.lost_back) == (0, 0)
