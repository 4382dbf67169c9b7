"""NAT, against literal bytes: what changes, what stays, and every checksum on the way."""

from __future__ import annotations

import pytest

from nfqlb._core.forward import translate
from nfqlb.testing import NOT_READY, NOT_VERIFIED, SUPER_PACKET, endpoint, tcp, udp

SERVER = endpoint("10.0.0.2:8080")
SYN = bytes.fromhex(
    "45000028 00014000 4006 3cc3 c000020a cb007101"  # IPv4
    "9c40 0050 000003e8 00000000 5002 faf0 166d 0000"  # TCP
)
SYN_TO_SERVER = bytes.fromhex(
    "45000028 00014000 4006 6ec3 c000020a 0a000002"  # destination and header checksum
    "9c40 1f90 000003e8 00000000 5002 faf0 292d 0000"  # port and checksum
)
SYN_UNFINISHED = SYN[:36] + bytes.fromhex("fe26") + SYN[38:]  # the sum of the pseudo header
DATAGRAM = bytes.fromhex("4500001f 00014000 4011 3cc1 c000020a cb007101  14e9 0035 000b 284b 616263")
DATAGRAM_TO_SERVER = bytes.fromhex("4500001f 00014000 4011 6ec1 c000020a 0a000002  14e9 1f90 000b 3af0 616263")


def with_checksum(packet: bytes, text: str) -> bytes:
    at = 36 if packet[9] == 6 else 26
    return packet[:at] + bytes.fromhex(text) + packet[at + 2 :]


@pytest.mark.parametrize("flags", [0, NOT_VERIFIED])
def test_tcp_checksum_is_updated(flags: int) -> None:
    assert translate(SYN, "destination", *SERVER, flags) == SYN_TO_SERVER


def test_reply_gets_the_vip_as_its_source() -> None:
    reply = bytes.fromhex(
        "45000028 00014000 4006 6ec3 0a000002 c000020a"
        "1f90 9c40 000007d0 000003e9 5012 faf0 214c 0000"
    )  # fmt: skip
    assert translate(reply, "source", *endpoint("203.0.113.1:80")) == bytes.fromhex(
        "45000028 00014000 4006 3cc3 cb007101 c000020a"
        "0050 9c40 000007d0 000003e9 5012 faf0 0e8c 0000"
    )  # fmt: skip


def test_unfinished_checksum_is_computed_whole() -> None:
    assert translate(SYN_UNFINISHED, "destination", *SERVER, NOT_READY) == SYN_TO_SERVER


@pytest.mark.parametrize("flags", [SUPER_PACKET, SUPER_PACKET | NOT_READY])
def test_super_packet_keeps_the_checksum_that_the_kernel_will_redo(flags: int) -> None:
    assert translate(SYN_UNFINISHED, "destination", *SERVER, flags) == with_checksum(SYN_TO_SERVER, "fe26")


def test_wrong_checksum_stays_wrong_by_as_much() -> None:
    assert translate(with_checksum(SYN, "166e"), "destination", *SERVER) == with_checksum(SYN_TO_SERVER, "292e")


def test_udp_of_odd_length() -> None:
    assert translate(DATAGRAM, "destination", *SERVER) == DATAGRAM_TO_SERVER
    assert translate(with_checksum(DATAGRAM, "fe28"), "destination", *SERVER, NOT_READY) == DATAGRAM_TO_SERVER


def test_udp_without_a_checksum_gets_none() -> None:
    assert translate(with_checksum(DATAGRAM, "0000"), "destination", *SERVER) == with_checksum(
        DATAGRAM_TO_SERVER, "0000"
    )


@pytest.mark.parametrize("flags", [0, NOT_READY])
def test_udp_checksum_that_comes_out_as_zero_is_written_as_ones(flags: int) -> None:
    # the payload is the checksum of the datagram with zeros in its place, so the new sum is zero
    came = bytes.fromhex("4500001e 00014000 4011 3cc2 c000020a cb007101  14e9 0035 000a ed5a ff54")
    goes = bytes.fromhex("4500001e 00014000 4011 6ec2 c000020a 0a000002  14e9 1f90 000a ffff ff54")
    assert translate(came, "destination", *SERVER, flags) == goes


def test_udp_checksum_covers_the_datagram_and_not_the_room_behind_it() -> None:
    came = udp("192.0.2.10:5353", "203.0.113.1:53", b"abc", room=b"more", check="unfinished")
    goes = udp("192.0.2.10:5353", "10.0.0.2:8080", b"abc", room=b"more")
    assert translate(came, "destination", *SERVER, NOT_READY) == goes


def test_ipv6_has_no_header_checksum() -> None:
    came = bytes.fromhex(
        "60000000 0014 06 40 20010db8000000000000000000000010 20010db8000000000000000000000001"
        "9c40 01bb 00000001 00000002 5010 0400 b253 0000"
    )
    goes = bytes.fromhex(
        "60000000 0014 06 40 20010db8000000000000000000000010 fd000000000000000000000000000002"
        "9c40 20fb 00000001 00000002 5010 0400 c3ca 0000"
    )
    assert translate(came, "destination", *endpoint("[fd00::2]:8443")) == goes


def test_bytes_behind_the_packet_stay() -> None:
    assert translate(SYN + b"padding", "destination", *SERVER) == SYN_TO_SERVER + b"padding"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1459, 1460, 65495])
@pytest.mark.parametrize("check", ["right", "unfinished"])
def test_payloads_of_every_alignment(length: int, check: str) -> None:
    payload = bytes(at % 251 for at in range(length))
    came = tcp("192.0.2.10:40000", "203.0.113.1:80", "PA", payload, check=check)  # type: ignore[arg-type]
    goes = tcp("192.0.2.10:40000", "10.0.0.2:8080", "PA", payload)
    assert translate(came, "destination", *SERVER, NOT_READY if check == "unfinished" else 0) == goes


@pytest.mark.parametrize(
    ("packet", "end", "address"),
    [(SYN[:39], "source", SERVER.address), (SYN, "both", SERVER.address), (SYN, "source", b"\x0a\0\0\2")],
)
def test_what_cannot_be_translated_is_refused(packet: bytes, end: str, address: bytes) -> None:
    with pytest.raises(ValueError):
        translate(packet, end, address, 80)
