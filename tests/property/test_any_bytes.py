"""Whatever the bytes are, they get a verdict that their reason explains, and parse sees what the model sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb._core.packet import view
from nfqlb._core.telemetry import REASON_NAMES
from nfqlb.testing import tcp, udp
from tests import model
from tests.core.lab import Lab, Virtual
from tests.property.packets import anything, changes, damage

pytestmark = pytest.mark.slow

LONGEST_UPTIME = 10 * 365 * 86_400 * 10**9  # nanoseconds; ticks of the core reach 13 years
CLIENT, VIP, REAL = "192.0.2.10:40000", "203.0.113.1:80", "10.0.0.2:8080"
SERVICES = (Virtual(VIP, {REAL: 1}), Virtual(VIP, {REAL: 1}, protocol="udp"), Virtual("[2001:db8::1]:80", {}))


@given(anything)
def test_parse_sees_what_the_model_sees(packet: bytes) -> None:
    seen, expected = view(packet), model.parse(packet)
    assert (seen.reason or "") == expected.reason
    if seen.reason is None:
        assert (seen.protocol, seen.transport, seen.length) == (expected.protocol, expected.transport, expected.end)
        assert (seen.source, seen.sport) == expected.source
        assert (seen.destination, seen.dport) == expected.destination


@given(
    st.lists(st.tuples(anything, st.integers(-1, 7), st.integers(0, 255), st.integers(0, 2**32 - 1)), max_size=5),
    st.integers(0, LONGEST_UPTIME),
)
def test_any_bytes_get_a_verdict(sent: list[tuple[bytes, int, int, int]], now: int) -> None:
    lab = Lab(*SERVICES, capacity=64)
    for packet, hook, flags, mark in sent:
        result = lab.workers[0].process(packet, now, hook=hook, flags=flags, mark=mark)
        assert result.reason in REASON_NAMES
        assert result.verdict == model.VERDICTS[result.reason]
        assert (result.packet is not None) == (result.verdict == "rewrite")
        assert result.packet is None or len(result.packet) == len(packet)
    assert lab.drain().packets == len(sent)


@given(st.sampled_from(["tcp", "udp"]), changes)
def test_a_damaged_packet_of_a_connection_gets_the_models_verdict(kind: str, changed: list[tuple[int, int]]) -> None:
    lab, slow = Lab(*SERVICES, capacity=64), model.Model(*SERVICES, capacity=64)
    make = tcp if kind == "tcp" else udp
    lab.send(make(CLIENT, VIP))
    slow.process(make(CLIENT, VIP), lab.clock())
    packet = damage(make(CLIENT, VIP), changed, 200, b"")
    assert lab.send(packet)[:2] == slow.process(packet, lab.clock())[:2]
    assert sorted(lab.connections()) == sorted(slow.connections(lab.clock()))
