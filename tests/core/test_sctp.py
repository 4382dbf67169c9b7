"""SCTP: chunks, the whole table of states by real packets, timeouts, checksums, and what begins, ends and is refused.

Bytes are made by nfqlb.testing, whose CRC goes bit by bit; scapy sums them up for a second opinion.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP

from nfqlb._core.forward import translate
from nfqlb._core.packet import view
from nfqlb._core.tracking import ASSOCIATION_NAMES, ASSOCIATION_TIMEOUTS, ASSOCIATIONS
from nfqlb.api.schema import SCTP_STATES
from nfqlb.testing import FORWARD, NOT_READY, SUPER_PACKET, crc32c, endpoint, icmp, sctp, tcp
from tests.core.associations import CLIENT_ONLY, EVENTS, FROM_CLIENT, FROM_SERVER, LONG, SECONDS, SHORT, WAYS, after
from tests.core.lab import CLIENT, REAL, VIP, Lab, Policy, Timeouts, Virtual

VIRTUAL = Virtual(VIP, {REAL: 1}, protocol="sctp")
TWO = Virtual(VIP, {REAL: 1, "10.0.0.3:8080": 1}, protocol="sctp")
DIRECT = Virtual(VIP, {"10.0.0.2:80": 1}, protocol="sctp", mode="dr")
CHUNKS = {"data": ("DATA", bytes(16)), **{event: (chunk, bytes(4)) for event, chunk in EVENTS.items()}}
# events in the order of the kernel's enumeration (ipvs_sctp_event_t)
ORDER = [*CHUNKS]


def request(*chunks: Any, client: str = CLIENT, vip: str = VIP, **more: Any) -> bytes:
    return sctp(client, vip, chunks, **more)


def reply(*chunks: Any, **more: Any) -> bytes:
    return sctp(REAL, CLIENT, chunks, **more)


def is_sound(packet: bytes) -> bool:
    """Whether scapy finds the same CRC."""
    layer = (IP if packet[0] >> 4 == 4 else IPv6)(packet)
    found = layer[SCTP].chksum
    layer[SCTP].chksum = None
    return bool(type(layer)(bytes(layer))[SCTP].chksum == found)


# -- bytes


def test_bytes_of_an_init() -> None:
    packet = bytes.fromhex(
        "45000034000140004084a1a6" "c000020acb007101"
        "9c400050" "00000000" "60fa4a3d"
        "01000014" "01020304" "00010000" "000a000a" "00000001"
    )  # fmt: skip
    ours = request("INIT")
    assert ours[20:28] == packet[20:28]
    assert ours[32:] == packet[32:]
    assert is_sound(ours)
    seen = view(ours)
    assert (seen.reason, seen.protocol, seen.sport, seen.dport, seen.segment, seen.chunk) == (
        None,
        132,
        40000,
        80,
        0,
        1,
    )


@pytest.mark.parametrize(
    ("chunks", "event"),
    [
        *((chunk, ORDER.index(event)) for event, chunk in CHUNKS.items()),
        *((name, 0) for name in ("SACK", "HEARTBEAT", "HEARTBEAT ACK", "ECNE", "CWR")),
    ],
)
def test_a_chunk_is_an_event(chunks: Any, event: int) -> None:
    assert view(request(chunks)).chunk == event


@pytest.mark.parametrize(
    ("chunks", "event"),
    [
        ([("COOKIE ECHO", bytes(5)), "ABORT"], "abort"),
        (["COOKIE ACK", "ABORT"], "abort"),
        (["COOKIE ECHO", "DATA"], "cookie echo"),
        (["COOKIE ECHO", "DATA", "ABORT"], "cookie echo"),
        (["DATA", "ABORT"], "data"),
        (["SHUTDOWN", "ABORT"], "shutdown"),
    ],
)
def test_an_abort_behind_a_cookie_counts(chunks: Any, event: str) -> None:
    assert view(request(*chunks)).chunk == ORDER.index(event)


def test_chunks_that_end_badly() -> None:
    whole = request(("COOKIE ECHO", bytes(4)), "ABORT")
    cut = whole[:2] + struct.pack("!H", len(whole) - 1) + whole[4:-1]
    assert view(cut).chunk == ORDER.index("cookie echo"), "the ABORT's header is not all there"
    for length in (0, 3, 0xFFFF):
        assert view(whole[:34] + struct.pack("!H", length) + whole[36:]).chunk == ORDER.index("cookie echo")
    assert view(request(("DATA", b""))[:32] + b"\x40" + bytes(3)).chunk == 0  # no chunk that anybody knows
    short = request()
    assert (len(short), view(short).reason) == (32, "malformed")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 255, 256, 1400, 9000, 60000])
@pytest.mark.parametrize("end", ["source", "destination"])
def test_a_checksum_is_brought_along(end: str, length: int) -> None:
    packet = request(("DATA", bytes(range(256)) * (length // 256) + bytes(length % 256)))
    new = translate(packet, end, endpoint("10.0.0.2:1").address, 54321)
    assert crc32c(new[20:28] + bytes(4) + new[32:]) == int.from_bytes(new[28:32], "little")
    assert new[20:24] == (struct.pack("!HH", 54321, 80) if end == "source" else struct.pack("!HH", 40000, 54321))
    assert new[32:] == packet[32:]
    assert length > 2000 or is_sound(new)


def test_a_checksum_that_is_wrong_stays_wrong_and_none_stays_none() -> None:
    packet = bytearray(request(("DATA", b"payload!")))
    packet[-1] ^= 1
    new = translate(bytes(packet), "destination", endpoint("10.0.0.2:1").address, 8080)
    assert not is_sound(new)
    new = bytearray(new)
    new[-1] ^= 1
    assert is_sound(bytes(new))
    none = request(("DATA", b"payload!"), check="none")
    assert translate(none, "destination", endpoint("10.0.0.2:1").address, 8080)[28:32] == bytes(4)


def test_the_same_port_leaves_the_checksum_alone() -> None:
    packet = request("INIT")
    assert translate(packet, "destination", endpoint("10.0.0.2:1").address, 80)[20:] == packet[20:]


def test_an_unfinished_checksum_is_finished_and_a_super_packets_is_not() -> None:
    packet = request(("DATA", b"odd"), check="unfinished")
    for port in (80, 8080):
        assert is_sound(translate(packet, "destination", endpoint("10.0.0.2:1").address, port, NOT_READY))
    flags = NOT_READY | SUPER_PACKET
    assert translate(packet, "destination", endpoint("10.0.0.2:1").address, 8080, flags)[28:32] == bytes(4)


@pytest.mark.parametrize("name", ["nat", "tun"])
def test_ipv6(name: str) -> None:
    client, vip, real = "[2001:db8:1::10]:40000", "[2001:db8::1]:80", "[fd00::2]:80"
    lab = Lab(Virtual(vip, {real: 1}, protocol="sctp", mode=name))
    result = lab.send(request("INIT", client=client, vip=vip))
    assert result.packet is not None
    assert result.reason == ("forwarded" if name == "nat" else "tunnelled")
    assert is_sound(result.packet[40:] if name == "tun" else result.packet)


def test_dr_sends_the_same_bytes_one_hop_older() -> None:
    lab = Lab(DIRECT)
    packet = request("INIT")
    result = lab.send(packet)
    assert result.packet is not None
    assert (result.reason, result.packet[8], result.packet[12:]) == ("routed", packet[8] - 1, packet[12:])
    assert lab.send(request("DATA", check="unfinished"), flags=NOT_READY).reason == "routed"


# -- states


def lab_in_state(folder: Path, state: str, virtual: Virtual = VIRTUAL) -> Lab:
    """A lab with one association, that is in this state and has a day to live."""
    with (folder / "table").open("w+b") as file:
        lab = Lab(virtual, capacity=64, fd=file.fileno())
        lab.send(request("INIT"))
        clock = lab.clock
        del lab
        with mmap.mmap(file.fileno(), 0) as memory:
            at = memory.find(struct.pack("=HH", 40000, 80), 4096 + 1024 * 48) + 12
            assert struct.unpack_from("=I", memory, at)[0] & 0xFFFF == 0x0101, "a live association in INIT1"
            inactive = 0 if state == "ES" else 0x10000
            struct.pack_into("=II", memory, at, 1 | SHORT.index(state) << 8 | inactive, clock() // 10**8 + 864_000)
        lab = Lab(virtual, capacity=64, fd=file.fileno(), clock=clock)
    assert (lab.table.adopted, lab.state()) == (1, (LONG[state], 86_400))
    return lab


def test_listings_name_the_states_as_the_core_does() -> None:
    assert SCTP_STATES == ASSOCIATION_NAMES == tuple(LONG.values())


def test_the_table_is_the_kernels() -> None:
    assert list(ASSOCIATIONS) == list(WAYS)
    for way, rows in ASSOCIATIONS.items():
        assert list(rows) == ORDER
        for event, cells in rows.items():
            assert cells.split() == [after(way, event, state) for state in SHORT], (way, event)
    assert dict(zip(SHORT, ASSOCIATION_TIMEOUTS, strict=True)) == SECONDS


@pytest.mark.parametrize("state", SHORT)
@pytest.mark.parametrize("way", WAYS)
def test_every_cell_by_a_packet(tmp_path: Path, way: str, state: str) -> None:
    """But for an INIT that finds the association over: it begins another, with one more in its place."""
    virtual = DIRECT if way == "client only" else VIRTUAL
    real = next(iter(virtual.reals))
    for event, chunk in CHUNKS.items():
        lab = lab_in_state(tmp_path, state, virtual)
        assert lab.load(real, protocol="sctp") == ((1, 0) if state == "ES" else (0, 1))
        if way == "from server":
            assert lab.send(reply(chunk), hook=FORWARD).reason == "returned"
        else:
            assert lab.send(request(chunk)).reason == ("routed" if way == "client only" else "forwarded")
        new = "I1" if (event, state) == ("init", "CL") and way != "from server" else after(way, event, state)
        assert lab.state() == (LONG[new], SECONDS[new]), event
        assert lab.load(real, protocol="sctp") == ((1, 0) if new == "ES" else (0, 1))


C, S = "from client", "from server"
LIVES = {
    "client shuts down": [
        (C, "init", "I1"), (S, "init ack", "CS"), (C, "cookie echo", "CR"), (S, "cookie ack", "ES"),
        (C, "data", "ES"), (S, "data", "ES"), (C, "shutdown", "SR"), (S, "shutdown ack", "SA"),
        (C, "shutdown complete", "CL"),
    ],
    "server shuts down": [
        (C, "init", "I1"), (S, "init ack", "CS"), (C, "cookie echo", "CR"), (S, "cookie ack", "ES"),
        (S, "shutdown", "SS"), (C, "shutdown ack", "CL"), (S, "shutdown complete", "CL"),
    ],
    "server refuses": [(C, "init", "I1"), (S, "abort", "RJ")],
    "lost answer": [(C, "init", "I1"), (C, "init", "IN"), (S, "init ack", "CS"), (C, "abort", "CL")],
}  # fmt: skip


@pytest.mark.parametrize("life", LIVES)
def test_life_of_an_association(life: str) -> None:
    lab = Lab(VIRTUAL)
    for way, event, state in LIVES[life]:
        packet = reply(CHUNKS[event]) if way == S else request(CHUNKS[event])
        assert lab.send(packet, hook=FORWARD if way == S else 0).reason == ("returned" if way == S else "forwarded")
        assert lab.state() == (LONG[state], SECONDS[state])
        lab.clock.advance(1)


def test_dr_sees_half_of_it() -> None:
    lab = Lab(DIRECT)
    for event, state in (("init", "I1"), ("cookie echo", "ES"), ("data", "ES"), ("shutdown", "SR"), ("abort", "CL")):
        assert lab.send(request(CHUNKS[event])).reason == "routed"
        assert lab.state() == (LONG[state], SECONDS[state])
    assert (CLIENT_ONLY["cookie echo"]["I1"], FROM_CLIENT["cookie echo"]["I1"]) == ("ES", "IN")
    assert FROM_SERVER["shutdown"]["ES"] == "SS"


def test_every_timeout_can_be_set(tmp_path: Path) -> None:
    fields = {field: at for at, field in enumerate(Timeouts._fields) if field.startswith("sctp")}
    states = [state for state in SHORT if state != "ES"]
    assert len(fields) == len(SHORT)
    for field, state in zip([*(name for name in fields if name != "sctp"), "sctp"], [*states, "ES"], strict=True):
        lab = lab_in_state(tmp_path, state)
        lab.configure(VIRTUAL, timeouts=Timeouts(**{field: 77}))
        lab.send(request("SACK"))
        assert lab.state() == ((LONG[state], 77) if state != "NO" else ("ESTABLISHED", 900)), field
    own = VIRTUAL._replace(timeouts=(*(0 for _ in range(fields["sctp_init1"])), 9))
    lab = Lab(own)
    lab.send(request("INIT"))
    assert lab.state() == ("INIT1", 9)


# -- beginnings and endings


@pytest.mark.parametrize("event", [event for event in CHUNKS if event != "init"])
def test_only_an_init_begins_an_association(event: str) -> None:
    lab = Lab(VIRTUAL)
    assert lab.send(request(CHUNKS[event])).reason == "no_connection"
    lab.configure(VIRTUAL, policy=Policy(sloppy_sctp=True))
    assert lab.send(request(CHUNKS[event])).reason == ("no_connection" if event == "abort" else "forwarded")
    assert lab.table.used == (event != "abort")


@pytest.mark.parametrize(("mode", "moved"), [(0, False), (1, True), (3, True)])
def test_an_init_on_a_closed_association_is_scheduled_anew(mode: int, moved: bool) -> None:
    lab = Lab(TWO, policy=Policy(conn_reuse_mode=mode))
    first = lab.send(request("INIT")).packet
    lab.send(request("ABORT"))
    assert lab.state() == ("CLOSED", 61)
    second = lab.send(request("INIT")).packet
    assert first is not None
    assert second is not None
    assert (first[16:20] != second[16:20]) == moved
    assert lab.state() == (("INIT1", 4) if moved else ("INIT", 61))


def test_an_init_on_an_open_association_stays() -> None:
    lab = Lab(TWO)
    first = lab.send(request("INIT")).packet
    second = lab.send(request("INIT")).packet
    assert first is not None
    assert second is not None
    assert first[16:20] == second[16:20]


def test_of_a_server_that_is_gone() -> None:
    lab = Lab(TWO)
    lab.send(request("INIT"))
    lab.configure(VIRTUAL._replace(reals={REAL: 1}))
    lab.send(request("INIT"))  # it went to the newest one, which is gone
    assert lab.load(REAL, protocol="sctp") == (0, 1)
    lab.configure(VIRTUAL._replace(reals={"10.0.0.3:8080": 1}))
    assert lab.send(request("DATA")).reason == "server_gone"
    lab.configure(VIRTUAL._replace(reals={"10.0.0.3:8080": 1}), policy=Policy(expire_nodest_conn=True))
    assert lab.send(request("DATA")).reason == "no_connection"


def aborts(lab: Lab) -> tuple[int, int, bytes]:
    """(chunk, flags, tag) of the only packet that was sent back to the client; its checksum is right."""
    (answer,) = lab.workers[0].outgoing()
    assert is_sound(answer)
    assert (answer[9], answer[12:20], answer[20:24]) == (132, request()[16:20] + request()[12:16], b"\0\x50\x9c\x40")
    assert answer[34:] == b"\0\4"
    return answer[32], answer[33], answer[24:28]


def test_what_nobody_takes_is_aborted_where_that_is_asked_for() -> None:
    """RFC 9260, 8.4: with the tag of the INIT, else with its own and the T bit; what ends anyway gets no answer."""
    lab = Lab(VIRTUAL._replace(reals={REAL: 0}), policy=Policy("reset", "reset"))
    assert lab.send(request("INIT")).reason == "no_server"
    assert aborts(lab) == (6, 0, bytes.fromhex("01020304"))
    assert lab.send(request("DATA", tag=0x0A0B0C0D)).reason == "refused"
    assert aborts(lab) == (6, 1, bytes.fromhex("0a0b0c0d"))
    assert lab.send(request("SHUTDOWN ACK", tag=7)).reason == "refused"
    assert aborts(lab) == (14, 1, bytes.fromhex("00000007"))
    for chunk in ("ABORT", "SHUTDOWN COMPLETE", "COOKIE ACK", ("INIT", b"")):
        lab.send(request(chunk))
        assert lab.workers[0].outgoing() == [], chunk
    lab.configure(VIRTUAL._replace(reals={REAL: 0}))
    assert lab.send(request("INIT")).reason == "no_server"
    (answer,) = lab.workers[0].outgoing()
    assert (answer[9], answer[20:22]) == (1, b"\3\3"), "port unreachable, as the kernel says it"


def test_a_server_that_is_down_with_reset() -> None:
    lab = Lab(VIRTUAL)
    lab.send(request("INIT"))
    lab.configure(VIRTUAL._replace(reals={"10.0.0.9:80": 1}), gone=[lab.slots["sctp", VIP, REAL]], fate="reset")
    assert lab.send(request("DATA", tag=9)).reason == "server_down"
    assert aborts(lab) == (6, 1, bytes.fromhex("00000009"))
    assert lab.state() == ("CLOSED", 61) or lab.state() == ("REJECTED", 4)


def test_persistence_and_its_answered_template() -> None:
    lab = Lab(TWO._replace(persistence=60))
    for port in (40000, 40001, 40002):
        client = f"192.0.2.10:{port}"
        lab.send(request("INIT", client=client))
        lab.send(request(("COOKIE ECHO", bytes(4)), client=client))
    templates = [row for row in lab.connections() if row.template]
    assert [(row.protocol, row.state) for row in templates] == [(132, 0)]
    server = templates[0].server
    assert {row.server for row in lab.connections()} == {server}
    real = next(real for real in TWO.reals if endpoint(real).address == server)
    lab.send(sctp(real, CLIENT, "COOKIE ACK"), hook=FORWARD)
    assert [row.state for row in lab.connections() if row.template] == [1]


def test_icmp_about_it() -> None:
    lab = Lab(VIRTUAL)
    sent = lab.send(request("INIT")).packet
    assert sent is not None
    error = icmp("10.0.0.2", "192.0.2.10", 3, 2, sent[:28])
    result = lab.send(error, hook=FORWARD)
    assert result.reason == "error_returned"
    assert result.packet is not None
    assert result.packet[28 + 16 : 28 + 20] == request()[16:20]
    assert result.packet[28 + 20 : 28 + 24] == request()[20:24]


def test_ports_of_tcp_and_sctp_are_apart() -> None:
    lab = Lab(VIRTUAL, Virtual(VIP, {"10.0.0.7:80": 1}))
    assert lab.send(request("INIT")).reason == "forwarded"
    assert lab.send(tcp(CLIENT, VIP)).reason == "forwarded"
    assert {(row.protocol, row.server[12:]) for row in lab.connections()} == {(132, b"\n\0\0\2"), (6, b"\n\0\0\7")}


def test_a_range_of_ports_and_a_mark() -> None:
    lab = Lab(Virtual("203.0.113.1:1000", {"10.0.0.2:0": 1}, protocol="sctp", last=1100))
    result = lab.send(request("INIT", vip="203.0.113.1:1044"))
    assert result.packet is not None
    assert result.packet[22:24] == struct.pack("!H", 1044)
    lab = Lab(Virtual("0.0.0.0:0", {"10.0.0.2:0": 1}, protocol="tcp", mark=7))
    assert lab.send(request("INIT"), mark=7).reason == "forwarded"


def test_drop_entry_ends_what_never_came_about(tmp_path: Path) -> None:
    """INIT1 and INIT go, other states stay (ip_vs_random_dropentry)."""
    for state in SHORT:
        lab = lab_in_state(tmp_path, state)
        lab.configure(VIRTUAL, policy=Policy(drop_entry=3))
        assert lab.datapath.defend(lab.clock()) == (state in ("I1", "IN")), state
