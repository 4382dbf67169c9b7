"""From intents to what the kernel must hold, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb.control.compile import End, Slots
from nfqlb.control.planner import Planner, steered
from nfqlb.errors import ConfigError
from nfqlb.kernel.plan import Members, Plan, Span, disjoint
from nfqlb.kernel.pool import Pool
from nfqlb.model import PROTOCOLS, Intent, Key, Persistence, Real, Service, Timeouts, family
from tests.intents import intents
from tests.plans import reals_of, services_of
from tests.unit.fakes import DNS, WEB

FRAME = Plan("main", gso=(4, 6), plain=(5, 7), diverter="nft", firewall="leave")
FTP = Service("203.0.113.200", 21, reals=(Real("10.0.1.11", 21), Real("10.0.1.12", 21)), persistence=Persistence())


def test_the_plan_names_what_the_kernel_must_divert() -> None:
    shared = msgspec.structs.replace(WEB, port=81)
    plan = Planner(FRAME).plan(Intent((WEB, DNS, shared)), vip_dev="lo")
    assert services_of(plan) == {(6, "203.0.113.10", 80), (6, "203.0.113.10", 81), (17, "2001:db8::10", 53)}
    ends = {(6, "10.0.1.11", 8080), (6, "10.0.1.12", 8080), (6, "10.0.1.13", 80), (17, "2001:db8:1::11", 53)}
    assert reals_of(plan) == ends
    assert replace(plan, v4=FRAME.v4, v6=FRAME.v6) == replace(FRAME, vip_dev="lo")


def test_services_of_many_ports_are_diverted_by_ranges_and_marks_and_known_by_their_clients() -> None:
    """A real server without a port of its own answers from a range, or from whichever port was asked."""
    vip, real = "203.0.113.10", "10.0.1.11"
    intent = Intent(
        (
            Service(vip, 5000, last=5009, reals=(Real(real, 0), Real("10.0.1.12", 8080))),
            Service(vip, 0, "udp", reals=(Real(real, 0),)),
            Service(vip, 6000, mode="dr", last=6009, reals=(Real("10.0.1.13", 0),)),
            Service(fwmark=7, reals=(Real("10.0.1.14", 0), Real("10.0.1.15", 80))),
            Service("::", fwmark=9),
        ),
        Timeouts(udp=1200),
    )
    plan = Planner(FRAME).plan(intent, Slots({Key("tcp", vip, 7000, 7009): {("10.0.1.16", 0): 1}}))
    assert plan.families == (4, 6)
    assert plan.vips == {vip}
    assert plan.members(4) == Members(
        reals=frozenset({(6, "10.0.1.12", 8080), (6, "10.0.1.15", 80), (17, "10.0.1.15", 80), (132, "10.0.1.15", 80)}),
        vips=frozenset({vip}),
        servers=frozenset({real, "10.0.1.12", "10.0.1.14", "10.0.1.15", "10.0.1.16"}),
        ranges=frozenset({(6, vip, 5000, 5009), (6, vip, 6000, 6009), (17, vip, 0, 65535)}),
        real_ranges=frozenset({(6, real, 5000, 5009), (6, "10.0.1.16", 7000, 7009)}),
        anyport=frozenset({real, "10.0.1.14"}),
        marks=frozenset({7}),
    )
    assert plan.members(6).kinds == {"marks"}
    assert plan.idle == 1200


def straight(intent: Intent, left: Slots, number: int) -> Members:
    """The members of one family, from nothing and by sets alone."""
    ours = [service for service in intent.services if family(service.address) == number]
    found: dict[str, set[Any]] = {name: set() for name in Members._fields}
    ftp = {service.key for service in ours if service.persistence and service.protocol == "tcp" and service.port == 21}
    for key in (service.key for service in ours):
        if key.mark:
            found["marks"].add(key.mark)
        elif key.wide:
            found["ranges"].add((PROTOCOLS[key.protocol], key.address, *key.ports))
        else:
            found["services"].add((PROTOCOLS[key.protocol], key.address, key.port))
    found["ranges"] |= {(6, key.address, *ports) for key in ftp for ports in ((20, 20), (1024, 65535))}
    found["tunnels"] = {real.address for one in ours for real in one.reals if one.mode_of(real) == "tun"}
    natted = {(one.key, real.address, real.port) for one in ours for real in one.reals if one.mode_of(real) == "nat"}
    for key, address, port in natted | {end for end in left if family(end[1]) == number}:
        protocols = PROTOCOLS.values() if key.mark else [PROTOCOLS[key.protocol]]
        if port:
            found["reals"] |= {(protocol, address, port) for protocol in protocols}
        elif key.last:
            found["real_ranges"] |= {(protocol, address, *key.ports) for protocol in protocols}
        if key in ftp or not (port or key.last):
            found["anyport"].add(address)
    found["vips"] = {end[1] for end in found["services"] | found["ranges"]}
    found["servers"] = {end[1] for end in found["reals"] | found["real_ranges"]} | found["anyport"]
    for name in ("ranges", "real_ranges"):
        found[name] = set(disjoint(found[name]))
    return Members(**{name: frozenset(members) for name, members in found.items()})


@settings(max_examples=40)
@given(st.data())
def test_a_plan_is_the_same_whatever_was_planned_before(data: st.DataObject) -> None:
    drawn = [
        service for intent in data.draw(st.lists(intents(), min_size=1, max_size=3)) for service in intent.services
    ]
    drawn.append(FTP)
    drawn.append(msgspec.structs.replace(FTP, persistence=None))
    planner = Planner(FRAME)
    subsets = st.lists(st.sampled_from(drawn), unique_by=(lambda one: one.key, lambda one: one.name or one.key))
    for services in data.draw(st.lists(subsets, max_size=6)):
        try:
            intent = Intent(tuple(services))
        except ConfigError:  # ranges that overlap
            continue
        others: dict[Key, dict[End, int]] = {}
        for service in data.draw(st.lists(st.sampled_from(drawn), max_size=3)):
            others[service.key] = {(real.address, real.port): 1 for real in service.reals if not real.mode}
        left = Slots(others)
        plan = planner.plan(intent, left)
        assert (plan.v4, plan.v6) == (straight(intent, left, 4), straight(intent, left, 6))
        assert plan == Planner(FRAME).plan(intent, left)


def test_what_did_not_change_is_shared() -> None:
    planner = Planner(FRAME)
    before = planner.plan(Intent((WEB, DNS)))
    after = planner.plan(Intent((msgspec.structs.replace(WEB, scheduler="lc"), DNS)))
    assert all(one is other for one, other in zip(before.v4, after.v4, strict=True) if one)
    assert before == after


@given(st.lists(st.tuples(st.sets(st.integers(0, 2000)), st.sets(st.integers(0, 2000)))))
def test_a_pool_is_a_set(steps: list[tuple[set[int], set[int]]]) -> None:
    pool, members = Pool[int](), frozenset[int]()
    for added, removed in steps:
        before, were = pool, members
        pool, members = pool.changed(added, removed), members - removed | added
        assert pool == members == pool
        assert len(pool) == len(members)
        assert pool == Pool(members)
        assert (pool | before, pool & before, pool - before) == (members | were, members & were, members - were)
        assert pool | added == members | added
        assert added - pool == added - members


DIRECT = Service("203.0.113.12", 80, mode="dr", reals=tuple(Real(f"10.0.1.{at}", 80) for at in (11, 12, 13)))
DIRECT_UDP = msgspec.structs.replace(DIRECT, protocol="udp", address="203.0.113.11")


@pytest.mark.parametrize(
    ("by", "kept", "room", "expected"),
    [
        ("auto", (), 255, [DIRECT]),
        ("route", (), 255, [DIRECT, DIRECT_UDP]),
        ("frame", (), 255, []),
        ("route", ("203.0.113.12",), 255, [DIRECT_UDP]),
        ("route", (), 2, []),
        ("route", (), 3, [DIRECT, DIRECT_UDP]),
    ],
)
def test_packets_are_steered_by_the_kernel(by: str, kept: tuple[str, ...], room: int, expected: list[Service]) -> None:
    assert steered(Intent((WEB, DIRECT, DIRECT_UDP)), by, kept, room) == expected


def test_packets_that_a_mark_or_a_range_may_want_or_whose_mss_is_held_down_are_not_steered() -> None:
    wide = msgspec.structs.replace(DIRECT, port=81, last=90, reals=())
    assert steered(Intent((wide, DIRECT)), "route", (), 255) == [DIRECT]
    assert steered(Intent((msgspec.structs.replace(DIRECT, mss=1400),)), "route", (), 255) == []
    assert steered(Intent((DIRECT, Service(fwmark=7))), "route", (), 255) == []


@given(st.sets(st.tuples(st.sampled_from([6, 17]), st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 9))))
def test_spans_are_made_disjoint_and_lose_no_port(spans: set[tuple[int, str, int, int]]) -> None:
    given_ = {(protocol, address, first, first + more) for protocol, address, first, more in spans}
    merged = disjoint(given_)

    def ports(of: Iterable[Span]) -> list[tuple[int, str, int]]:
        return sorted((protocol, address, port) for protocol, address, a, b in of for port in range(a, b + 1))

    assert ports(merged) == sorted(set(ports(given_)))
