"""From intents to snapshots, with a recording double of the core."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfqlb.control import registry
from nfqlb.control.compile import Compiler, packed, unpacked
from nfqlb.control.planner import Planner
from nfqlb.errors import NfqlbError
from nfqlb.kernel.plan import Plan
from nfqlb.model import Answers, Intent, Options, Real, Service, Timeouts
from tests.unit.fakes import DNS, WEB

INTENT = Intent((WEB, DNS), Timeouts(tcp=600, tcp_fin=60, udp=30))


class Made:
    """What the compiler built, with its arguments."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.args, self.named = args, named


class Slots:
    """Numbers from 0, found again; `full` refuses."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.asked: list[str] = []
        self.full = False

    def __call__(self, service: Service, real: Real) -> int:
        if self.full:
            raise NfqlbError("no slot is free")
        self.asked.append(str(real))
        return self.numbers.setdefault((service.key, real.address, real.port), len(self.numbers))


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
def compiler(slots: Slots) -> Compiler:
    made: Any = Made
    return Compiler(slots, made, made)


def services_of(snapshot: Any) -> list[Made]:
    found: list[Made] = snapshot.args[0]
    return found


def test_servers_that_left_are_known_until_they_are_idle(compiler: Compiler) -> None:
    compiler.snapshot(INTENT)
    slots = compiler.slots
    compiler.snapshot(Intent((DNS,)))
    assert compiler.left == {key: slot for key, slot in slots.items() if key[0] == WEB.key}
    busy = min(compiler.left.values())
    compiler.forget(lambda slot: slot != busy)
    assert list(compiler.left.values()) == [busy]
    ends = compiler.left.services[WEB.key]
    compiler.forget(lambda slot: slot != busy)
    assert compiler.left.services[WEB.key] is ends, "what nobody left is known by that"
    compiler.snapshot(INTENT)
    assert (compiler.slots, compiler.left) == (slots, {})


def test_servers_are_handed_over_newest_first(compiler: Compiler) -> None:
    web, dns = services_of(compiler.snapshot(INTENT))
    vip, first = b"\0" * 10 + b"\xff\xff\xcb\x00\x71\x0a", b"\0" * 10 + b"\xff\xff\x0a\x00\x01"
    assert web.args == (
        6,
        vip,
        80,
        "wrr",
        [
            (2, first + b"\x0d", 80, 0, "nat", 0, 0),
            (1, first + b"\x0c", 8080, 1, "nat", 0, 0),
            (0, first + b"\x0b", 8080, 3, "nat", 0, 0),
        ],
        None,
    )
    plain = {"last": 0, "mark": 0, "flags": (), "one_packet": False, "mss": 0, "offload": True}
    assert web.named == {**plain, "timeouts": (), "connections_max": 0, "maglev_size": 4093, "hash_key": b""}
    assert dns.args[:4] == (17, bytes.fromhex("20010db8000000000000000000000010"), 53, "rr")


def test_a_snapshot_carries_the_timeouts(compiler: Compiler) -> None:
    snapshot: Any = compiler.snapshot(INTENT)
    assert snapshot.args[1:] == msgspec.structs.astuple(INTENT.timeouts)
    options = msgspec.structs.asdict(Options())
    del options["hash_key"], options["backup_only"]
    rest = {"gone": {}, **options}
    named = {"no_server": "icmp", "no_connection": "pass", "sloppy": False, "sloppy_sctp": False}
    assert snapshot.named == named | rest
    told: Any = compiler.snapshot(registry.set_answers(INTENT, Answers("reset", "drop", True, True)))
    named = {"no_server": "reset", "no_connection": "drop", "sloppy": True, "sloppy_sctp": True}
    assert told.named == named | rest
    given = Options(1, True, True, True, 1, 2, 3, 4, 5, 6)
    told = compiler.snapshot(registry.set_options(INTENT, given))
    not_told = {"hash_key": "", "backup_only": False}
    assert {name: told.named[name] for name in options} | not_told == msgspec.structs.asdict(given)


def test_an_unchanged_service_stays_the_same_object_and_a_changed_one_follows_its_predecessor(
    compiler: Compiler, slots: Slots
) -> None:
    web, dns = services_of(compiler.snapshot(INTENT))
    slots.asked.clear()
    after = registry.add_real(INTENT, WEB.key, Real("10.0.1.14", 80))
    web_after, dns_after = services_of(compiler.snapshot(after))
    assert dns_after is dns
    assert slots.asked == ["10.0.1.11:8080", "10.0.1.12:8080", "10.0.1.13:80", "10.0.1.14:80"]
    assert web_after.args[5] is web
    assert [slot for slot, *_ in web_after.args[4]] == [4, 2, 1, 0]


def test_flags_go_to_the_fallback_of_a_scheduler_in_python() -> None:
    asked: Any = "advisor"
    service = Service("203.0.113.10", 80, scheduler="x.py", fallback="sh", flags=("sh-port",), reals=WEB.reals)
    (made,) = services_of(
        Compiler(Slots(), cast(Any, Made), cast(Any, Made), lambda *_: asked).snapshot(Intent((service,)))
    )
    assert (made.args[3], made.named["flags"], made.named["advisor"]) == ("sh", ("sh-port",), asked)


def test_new_timeouts_leave_every_service_as_it_is(compiler: Compiler) -> None:
    before = services_of(compiler.snapshot(INTENT))
    assert services_of(compiler.snapshot(registry.set_timeouts(INTENT, Timeouts()))) == before


def test_another_hash_key_makes_the_services_that_hash_anew_and_leaves_the_others(compiler: Compiler) -> None:
    hashing = registry.edit_service(INTENT, INTENT.services[1].key, scheduler="mh")
    before = services_of(compiler.snapshot(hashing))
    after = services_of(compiler.snapshot(registry.set_options(hashing, Options(hash_key="00" * 15 + "0F"))))
    assert after[0] is before[0]
    assert after[1] is not before[1]
    assert after[1].named["hash_key"] == bytes(15) + b"\x0f"
    assert after[1].args[5] is before[1], "its connections and its state stay"


def test_a_deleted_service_that_comes_back_starts_afresh(compiler: Compiler) -> None:
    compiler.snapshot(INTENT)
    compiler.snapshot(registry.delete_service(INTENT, WEB.key))
    web = next(made for made in services_of(compiler.snapshot(INTENT)) if made.args[0] == 6)
    assert web.args[5] is None


def test_slots_are_those_of_the_last_intent(compiler: Compiler) -> None:
    compiler.snapshot(INTENT)
    assert compiler.slots[WEB.key, "10.0.1.12", 8080] == 1
    compiler.snapshot(registry.delete_real(INTENT, WEB.key, "10.0.1.12", 8080))
    assert sorted(compiler.slots.values()) == [0, 2, 3]


def test_a_slot_is_unused_when_its_server_left_long_ago(compiler: Compiler) -> None:
    compiler.snapshot(INTENT)
    without = registry.delete_real(INTENT, WEB.key, "10.0.1.12", 8080)
    compiler.snapshot(without)
    assert compiler.unused(range(4), 0) == []
    assert compiler.unused(range(4), 500) == [], "its connections may need the way back"
    compiler.forget(lambda slot: True)
    assert compiler.unused(range(4), 1000) == []
    compiler.snapshot(INTENT)
    assert compiler.unused(range(4), 1060) == [], "it came back"
    compiler.snapshot(without)
    compiler.forget(lambda slot: True)
    assert [compiler.unused(range(4), 1100 + at) for at in (0, 119, 120)] == [[], [], [1]]
    assert compiler.unused([0, 2, 3], 1300) == []


def test_a_snapshot_that_was_not_published_is_forgotten(compiler: Compiler) -> None:
    web, _ = services_of(compiler.snapshot(INTENT))
    before = dict(compiler.slots)
    compiler.snapshot(registry.edit_service(INTENT, WEB.key, scheduler="lc"))
    compiler.undo()
    assert compiler.slots == before
    assert services_of(compiler.snapshot(INTENT))[0] is web
    other = services_of(compiler.snapshot(registry.edit_service(INTENT, WEB.key, scheduler="rr")))[0]
    assert other.args[5] is web


def test_a_failure_changes_nothing(compiler: Compiler, slots: Slots) -> None:
    web, _ = services_of(compiler.snapshot(INTENT))
    before, slots.full = dict(compiler.slots), True
    with pytest.raises(NfqlbError):
        compiler.snapshot(registry.edit_service(INTENT, WEB.key, scheduler="lc"))
    assert compiler.slots == before
    assert services_of(compiler.snapshot(INTENT))[0] is web


@given(st.ip_addresses())
def test_an_address_is_16_bytes_and_back(address: IPv4Address | IPv6Address) -> None:
    assume(address.version == 4 or address.ipv4_mapped is None)
    assert len(packed(str(address))) == 16
    assert unpacked(packed(str(address))) == str(address)


def test_a_real_server_may_have_a_mode_of_its_own(compiler: Compiler) -> None:
    reals = (Real("10.0.1.11", 8080), Real("10.0.1.12", 80, mode="dr"), Real("10.0.1.13", 80, mode="tun"))
    intent = Intent((Service("203.0.113.10", 80, reals=reals),))
    (made,) = services_of(compiler.snapshot(intent))
    assert [server[4] for server in made.args[4]] == ["tun", "dr", "nat"]  # newest first
    plan = Planner(Plan("main")).plan(intent)
    assert plan.v4.reals == {(6, "10.0.1.11", 8080)}
    assert plan.v4.tunnels == {"10.0.1.13"}
