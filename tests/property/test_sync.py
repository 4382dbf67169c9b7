"""Sync messages: whatever is written is read again, and whatever comes is read within its bounds or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb._core.sync import Message, Record, decode, encode

PORTS, WORDS = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
SEQUENCE = 0x600
MAPPED = bytes(10) + b"\xff\xff"


@st.composite
def records(draw: st.DrawFn, version: int) -> Record:
    wide = version == 1 and draw(st.booleans())
    ends = [draw(st.binary(min_size=16, max_size=16)) for _ in range(3)]
    # the client's address tells the family
    addresses = [b"\x20" + end[1:] for end in ends] if wide else [MAPPED + end[:4] for end in ends]
    client, virtual, server = addresses
    sequence = draw(st.none() | st.tuples(*[WORDS] * 6))
    ports = [draw(PORTS) for _ in range(3)]
    flags = draw(PORTS) & ~SEQUENCE | (SEQUENCE if sequence else 0)
    one = Record(
        draw(st.integers(0, 255)), client, ports[0], virtual, ports[1], server, ports[2], flags, draw(PORTS)
    )._replace(sequence=sequence)
    if version == 0:
        return one
    data, name = draw(st.binary(max_size=255)), draw(st.binary(max_size=16))
    return one._replace(mark=draw(WORDS), timeout=draw(WORDS), data=data, name=name)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    version = draw(st.integers(0, 1))
    found = draw(st.lists(records(version), min_size=1, max_size=6))
    return Message(version, draw(st.integers(0, 255)), found)


@given(messages())
def test_what_is_written_is_read_again(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages(), st.data())
def test_a_message_that_was_cut_off_is_refused(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(ValueError, match="length"):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(messages(), st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_message_that_was_damaged_is_read_within_its_bounds_or_refused(
    message: Message, damage: list[tuple[int, int]]
) -> None:
    bytes_ = bytearray(encode(message))
    for at, bits in damage:
        bytes_[at % len(bytes_)] ^= bits
    try:
        found = decode(bytes(bytes_))
    except ValueError:
        return
    assert len(found.records) <= 255


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_of_the_right_length_are_read_or_refused(body: bytes, new: bool) -> None:
    size = (len(body) + 4).to_bytes(2, "big")
    datagram = (b"\0\7" + size + b"\3\1\0\0" + body[4:]) if new and len(body) >= 4 else b"\3\7" + size + body
    try:
        decode(datagram)
    except ValueError:
        return


def option(kind: int, data: bytes) -> bytes:
    return bytes((kind, len(data))) + data


BASE = bytes.fromhex("000600240000000000019c4000501f900000000000000384c000020acb0071010a000002")


def with_options(options: bytes, version: int = 0) -> bytes:
    record = bytearray(BASE + options)
    record[2:4] = (version << 12 | len(record)).to_bytes(2, "big")
    return b"\0\7" + (8 + len(record)).to_bytes(2, "big") + b"\1\1\0\0" + record


@pytest.mark.parametrize(
    "datagram",
    [
        with_options(b"", version=1),
        with_options(b"\1"),
        with_options(option(1, bytes(23))),
        with_options(option(1, bytes(24)) * 2),
        with_options(option(2, b"")),
        with_options(option(2, b"x") * 2),
        with_options(option(3, b"x" * 17)),
        with_options(b"\2\5abc"),
    ],
    ids=["record version", "half an option", "short sequence", "twice", "empty", "data twice", "long name", "cut off"],
)
def test_what_the_kernel_drops_is_dropped(datagram: bytes) -> None:
    """(ip_vs_proc_sync_conn)"""
    with pytest.raises(ValueError, match="it "):
        decode(datagram)


def test_an_unknown_option_costs_its_record_unless_it_may_be_ignored() -> None:
    assert decode(with_options(option(9, b"abc"))).records == []
    (record,) = decode(with_options(option(9 | 0x40, b"abc"))).records
    assert record.timeout == 900


def test_records_of_odd_length_begin_at_multiples_of_four() -> None:
    client = MAPPED + bytes((192, 0, 2, 10))
    one = Record(6, client, 1, client, 2, client, 3, 0, 1, 0, 60, None, b"abc", b"sip")
    datagram = encode(Message(1, 0, [one, one]))
    assert len(datagram) == 8 + 48 + 46, "46 bytes each; nothing behind the last one"
