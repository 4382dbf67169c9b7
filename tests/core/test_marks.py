"""The mark that leads a packet to its real server."""

from __future__ import annotations

import pytest

from nfqlb._core.snapshot import Hop
from nfqlb.testing import PREROUTING, icmp, tcp
from tests.core.lab import Lab, Virtual

CLIENT, VIP, REAL = "192.0.2.10:40000", "203.0.113.1:80", "10.0.0.2:80"


def lab(mark: int, mask: int) -> Lab:
    return Lab(Virtual(VIP, {REAL: 1}, mode="dr"), ways={REAL: Hop(0, 0, mark=mark, mask=mask)})


@pytest.mark.parametrize(
    ("mark", "mask", "came", "went"),
    [
        (0x3000000, 0xFF000000, 0, 0x3000000),
        (0x3000000, 0xFF000000, 0x00ABCDEF, 0x03ABCDEF),
        (0x3000000, 0xFF000000, 0xFFABCDEF, 0x03ABCDEF),
        (0x3, 0xF, 0xFFFFFFFF, 0xFFFFFFF3),
        (0x80000000, 0xFFFFFFFF, 7, 0x80000000),
    ],
)
def test_only_the_bits_of_the_mask_are_replaced(mark: int, mask: int, came: int, went: int) -> None:
    one = lab(mark, mask)
    worker = one.workers[0]
    error = icmp("192.0.2.1", "203.0.113.1", 3, 4, tcp(VIP, CLIENT, "A"))
    for packet, reason in ((tcp(CLIENT, VIP), "marked"), (tcp(CLIENT, VIP, "A"), "marked"), (error, "error_marked")):
        assert worker.process(packet, one.clock(), hook=PREROUTING, mark=came) == ("mark", reason, None)
        assert worker.mark == went


def test_a_mark_outside_its_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="inside its mask"):
        lab(0x300, 0xFF)
