"""Checksums brought along equal checksums summed up, and NAT there and back changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfqlb._core.forward import translate
from nfqlb._core.packet import checksum, checksum_update
from nfqlb.testing import FORWARD, NOT_READY, Endpoint, endpoint, tcp, udp
from tests import model
from tests.core.lab import Lab, Virtual
from tests.property.packets import End, ends, options, payloads

pytestmark = pytest.mark.slow


def build(kind: str, source: str, destination: str, payload: bytes, words: bytes, check: str = "right") -> bytes:
    if kind == "tcp":
        return tcp(source, destination, "PA", payload, options=words, check=check)  # type: ignore[arg-type]
    return udp(source, destination, payload, room=words, check=check)  # type: ignore[arg-type]


kinds = st.sampled_from(["tcp", "udp"])


@given(st.binary(min_size=2, max_size=200), st.integers(0, 99), st.binary(min_size=0, max_size=40))
def test_an_update_equals_a_sum(data: bytes, word: int, new: bytes) -> None:
    """Behind a first word that is not zero, as the length, version or protocol never is in what packets sum up."""
    data, new = b"\x45\x00" + data, new[: len(new) // 2 * 2]
    at = 2 + word % (len(data) // 2) * 2
    new = new[: max(0, (len(data) - at) // 2 * 2)]
    changed = data[:at] + new + data[at + len(new) :]
    assert checksum_update(checksum(data), data[at : at + len(new)], new) == checksum(changed)


@given(st.binary(max_size=300))
def test_the_sum_equals_the_models(data: bytes) -> None:
    assert checksum(data).to_bytes(2, "big") == model.ones_complement([data])


@given(kinds, ends(), payloads, options, st.sampled_from(["right", "unfinished"]))
def test_a_rewritten_packet_is_one_built_anew(kind: str, world: End, payload: bytes, words: bytes, check: str) -> None:
    client, vip, real = world
    flags = NOT_READY if check == "unfinished" else 0
    came = build(kind, client, vip, payload, words, check)
    assert translate(came, "destination", *endpoint(real), flags) == build(kind, client, real, payload, words)
    came = build(kind, real, client, payload, words, check)
    assert translate(came, "source", *endpoint(vip), flags) == build(kind, vip, client, payload, words)


@given(kinds, ends(), payloads, st.integers(1, 0xFFFE), st.sampled_from([0, 1, 2, 3, 4]))
@example("udp", ("192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"), b"", 1, 0)
def test_there_and_back_is_the_identity(kind: str, world: End, payload: bytes, check: int, flags: int) -> None:
    """Whatever the checksum was; an unfinished one comes back finished, and so it has to start."""
    client, vip, real = world
    packet = build(kind, client, vip, payload, b"")
    if not flags & NOT_READY:
        at = (20 if packet[0] >> 4 == 4 else 40) + (16 if kind == "tcp" else 6)
        packet = packet[:at] + check.to_bytes(2, "big") + packet[at + 2 :]
    there = translate(packet, "destination", *endpoint(real), flags)
    assert translate(there, "destination", *endpoint(vip), flags) == packet
    there = translate(packet, "source", *endpoint(real), flags)
    assert translate(there, "source", *endpoint(client), flags) == packet


@given(kinds, ends(), payloads, options)
def test_what_a_server_echoes_comes_back_from_the_vip(kind: str, world: End, payload: bytes, words: bytes) -> None:
    client, vip, real = world
    lab = Lab(Virtual(vip, {real: 1}, protocol=kind), capacity=64)
    if kind == "tcp":
        lab.send(tcp(client, vip, "S"))
    there = lab.send(build(kind, client, vip, payload, words))
    assert there == ("rewrite", "forwarded", build(kind, client, real, payload, words))
    back = lab.send(build(kind, real, client, payload, words), hook=FORWARD)
    assert back == ("rewrite", "returned", build(kind, vip, client, payload, words))
    assert Endpoint(*lab.connections()[0][1:3]) == endpoint(client)
