"""The messages of a real kernel's sync daemon (Linux 6.1), recorded while known connections came and went."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest

from nfqlb._core.sync import Message, Record, decode, encode
from nfqlb.testing import endpoint

HERE = Path(__file__).parent
INACTIVE, TEMPLATE = 0x100, 0x1000
# a connection from 192.0.2.10:40000 to 203.0.113.1:80, with the real server 10.0.0.2:8080: NAT, ESTABLISHED
GOLDEN1 = "0007002c01010000000600240000000000019c4000501f900000000000000384c000020acb0071010a000002"
GOLDEN0 = "0107001c00069c4000501f90c000020acb0071010a00000200000001"


def datagrams(name: str) -> list[bytes]:
    """What a capture of Ethernet frames holds (libpcap, little endian)."""
    data, found = (HERE / name).read_bytes(), []
    assert (data[:4].hex(), struct.unpack_from("<I", data, 20)) == ("d4c3b2a1", (1,))
    at = 24
    while at < len(data):
        (length,) = struct.unpack_from("<8xI", data, at)
        frame, at = data[at + 16 : at + 16 + length], at + 16 + length
        if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == (8848).to_bytes(2, "big"):
            found.append(frame[42 : 34 + int.from_bytes(frame[38:40], "big")])
    return found


@pytest.mark.parametrize("version", [0, 1])
def test_what_a_kernel_sent_is_read_and_written_byte_for_byte(version: int) -> None:
    found = datagrams(f"sync-v{version}.pcap")
    assert found
    for datagram in found:
        message = decode(datagram)
        assert (message.version, message.id) == (version, 7)
        assert encode(message) == datagram


@pytest.mark.parametrize("version", [0, 1])
def test_what_a_kernel_sent_are_the_connections_that_there_were(version: int) -> None:
    records = [record for datagram in datagrams(f"sync-v{version}.pcap") for record in decode(datagram).records]
    first = 3100 if version else 3000
    ours = [record for record in records if record.vport in (first, first + 1)]
    kinds = {(one.protocol, bool(one.flags & TEMPLATE)) for one in ours}
    assert kinds == {(6, False), (6, True), (17, False), (17, True)}
    last = {(one.protocol, one.cport, one.vport): one for one in ours if not one.flags & TEMPLATE}
    states = Counter((key[0], one.state, one.flags & INACTIVE) for key, one in last.items())
    assert states == {(6, 1, 0): 10, (6, 5, INACTIVE): 2, (17, 0, INACTIVE): 4}, "held open, closed, datagrams"
    if version:
        assert {one.timeout for one in last.values()} == {800, 120, 200}, "as --set has it, and of TIME_WAIT"


@pytest.mark.parametrize(("golden", "timeout"), [(GOLDEN1, 900), (GOLDEN0, 0)])
def test_a_connection_has_the_bytes_that_the_kernel_gives_it(golden: str, timeout: int) -> None:
    client, virtual, server = endpoint("192.0.2.10:40000"), endpoint("203.0.113.1:80"), endpoint("10.0.0.2:8080")
    ends = client.address, 40000, virtual.address, 80, server.address, 8080
    message = Message(1 if timeout else 0, 7, [Record(6, *ends, 0, 1, timeout=timeout)])
    assert encode(message).hex() == golden
    assert decode(bytes.fromhex(golden)) == message
