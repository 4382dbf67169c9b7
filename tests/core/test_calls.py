"""The SIP persistence engine: datagrams of one call stay together, whoever of them comes from which port."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import Lab, Virtual

SIP = "203.0.113.1:5060"
REALS = {f"10.0.0.{at}:5060": 1 for at in range(1, 4)}
PLAIN = Virtual(SIP, REALS, "rr", "udp", persistence=300, by_call=True)
PHONE = "192.0.2.1:5060"


def invite(call: bytes, name: bytes = b"Call-ID: ", end: bytes = b"\r\n") -> bytes:
    return b"INVITE sip:b@example.com SIP/2.0\r\nVia: SIP/2.0/UDP pc33\r\n" + name + call + end


def server(lab: Lab, client: str, payload: bytes) -> int:
    """The last byte of the address of the real server that gets it."""
    result = lab.send(udp(client, SIP, payload))
    assert result.packet is not None, result
    return result.packet[19]


def test_a_call_stays_with_its_server_and_each_of_a_phones_calls_may_have_another() -> None:
    lab = Lab(PLAIN)
    calls = [f"{at}f81d4fae@foo.bar.com".encode() for at in range(6)]
    first = {call: server(lab, f"192.0.2.1:{6000 + at}", invite(call)) for at, call in enumerate(calls)}
    assert Counter(first.values()) == {1: 2, 2: 2, 3: 2}
    for at, call in enumerate(calls):  # from other ports, with other headers, in another order
        assert server(lab, f"192.0.2.1:{7000 - at}", invite(call, b"From: a\r\ni:")) == first[call]
    assert sum(row.template for row in lab.connections()) == 6


def test_calls_of_others_with_the_same_id_are_others() -> None:
    """The kernel compares the client's address, too (ip_vs_sip_ct_match)."""
    lab = Lab(PLAIN)
    assert {server(lab, f"192.0.2.{at}:5060", invite(b"same@host")) for at in range(1, 4)} == {1, 2, 3}
    lab = Lab(PLAIN._replace(mask=b"\xff" * 15 + b"\0"))
    assert len({server(lab, f"192.0.2.{at}:5060", invite(b"same@host")) for at in range(1, 4)}) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"Call-ID: in@the.first.line\r\n",
        invite(b""),
        invite(b"cut@off", end=b""),
        invite(b"no.line.end@x", end=b" "),
        invite(b"host.is.empty@"),
        invite(b"x" * 256),
        invite(b"none@x", b"Call-IDs: "),
        invite(b"none@x", b"ix: "),
        invite(b"none@x", b" Call-ID: "),
        invite(b"none@x", b"Call-ID "),
    ],
)
def test_without_a_call_id_there_is_no_call(payload: bytes) -> None:
    lab = Lab(PLAIN)
    result = lab.send(udp(PHONE, SIP, payload))
    assert (result.verdict, result.reason) == ("drop", "no_call_id")
    assert lab.connections() == []


@pytest.mark.parametrize(
    ("call", "name", "end"),
    [
        (b"a84b4c76e66710@pc33.atlanta.com", b"CALL-ID :  ", b"\r\n"),
        (b"1", b"i: ", b"\n"),
        (b"x" * 255, b"Call-ID:", b"\r"),
        (b"<{[(!'%*_+`~)]}>?:/\\\"-.@x", b"I:\t", b"\r\n"),
        (b"late@x", b"Call-ID: \r\nCall-ID: ", b"\r\n"),
    ],
)
def test_ways_to_write_one(call: bytes, name: bytes, end: bytes) -> None:
    lab = Lab(PLAIN)
    first = server(lab, PHONE, invite(call, name, end))
    assert [server(lab, f"192.0.2.1:{at}", invite(call)) for at in (7001, 7002, 7003)] == [first] * 3


def test_a_dialogue_goes_on_when_its_connection_exists_and_answers_come_back() -> None:
    lab = Lab(PLAIN)
    real = server(lab, PHONE, invite(b"one@x"))
    answer = lab.send(udp(f"10.0.0.{real}:5060", PHONE, b"SIP/2.0 200 OK\r\n"), hook=FORWARD)
    assert answer.reason == "returned"
    assert server(lab, PHONE, b"no header at all") == real, "it is of a connection that is there"


def test_by_a_mark_other_protocols_have_no_calls() -> None:
    lab = Lab(Virtual("0.0.0.0:0", {"10.0.0.1:0": 1}, "rr", mark=7, persistence=300, by_call=True))
    assert lab.send(tcp(PHONE, SIP), mark=7).reason == "no_call_id"
    assert lab.send(udp(PHONE, SIP, invite(b"a@b")), mark=7).reason == "forwarded"


def test_a_call_is_still_known_after_a_crash(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "file"
    with path.open("w+b") as file:
        lab = Lab(PLAIN, fd=file.fileno())
        real = {call: server(lab, PHONE.replace("5060", str(6000 + call)), invite(b"%d@x" % call)) for call in range(5)}
        again = Lab(PLAIN, fd=file.fileno(), clock=lab.clock)
        assert (again.table.adopted, again.table.torn) == (10, 0)
        assert {
            call: server(again, PHONE.replace("5060", str(7000 + call)), invite(b"%d@x" % call))
            for call in reversed(range(5))  # in the same order, a scheduler that begins anew would choose the same
        } == real
        assert again.table.used == 15, "five templates, and two flows by each"


def test_a_table_without_its_key_has_lost_its_calls_and_nothing_else(tmp_path: Path) -> None:
    """A file that an older build wrote, which had another key at each start."""
    with (tmp_path / "table").open("w+b") as file:
        lab = Lab(PLAIN, fd=file.fileno())
        server(lab, PHONE, invite(b"one@x"))
        file.seek(32)
        file.write(bytes(16))
        file.flush()
        again = Lab(PLAIN, fd=file.fileno(), clock=lab.clock)
        assert [row.template for row in again.connections()] == [False]
        real = server(again, PHONE, b"of the connection that is there")
        assert server(again, "192.0.2.1:7000", invite(b"two@x")) != 0
        third = Lab(PLAIN, fd=file.fileno(), clock=lab.clock)
        assert (third.table.adopted, third.table.torn) == (3, 0), "it has a key from now on"
        assert server(third, PHONE, b"still there") == real
