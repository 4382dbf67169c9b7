"""TCP states: every cell of the table through real packets, life cycles, and how long a connection may be silent.

A state that no packet leads to is written into the table's file, as if a predecessor had left it there.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import msgspec
import pytest

from nfqlb import model
from nfqlb._core.tracking import ASSOCIATION_TIMEOUTS, STATE_NAMES, TIMEOUT_KINDS, TIMEOUTS, TRANSITIONS
from nfqlb.api.schema import TCP_STATES
from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import CLIENT, REAL, TICK, VIP, Lab, Timeouts, Virtual

SHORT = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"]
LONG = dict(zip(SHORT, STATE_NAMES, strict=True))
SECONDS = {"NO": 2, "ES": 900, "SS": 120, "SR": 60, "FW": 120, "TW": 120, "CL": 10, "CW": 60, "LA": 30, "LI": 120}
SECONDS["SA"] = 120
NANOSECONDS = 10**8  # of a tick
ACTIVE = {"ES", "SS", "SR", "SA"}
# net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_states; columns as in SHORT
CELLS = {
    ("from client", "syn"): "SR ES ES SR SR SR SR SR SR SR SR",
    ("from client", "fin"): "CL CW SS TW TW TW CL CW LA LI TW",
    ("from client", "ack"): "ES ES SS ES FW TW CL CW CL LI ES",
    ("from client", "rst"): "CL CL CL SR CL CL CL CL LA LI SR",
    ("from server", "syn"): "SS ES SS SR SS SS SS SS SS LI SR",
    ("from server", "fin"): "TW FW SS TW FW TW CL TW LA LI TW",
    ("from server", "ack"): "ES ES SS ES FW TW CL CW LA ES ES",
    ("from server", "rst"): "CL CL SS CL CL TW CL CL CL CL CL",
    ("client only", "syn"): "SR ES ES SR SR SR SR SR SR SR SR",
    ("client only", "fin"): "CL FW SS TW FW TW CL CW LA LI TW",
    ("client only", "ack"): "ES ES SS ES FW TW CL CW CL LI ES",
    ("client only", "rst"): "CL CL CL SR CL CL CL CL LA LI CL",
}
SEGMENTS = {"syn": "S", "fin": "FA", "ack": "A", "rst": "RA"}
VIRTUAL = Virtual(VIP, {REAL: 1})


def lab_in_state(folder: Path, state: str) -> Lab:
    """A lab with one connection, that is in this state and has a day to live."""
    path = folder / "table"
    with path.open("w+b") as file:
        lab = Lab(VIRTUAL, capacity=64, fd=file.fileno())
        lab.send(tcp(CLIENT, VIP, "S"))
        clock = lab.clock
        del lab
        with mmap.mmap(file.fileno(), 0) as memory:
            end = struct.pack("=IHH", 0, 40000, 80)  # past the addresses: client port, VIP port
            at = memory.find(end[4:], 4096 + 1024 * 48) + 12
            word, _ = struct.unpack_from("=II", memory, at)
            assert word & 0xFFFF == 0x0301, "a live connection in SYN_RECV"
            inactive = 0 if state in ACTIVE else 0x10000
            expires = clock() // NANOSECONDS + 864_000
            struct.pack_into("=II", memory, at, 1 | SHORT.index(state) << 8 | inactive, expires)
        lab = Lab(VIRTUAL, capacity=64, fd=file.fileno(), clock=clock)
    assert lab.table.adopted == 1
    assert lab.state() == (LONG[state], 86_400)
    return lab


def send(lab: Lab, direction: str, segment: str) -> None:
    if direction == "from server":
        assert lab.send(tcp(REAL, CLIENT, segment), hook=FORWARD).reason == "returned"
    else:
        assert lab.send(tcp(CLIENT, VIP, segment)).reason == "forwarded"


def test_listings_name_the_states_as_the_core_does() -> None:
    assert TCP_STATES == STATE_NAMES


def test_the_table_is_the_kernels() -> None:
    ours = {(way, row): " ".join(cells.split()) for way, rows in TRANSITIONS.items() for row, cells in rows.items()}
    assert ours == CELLS
    assert list(TRANSITIONS) == ["from client", "from server", "client only"]
    assert all(list(rows) == ["syn", "fin", "ack", "rst"] for rows in TRANSITIONS.values())
    assert dict(zip(SHORT, TIMEOUTS, strict=True)) == SECONDS


@pytest.mark.parametrize("column", SHORT)
@pytest.mark.parametrize(("direction", "row"), [key for key in CELLS if key[0] != "client only"])
def test_every_cell_by_a_packet(tmp_path: Path, direction: str, row: str, column: str) -> None:
    lab = lab_in_state(tmp_path, column)
    assert lab.load(REAL) == ((1, 0) if column in ACTIVE else (0, 1))
    send(lab, direction, SEGMENTS[row])
    after = CELLS[direction, row].split()[SHORT.index(column)]
    assert lab.state() == (LONG[after], SECONDS[after])
    assert lab.load(REAL) == ((1, 0) if after in ACTIVE else (0, 1))


@pytest.mark.parametrize("state", SHORT)
@pytest.mark.parametrize("direction", ["from client", "from server"])
def test_a_segment_without_flags_closes(tmp_path: Path, direction: str, state: str) -> None:
    lab = lab_in_state(tmp_path, state)
    send(lab, direction, "PU")
    assert lab.state() == ("CLOSE", 10)


@pytest.mark.parametrize(
    ("segment", "row"),
    [("SFRAPU", "rst"), ("SFAPU", "syn"), ("FAPU", "fin"), ("APU", "ack"), ("SR", "rst"), ("SF", "syn")],
)
def test_reset_counts_before_syn_before_fin_before_ack(tmp_path: Path, segment: str, row: str) -> None:
    lab = lab_in_state(tmp_path, "ES")
    send(lab, "from server", segment)
    assert lab.state() is not None
    assert lab.state()[0] == LONG[CELLS["from server", row].split()[1]]  # type: ignore[index]


C, S = "from client", "from server"
LIVES = {
    "client closes first": [
        (C, "S", "SYN_RECV"), (S, "SA", "SYN_RECV"), (C, "A", "ESTABLISHED"), (C, "PA", "ESTABLISHED"),
        (C, "FA", "CLOSE_WAIT"), (S, "A", "CLOSE_WAIT"), (S, "FA", "TIME_WAIT"), (C, "A", "TIME_WAIT"),
    ],
    "server closes first": [
        (C, "S", "SYN_RECV"), (S, "SA", "SYN_RECV"), (C, "A", "ESTABLISHED"), (S, "FA", "FIN_WAIT"),
        (C, "A", "FIN_WAIT"), (C, "FA", "TIME_WAIT"), (S, "A", "TIME_WAIT"),
    ],
    "server refuses": [(C, "S", "SYN_RECV"), (S, "RA", "CLOSE")],
    "client gives up before the handshake": [(C, "S", "SYN_RECV"), (C, "R", "SYN_RECV"), (S, "R", "CLOSE")],
    "client resets": [(C, "S", "SYN_RECV"), (S, "SA", "SYN_RECV"), (C, "A", "ESTABLISHED"), (C, "R", "CLOSE")],
    "syn again while open": [(C, "S", "SYN_RECV"), (C, "A", "ESTABLISHED"), (C, "S", "ESTABLISHED")],
}  # fmt: skip


@pytest.mark.parametrize("life", LIVES)
def test_life_of_a_connection(life: str) -> None:
    lab = Lab(VIRTUAL)
    for direction, segment, state in LIVES[life]:
        send(lab, direction, segment)
        assert lab.state() == (state, TIMEOUTS[STATE_NAMES.index(state)])
        lab.clock.advance(1)


# a segment from the client that leaves the state as it is; none does in NONE and SYNACK
KEEPS = {"ES": "A", "SS": "A", "SR": "R", "FW": "A", "TW": "A", "CL": "F", "CW": "A", "LA": "F", "LI": "F"}


@pytest.mark.parametrize("state", KEEPS)
def test_a_silent_connection_ends_to_the_tick(tmp_path: Path, state: str) -> None:
    lab = lab_in_state(tmp_path, state)
    send(lab, "from client", KEEPS[state])
    lab.clock.advance(SECONDS[state] - TICK)
    assert lab.state() == (LONG[state], 1)
    assert lab.workers[0].expire(lab.clock()) == 0
    lab.clock.advance(TICK)
    assert lab.state() is None
    assert lab.table.used == 1
    assert lab.workers[0].expire(lab.clock()) == 1
    assert (lab.table.used, lab.table.expired, lab.load(REAL)) == (0, 1, (0, 0))


def test_timeouts_that_can_be_set() -> None:
    lab = Lab(VIRTUAL, Virtual(VIP, {REAL: 1}, protocol="udp"), timeouts=Timeouts(7200, 33, 3))
    lab.open()
    assert lab.state() == ("ESTABLISHED", 7200)
    send(lab, "from server", "FA")
    assert lab.state() == ("FIN_WAIT", 33)
    lab.configure(VIRTUAL, Virtual(VIP, {REAL: 1}, protocol="udp"))
    send(lab, "from client", "A")
    assert lab.state() == ("FIN_WAIT", 120)
    lab.clock.advance(121)
    lab.configure(VIRTUAL, Virtual(VIP, {REAL: 1}, protocol="udp"), timeouts=Timeouts(7200, 33, 3))
    lab.send(udp(CLIENT, VIP))
    assert lab.state() == ("NONE", 3)


def test_a_service_may_have_timeouts_of_its_own() -> None:
    """They stand in the place of those of all services where they are not 0, and count from the next packet on."""
    other = "203.0.113.2:80"
    own = VIRTUAL._replace(timeouts=(50, 0, 0, 0, 7))
    lab = Lab(own, Virtual(other, {"10.0.0.3:80": 1}), timeouts=Timeouts(tcp_fin=44))
    lab.send(tcp(CLIENT, VIP, "S"))
    assert lab.state() == ("SYN_RECV", 7)
    lab.send(tcp(CLIENT, VIP, "A"))
    assert lab.state() == ("ESTABLISHED", 50)
    lab.configure(own._replace(timeouts=(40,)), timeouts=Timeouts(tcp_fin=44))
    assert lab.state() == ("ESTABLISHED", 50)
    send(lab, "from client", "A")
    assert lab.state() == ("ESTABLISHED", 40)
    lab.configure(VIRTUAL, Virtual(other, {"10.0.0.3:80": 1}), timeouts=Timeouts(tcp_fin=44))
    send(lab, "from client", "A")
    assert lab.state() == ("ESTABLISHED", 900)
    lab.configure(own, Virtual(other, {"10.0.0.3:80": 1}), timeouts=Timeouts(tcp_fin=44))
    send(lab, "from server", "FA")
    assert lab.state() == ("FIN_WAIT", 44)
    lab.clock.advance(50)
    lab.open(vip=other)
    assert lab.state() == ("ESTABLISHED", 900)


def test_a_datagram_of_a_service_with_a_timeout_of_its_own() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, protocol="udp", timeouts=(0, 0, 2)))
    lab.send(udp(CLIENT, VIP))
    assert lab.state() == ("NONE", 2)


TCP_KINDS = [name for name in TIMEOUT_KINDS if name.startswith("tcp")]


@pytest.mark.parametrize("name", [name for name in TCP_KINDS if name not in ("tcp_none", "tcp_synack")])
def test_every_timeout_of_tcp_can_be_set(tmp_path: Path, name: str) -> None:
    state = SHORT[TIMEOUT_KINDS[name]]
    lab = lab_in_state(tmp_path, state)
    lab.configure(VIRTUAL, timeouts=Timeouts(**{name: 77}))
    send(lab, "from client", KEEPS[state])
    assert lab.state() == (LONG[state], 77)


def test_the_model_names_the_timeouts_as_the_core_does() -> None:
    assert list(TIMEOUT_KINDS) == list(model.Timeouts.__struct_fields__) == list(model.OwnTimeouts.__struct_fields__)
    defaults = msgspec.structs.asdict(model.Timeouts())
    ours = {name: TIMEOUTS[TIMEOUT_KINDS[name]] for name in TCP_KINDS} | {"udp": 300}
    ours |= {
        name: ASSOCIATION_TIMEOUTS[kind - TIMEOUT_KINDS["sctp_none"]]
        for name, kind in TIMEOUT_KINDS.items()
        if name.startswith("sctp")
    }
    assert ours == defaults
    assert Timeouts._fields == model.Timeouts.__struct_fields__


def test_udp_is_refreshed_by_both_sides_and_never_active() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, protocol="udp"))
    for packet, hook in ((udp(CLIENT, VIP), 0), (udp(REAL, CLIENT), FORWARD), (udp(CLIENT, VIP), 0)):
        lab.clock.advance(299)
        lab.send(packet, hook=hook)
        assert lab.state() == ("NONE", 300)
        assert lab.load(REAL, protocol="udp") == (0, 1)
    lab.clock.advance(300)
    assert lab.state() is None
    assert lab.send(udp(REAL, CLIENT), hook=FORWARD).reason == "unrelated"


@pytest.mark.parametrize("ticks", [17_000, 864_000, 3 * 864_000, 2_147_483 * 10])
def test_a_timeout_longer_than_the_wheel_is_kept_to_the_tick(ticks: int) -> None:
    """The wheel reaches 27 minutes; 2**31 // 1000 seconds are 24 days."""
    lab = Lab(VIRTUAL, timeouts=Timeouts(tcp=ticks // 10))
    lab.open()
    start = lab.clock()
    for part in range(1, 7):
        lab.clock.now = start + ticks * part // 7 * NANOSECONDS
        assert lab.workers[0].expire(lab.clock()) == 0
    lab.clock.now = start + ticks * NANOSECONDS - 1
    assert lab.workers[0].expire(lab.clock()) == 0
    lab.clock.now += 1
    assert lab.workers[0].expire(lab.clock()) == 1


@pytest.mark.slow
def test_a_mass_of_endings_is_spread_over_steps() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}, protocol="udp"), capacity=4096)
    for port in range(3000):
        lab.send(udp(f"192.0.2.10:{1000 + port}", VIP))
    lab.clock.advance(300)
    gone = lab.workers[0].expire(lab.clock(), 100)
    assert gone <= 100
    rounds = 1
    while lab.table.used:
        gone += lab.workers[0].expire(lab.clock(), 100)
        rounds += 1
    assert gone == 3000
    assert 30 <= rounds <= 100
