"""Internet checksums against numbers worked out by hand, and the two ways to get one against each other."""

from __future__ import annotations

import pytest

from nfqlb._core.packet import checksum, checksum_update


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 1071, section 3: the words 0001 f203 f4f5 f6f7 sum to 2ddf0, folded ddf2
        (bytes.fromhex("0001f203f4f5f6f7"), 0x220D),
        (b"", 0xFFFF),
        (b"\x00", 0xFFFF),
        (b"\xff\xff", 0x0000),
        (b"\x12", 0xEDFF),  # an odd last byte is the high half of a word
        (b"\x12\x34\x56", 0x97CB),
        (b"\xff\xff" * 32767 + b"\xff", 0x00FF),  # 65,535 bytes, the longest packet
        # an IPv4 header with its checksum field zero
        (bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7"), 0xB861),
        (bytes.fromhex("45000073000040004011 b861 c0a80001c0a800c7"), 0x0000),
    ],
)
def test_sum_of_literal_bytes(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


def test_every_length_and_alignment_of_a_run() -> None:
    data = bytes(range(1, 68))
    for length in range(68):
        words = sum(data[0:length:2]) * 256 + sum(data[1:length:2])
        assert checksum(data[:length]) == 0xFFFF - words % 0xFFFF if length else 0xFFFF


@pytest.mark.parametrize(
    ("check", "old", "new", "expected"),
    [
        # RFC 1624, section 4: checksum dd2f, a word goes from 5555 to 3285, and the sum wraps to zero
        (0xDD2F, "5555", "3285", 0x0000),
        # the destination of the IPv4 header above goes from 192.168.0.199 to 10.0.0.2
        (0xB861, "c0a800c7", "0a000002", 0x6FCF),
        (0xB861, "c0a800c7", "c0a800c7", 0xB861),
        (0x0000, "0001", "0001", 0x0000),
        (0x0000, "0001", "0002", 0xFFFE),
        (0xFFFE, "0002", "0001", 0x0000),
    ],
)
def test_update_of_literal_words(check: int, old: str, new: str, expected: int) -> None:
    assert checksum_update(check, bytes.fromhex(old), bytes.fromhex(new)) == expected
