"""A table in a file outlives its director: what is found again, what is cleared, and what garbage can do."""

from __future__ import annotations

import mmap
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfqlb._core.connection import Table, unfit
from nfqlb.testing import FORWARD, FakeClock, endpoint, tcp, udp
from tests.core.lab import CLIENT, REAL, TICK, VIP, Lab, Virtual, clients, served
from tests.sizes import GARBLINGS

OTHER = "10.0.0.3:8080"
TCP, UDP = Virtual(VIP, {REAL: 1, OTHER: 1}), Virtual(VIP, {REAL: 1}, protocol="udp")
CAPACITY = 256
# docs/table.md, layout 2: a header, 1024 slots, 1 + capacity entries
SLOTS, SLOT, ENTRIES, ENTRY = 4096, 48, 4096 + 1024 * 48, 128


@contextmanager
def lab_on(path: Path, clock: FakeClock, capacity: int = CAPACITY) -> Iterator[Lab]:
    with path.open("r+b" if path.exists() else "w+b") as file:
        yield Lab(TCP, UDP, capacity=capacity, fd=file.fileno(), clock=clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path, clock: FakeClock) -> Path:
    """A file with 60 TCP connections and one of UDP, whose director died."""
    with lab_on(tmp_path / "table", clock) as lab:
        served(lab, list(clients(60)))
        lab.send(udp(CLIENT, VIP))
    return tmp_path / "table"


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_the_file_is_as_long_as_its_layout_says(path: Path) -> None:
    assert path.stat().st_size == ENTRIES + (1 + CAPACITY) * ENTRY
    layout = path.read_bytes()[8:16]
    assert [int.from_bytes(layout[at : at + 2], sys.byteorder) for at in (2, 4, 6)] == [ENTRY, SLOT, 2]


def test_connections_slots_and_counts_are_found_again(path: Path, clock: FakeClock) -> None:
    with lab_on(path, clock) as lab:
        assert (lab.table.adopted, lab.table.used) == (61, 61)
        assert (lab.load(REAL), lab.load(OTHER), lab.load(REAL, protocol="udp")) == ((30, 0), (30, 0), (0, 1))
        assert lab.slots == {("tcp", VIP, OTHER): 1, ("tcp", VIP, REAL): 2, ("udp", VIP, REAL): 3}
        assert all((row.name, row.left) == ("ESTABLISHED", 900) for row in lab.connections() if row.protocol == 6)
        for at, end in enumerate(clients(60)):
            real = (OTHER, REAL)[at % 2]
            assert lab.send(tcp(end, VIP, "A")).packet == tcp(end, real, "A")
            assert lab.send(tcp(real, end, "A"), hook=FORWARD).packet == tcp(VIP, end, "A")
        assert lab.send(udp(CLIENT, VIP)).packet == udp(CLIENT, REAL)
        assert lab.reasons() == {"forwarded": 61, "returned": 60}


def test_timers_go_on(path: Path, clock: FakeClock) -> None:
    clock.advance(300 - TICK)
    with lab_on(path, clock) as lab:
        assert lab.table.used == 61
        clock.advance(TICK)
        assert (lab.workers[0].expire(clock()), lab.table.used) == (1, 60)
        clock.advance(600 - TICK)
        assert lab.workers[0].expire(clock()) == 0
        clock.advance(TICK)
        assert (lab.workers[0].expire(clock()), lab.table.used) == (60, 0)


def test_what_timed_out_in_between_is_gone(path: Path, clock: FakeClock) -> None:
    clock.advance(300)
    with lab_on(path, clock) as lab:
        assert (lab.table.adopted, lab.table.torn) == (60, 0)
        assert lab.load(REAL, protocol="udp") == (0, 0)


def test_the_rest_of_the_capacity_is_free(path: Path, clock: FakeClock) -> None:
    with lab_on(path, clock) as lab:
        reasons = [lab.send(udp(end, VIP)).reason for end in clients(CAPACITY, first=50000)]
        assert reasons == ["forwarded"] * (CAPACITY - 61) + ["table_full"] * 61


def test_a_table_can_be_inherited_many_times(path: Path, clock: FakeClock) -> None:
    for generation in range(5):
        with lab_on(path, clock) as lab:
            assert lab.table.adopted == 61 + generation
            lab.open(f"192.0.2.200:{1000 + generation}")


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (0, "it is no table"),
        (8, "its layout is 2 "),
        (14, "its layout is 3 "),
        (16, "it has 257 places for connections and 1024 for real servers, not 256 and 1024"),
        (24, "it has 256 places for connections and 1025 for real servers, not 256 and 1024"),
        (48, "it was made before the machine was started"),
    ],
    ids=["magic", "size of a struct", "layout", "capacity", "slots", "boot"],
)
def test_a_header_that_does_not_fit_is_told_and_clears_all(path: Path, clock: FakeClock, at: int, why: str) -> None:
    with path.open("rb") as file:
        assert unfit(file.fileno(), CAPACITY) == ""
    patch(path, at, bytes([path.read_bytes()[at] ^ 1]))
    with path.open("rb") as file:
        assert unfit(file.fileno(), CAPACITY).startswith(why)
    with lab_on(path, clock) as lab:
        assert lab.table.lost.startswith(why)
        assert (lab.table.adopted, lab.table.used, lab.connections()) == (0, 0, [])
        assert served(lab, list(clients(4))) == [OTHER, REAL, OTHER, REAL]


@pytest.mark.parametrize("capacity", [CAPACITY - 1, CAPACITY + 1, 64, 5000])
def test_another_capacity_clears_all(path: Path, clock: FakeClock, capacity: int) -> None:
    with lab_on(path, clock, capacity) as lab:
        assert (lab.table.adopted, lab.table.capacity) == (0, capacity)
        lab.open()
    with lab_on(path, clock) as lab:
        assert lab.table.adopted == 0


@pytest.mark.parametrize("content", [b"", b"short", bytes(100_000), bytes(range(256)) * 1000])
def test_a_file_of_something_else_is_cleared(tmp_path: Path, clock: FakeClock, content: bytes) -> None:
    (tmp_path / "table").write_bytes(content)
    with lab_on(tmp_path / "table", clock) as lab:
        assert (lab.table.adopted, lab.connections()) == (0, [])
        lab.open()
    with lab_on(tmp_path / "table", clock) as lab:
        assert lab.table.adopted == 1


@pytest.mark.parametrize("capacity", [-1, 0, 63, 2**26 + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError):
        Table(-1, capacity, 0)


def test_a_file_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"")
    with (tmp_path / "table").open("rb") as file, pytest.raises(OSError):
        Table(file.fileno(), CAPACITY, 0)


def test_flows_that_left_their_server_are_over_and_not_torn(path: Path, clock: FakeClock) -> None:
    with lab_on(path, clock) as lab:
        lab.configure(TCP)
        assert lab.datapath.sweep(clock()) == 1
        assert len(lab.connections()) == 61, "it waits for late replies"
    with lab_on(path, clock) as lab:
        assert (lab.table.adopted, lab.table.torn) == (60, 0)


def test_ftp_data_connections_are_found_again(tmp_path: Path, clock: FakeClock) -> None:
    ftp = Virtual("203.0.113.1:21", {"10.0.0.1:21": 1, "10.0.0.2:21": 1}, persistence=300)
    ends = {"192.0.2.1:1000": ftp.vip, "192.0.2.1:1001": "203.0.113.1:50000", "192.0.2.1:1002": "203.0.113.1:20"}
    with (tmp_path / "table").open("w+b") as file:
        lab = Lab(ftp, fd=file.fileno(), clock=clock)
        reals = {client: lab.open(client, vip) for client, vip in ends.items()}
        assert len({real.partition(":")[0] for real in reals.values()}) == 1
        again = Lab(ftp, fd=file.fileno(), clock=clock)
        assert (again.table.adopted, again.table.torn) == (4, 0)
        for client, vip in ends.items():
            assert again.send(tcp(client, vip, "PA")).packet == tcp(client, reals[client], "PA")


def test_no_other_port_is_of_a_service_of_ftp(tmp_path: Path, clock: FakeClock) -> None:
    ftp = Virtual("203.0.113.1:21", {"10.0.0.1:21": 1})
    with (tmp_path / "table").open("w+b") as file:
        Lab(ftp, fd=file.fileno(), clock=clock).open(vip=ftp.vip)
        for port, adopted in ((19, 0), (22, 0), (1023, 0), (1024, 1), (20, 1)):
            for at in (50, 52):  # of the VIP and of the real server
                file.seek(ENTRIES + ENTRY + at)
                file.write(port.to_bytes(2, sys.byteorder))
            file.seek(ENTRIES + ENTRY + 60)
            file.write(b"\x01")  # live
            file.flush()
            assert Lab(ftp, fd=file.fileno(), clock=clock).table.adopted == adopted, port


@pytest.mark.slow
def test_a_killed_process_leaves_its_connections(tmp_path: Path, clock: FakeClock) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.core.test_adoption import lab_on
from nfqlb.testing import FakeClock
with lab_on(Path({str(tmp_path / "table")!r}), FakeClock()) as lab:
    lab.open()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    with lab_on(tmp_path / "table", clock) as lab:
        assert lab.send(tcp(CLIENT, VIP, "A")).packet == tcp(CLIENT, OTHER, "A")


SOUND = {(6, *endpoint(VIP), *endpoint(real)) for real in (REAL, OTHER)} | {(17, *endpoint(VIP), *endpoint(REAL))}
ACTIVE = {"ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"}
LONGEST = 2**31 // 1000  # seconds: no timeout can be set to more


def check_sound(lab: Lab) -> None:
    """Each adopted connection is of a server of ours, in a state that there is, and its time ends."""
    rows = lab.connections()
    assert len(rows) == lab.table.used == lab.table.adopted
    for row in rows:
        assert (row.protocol, row.vip, row.vport, row.server, row.sport) in SOUND
        assert 0 <= row.state <= 10
        assert row.protocol == 6 or row.state == 0
        assert 0 < row.left <= LONGEST
    loads = [lab.load(*key) for key in ((REAL,), (OTHER,), (REAL, VIP, "udp"))]
    assert sum(map(sum, loads)) == len(rows)
    assert sum(active for active, _ in loads) == sum(row.name in ACTIVE for row in rows)


def check_works(lab: Lab) -> None:
    """Old and new connections get verdicts, and in the end the table is empty."""
    for end in clients(60):
        assert lab.send(tcp(end, VIP, "A")).reason in ("forwarded", "no_connection")
    served(lab, list(clients(30, first=1000)))
    lab.clock.advance(LONGEST)
    lab.workers[0].expire(lab.clock())
    assert (lab.table.used, lab.connections()) == (0, [])


# one field of every entry (offset, bytes), all of them overwritten: none may be adopted
FIELDS = {
    "server": (32, b"\x07" * 16),
    "vip": (16, b"\x07" * 16),
    "vip port": (50, b"\x07\x07"),
    "server port": (52, b"\x07\x07"),
    "protocol": (54, b"\x01"),
    "forwarding method": (55, b"\x03"),
    "direct routing with replies": (55, b"\x01"),
    "unknown flag": (55, b"\x20"),
    "waits for late replies only": (55, b"\x08"),
    "slot 0": (56, b"\0\0\0\0"),
    "slot out of range": (56, b"\xff\xff\xff\x7f"),
    "slot of nobody": (56, b"\x99\0\0\0"),
    "life": (60, b"\x02"),
    "state": (61, b"\x0b"),
    "state beyond a shift": (61, b"\x38"),
    "expired": (64, b"\0\0\0\0"),
    "expires in years": (64, b"\xff\xff\xff\xff"),
}
NOT_TORN = ("expired", "waits for late replies only")


@pytest.mark.parametrize("field", FIELDS)
def test_an_entry_with_a_wrong_field_is_not_adopted(path: Path, clock: FakeClock, field: str) -> None:
    at, data = FIELDS[field]
    for index in range(1, 62):
        patch(path, ENTRIES + index * ENTRY + at, data)
    with lab_on(path, clock) as lab:
        check_sound(lab)
        assert (lab.table.adopted, lab.table.torn) == (0, 0 if field in NOT_TORN else 61)
        check_works(lab)


@pytest.mark.parametrize("at", range(ENTRY))
def test_an_entry_torn_at_any_byte_is_itself_or_is_dropped_and_counted(path: Path, clock: FakeClock, at: int) -> None:
    """Its end is still that of the entry that was in its place before, of nothing, or of garbage."""
    whole = path.read_bytes()
    entries = [whole[place : place + ENTRY] for place in range(ENTRIES + ENTRY, ENTRIES + 62 * ENTRY, ENTRY)]
    for end in (bytes(ENTRY), b"\xff" * ENTRY, *entries[:2], *entries[-2:]):
        path.write_bytes(whole)
        torn = entries[29][:at] + end[at:]
        patch(path, ENTRIES + 30 * ENTRY, torn)
        with lab_on(path, FakeClock()) as lab:
            check_sound(lab)
            assert lab.table.adopted + lab.table.torn == 60 + counts(torn, lab.clock)
            check_works(lab)


@pytest.mark.parametrize(("at", "data"), [(68, b"\xff" * 16), (84, b"\xff" * 44)])
def test_what_a_table_keeps_for_itself_does_not_matter(path: Path, clock: FakeClock, at: int, data: bytes) -> None:
    """Links of timers and buckets, hash and epoch are made anew."""
    for index in range(CAPACITY + 1):
        patch(path, ENTRIES + index * ENTRY + at, data)
    with lab_on(path, clock) as lab:
        assert lab.table.adopted == 61
        check_sound(lab)
        check_works(lab)


def test_a_wrong_active_mark_is_put_right(path: Path, clock: FakeClock) -> None:
    for index in range(1, 62):
        patch(path, ENTRIES + index * ENTRY + 62, b"\x01" if index < 61 else b"\x00")
    with lab_on(path, clock) as lab:
        assert (lab.load(REAL), lab.load(OTHER), lab.load(REAL, protocol="udp")) == ((30, 0), (30, 0), (0, 1))
        check_sound(lab)
        check_works(lab)


def test_udp_in_a_state_of_tcp_is_not_adopted(path: Path, clock: FakeClock) -> None:
    patch(path, ENTRIES + 61 * ENTRY + 61, b"\x01")
    with lab_on(path, clock) as lab:
        check_sound(lab)
        assert lab.table.adopted == 60


@pytest.mark.parametrize("slot", [4, 500, 1023])
def test_a_slot_that_seems_used_costs_one_slot(path: Path, clock: FakeClock, slot: int) -> None:
    patch(path, SLOTS + slot * SLOT + 39, b"\x01")
    with lab_on(path, clock) as lab:
        assert lab.table.adopted == 61
        vip, address = endpoint(VIP), endpoint(REAL).address
        given = [lab.table.slot(6, *vip, address, port) for port in range(1, 1020)]
        assert sorted(given) == [number for number in range(4, 1024) if number != slot]


def counts(entry: bytes, clock: FakeClock) -> bool:
    """Whether it is adopted or torn, and not free or a connection whose time is over."""
    word, expires = (int.from_bytes(entry[at : at + 4], sys.byteorder) for at in (60, 64))
    return word != 0 and not (word & 0xFF == 1 and expires <= clock() // 10**8)


@pytest.mark.parametrize("seed", range(GARBLINGS))
def test_garbage_at_random_places_does_no_harm(path: Path, clock: FakeClock, seed: int) -> None:
    """Entries anywhere, slots in use, the header behind what decides about adoption."""
    chance = random.Random(seed)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for _ in range(chance.choice([1, 10, 100, 2000])):
            part, size = chance.choice(
                [(SLOTS + SLOT, 1023 * SLOT), (ENTRIES, len(memory) - ENTRIES), (64, SLOTS - 64)]
            )
            at = part + chance.randrange(size)
            data = chance.randbytes(chance.choice([1, 2, 4, 16]))[: len(memory) - at]
            memory[at : at + len(data)] = data
        entries = [memory[at : at + ENTRY] for at in range(ENTRIES + ENTRY, len(memory), ENTRY)]
        left = [entry for entry in entries if counts(entry, clock)]
        late = sum(entry[55] & 8 != 0 for entry in left)  # those that are whole beside that flag are not torn
    with lab_on(path, clock) as lab:
        check_sound(lab)
        assert len(left) - late <= lab.table.adopted + lab.table.torn <= len(left)
        check_works(lab)
