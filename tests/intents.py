"""Strategies that draw what an operator may ask for.

What is drawn from often is made once: hypothesis looks through each new strategy before it draws.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from nfqlb.model import (
    ANY_ADDRESS,
    BUDGET_MAX,
    MARK_MAX,
    MODES,
    NO_CONNECTION,
    NO_SERVER,
    ON_DOWN,
    PROTOCOLS,
    QUIESCENT,
    SCHEDULERS,
    SUDDEN,
    WEIGHT_MAX,
    Answers,
    Health,
    Intent,
    Options,
    OwnTimeouts,
    Persistence,
    Quorum,
    Real,
    Service,
    Timeouts,
)

PORTS = st.integers(1, 65535)
ADDRESSES = {
    4: st.integers(1, 254).map("10.0.0.{}".format),
    6: st.integers(1, 0xFFFF).map("2001:db8::{:x}".format),
}
VIPS = {4: "203.0.113.{}".format, 6: "2001:db8:1::{:x}".format}
TEXT = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")
SECONDS = st.integers(1, 9999)
TIMEOUTS = st.builds(Timeouts, *[SECONDS] * len(Timeouts.__struct_fields__))
ANSWERS = st.builds(Answers, st.sampled_from(NO_SERVER), st.sampled_from(NO_CONNECTION), st.booleans())
OPTIONS = st.builds(
    Options,
    st.integers(0, 3),
    *[st.booleans()] * 3,
    *[st.integers(0, 3)] * 3,
    st.integers(1, 99),
    *[st.integers(0, 9999)] * 2,
)


@cache
def persistences(version: int) -> st.SearchStrategy[Persistence | None]:
    netmask = st.none() | st.integers(1, 32 if version == 4 else 128)
    return st.none() | st.builds(Persistence, SECONDS, netmask, st.sampled_from(QUIESCENT))


@cache
def own_timeouts(protocol: str) -> st.SearchStrategy[OwnTimeouts | None]:
    mine = [name for name in OwnTimeouts.__struct_fields__ if protocol in (name.partition("_")[0], "any")]
    return st.none() | st.builds(OwnTimeouts, **{name: st.just(0) | SECONDS for name in mine})


@st.composite
def reals(draw: st.DrawFn, address: str, port: int, mode: str) -> Real:
    upper = draw(st.integers(0, 999))
    return Real(
        address,
        port,
        draw(st.integers(0, WEIGHT_MAX)),
        upper,
        draw(st.integers(0, upper)),
        draw(st.sampled_from(("", mode))),
    )


@st.composite
def quorums(draw: st.DrawFn, version: int) -> Quorum:
    weight = draw(st.integers(1, 9))
    sorry = draw(st.sampled_from(("", "10.0.1.1,weight=3" if version == 4 else "2001:db8:9::1")))
    line = draw(st.sampled_from(("", "/bin/tell them")))
    return Quorum(weight, draw(st.integers(0, weight - 1)), sorry, bool(sorry) and draw(st.booleans()), line, line)


@cache
def healths() -> st.SearchStrategy[Health | None]:
    """Of the checks' results, what follows."""
    seconds = st.integers(0, 300).map(float)
    return st.none() | st.builds(
        Health, port=PORTS, on_down=st.sampled_from(ON_DOWN), panic=st.integers(0, 100), hold=seconds
    )


@st.composite
def choosing(draw: st.DrawFn) -> dict[str, Any]:
    """A scheduler in Python now and then, and a shadow of the other kind."""
    name = draw(st.sampled_from(("own.py", "/opt/lb/own.py")))
    found: dict[str, Any] = {"scheduler": draw(st.sampled_from(SCHEDULERS))}
    if draw(st.booleans()):
        found = {"fallback": draw(st.sampled_from(SCHEDULERS)), "budget": draw(st.integers(1, BUDGET_MAX))}
        found[draw(st.sampled_from(("scheduler", "shadow")))] = name
    return found


@st.composite
def services(draw: st.DrawFn) -> Service:
    version = draw(st.sampled_from((4, 6)))
    kind = draw(st.sampled_from(("port", "range", "every port", "mark")))
    port = 0 if kind in ("every port", "mark") else draw(st.integers(1, 65534))
    wide, mode = kind != "port", draw(st.sampled_from(MODES))
    ports = PORTS if mode == "nat" else st.just(port)
    if wide:
        ports = st.just(0) | PORTS if mode == "nat" else st.just(0)
    ends = draw(st.lists(st.tuples(ADDRESSES[version], ports), unique=True, max_size=4))
    picks = draw(choosing())
    mark, protocol = kind == "mark", draw(st.sampled_from(sorted(PROTOCOLS)))
    return Service(
        ANY_ADDRESS[version] if mark else VIPS[version](draw(st.integers(1, 99))),
        port,
        "" if mark else protocol,
        mode,
        reals=tuple(draw(reals(*end, mode)) for end in ends),
        name=draw(st.just("") | st.text(TEXT, max_size=8)),
        last=draw(st.integers(port + 1, 65535)) if kind == "range" else 0,
        fwmark=draw(st.integers(1, MARK_MAX)) if mark else 0,
        persistence=draw(persistences(version)),
        health=draw(healths()),
        quorum=draw(st.none() | quorums(version)),
        **picks,
        maglev_size=draw(st.sampled_from((4093, 655373))) if "mh" in picks.values() else 4093,
        slow_start=0 if picks.get("scheduler") in SUDDEN else draw(st.sampled_from((0, 30))),
        connections_max=draw(st.sampled_from((0, 5000))),
        timeouts=draw(own_timeouts("any" if mark else protocol)),
    )


@st.composite
def intents(draw: st.DrawFn, most: int = 4) -> Intent:
    """No two services share a name, or a port of one address."""
    found = draw(st.lists(services(), max_size=most, unique_by=lambda service: (service.address, service.fwmark)))
    names = [service.name for service in found]
    found = [service for at, service in enumerate(found) if not service.name or service.name not in names[:at]]
    return Intent(tuple(found), draw(TIMEOUTS), draw(ANSWERS), draw(OPTIONS))
