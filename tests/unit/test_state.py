"""state.toml: what is saved comes back, a torn file is refused and kept, and the start picks the right intent."""

from __future__ import annotations

import os
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb import state
from nfqlb.control.drains import Drain
from nfqlb.errors import ConfigError
from nfqlb.model import PROTOCOLS, SCHEDULERS, WEIGHT_MAX, Answers, Intent, Options, Real, Service, Timeouts
from nfqlb.state import Maintenance, State, Store

PORTS = st.integers(1, 65535)
ADDRESSES = {
    4: st.integers(1, 254).map("10.0.0.{}".format),
    6: st.integers(1, 0xFFFF).map("2001:db8::{:x}".format),
}


@st.composite
def services(draw: st.DrawFn) -> Service:
    addresses = ADDRESSES[draw(st.sampled_from((4, 6)))]
    address, port = draw(addresses), draw(PORTS)
    ends = draw(st.lists(st.tuples(addresses, PORTS), unique=True, max_size=4))
    reals = tuple(Real(*end, draw(st.integers(0, WEIGHT_MAX))) for end in ends if end != (address, port))
    protocol, scheduler = draw(st.sampled_from(sorted(PROTOCOLS))), draw(st.sampled_from(SCHEDULERS))
    mss = draw(st.sampled_from((0, 1400))) if protocol == "tcp" else 0
    return Service(address, port, protocol, "nat", scheduler, reals, mss=mss, offload=draw(st.booleans()))


INTENTS = st.builds(
    Intent,
    st.lists(services(), max_size=4, unique_by=lambda service: service.key).map(tuple),
    st.builds(Timeouts, st.integers(1, 9999), st.integers(1, 9999), st.integers(1, 9999)),
)
WEB = Intent((Service("203.0.113.10", 80, reals=(Real("10.0.1.11", 8080, 3),)),))
EDITED = Intent((Service("203.0.113.10", 80, reals=(Real("10.0.1.12", 8080),)),))


KEY = attrgetter("key")
STATES = st.builds(
    State, st.integers(0, 2**60), st.booleans(), st.text("0123456789abcdef"), INTENTS, st.sampled_from(("", "eth0"))
)


@settings(max_examples=50)  # each waits for the disk
@given(value=STATES)
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, value: State) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip" / "state.toml"
    Store(path).save(value)
    assert state.load(path) == value
    assert os.listdir(path.parent) == [path.name]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert state.load(tmp_path / "state.toml") is None


def test_every_torn_file_is_refused_by_name_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.toml"
    Store(path).save(State(7, False, "abc", WEB))
    whole = path.read_bytes()
    origin_end = whole.index(b"[intent")  # shorter ones lack the intent, longer ones may be valid with fewer servers
    for length in range(origin_end):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"state\.toml"):
            state.load(path)
        assert path.read_bytes() == whole[:length]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"port = 80\n", b"port = -1\n"),
        (b"10.0.1.11", b"203.0.113.300"),
        (b"revision = 7", b"revision = 'x'"),
        (b"revision = 7", b"revision = 7\nsurprise = 1"),
        (b"10.0.1.11", b"\xff"),
    ],
)
def test_a_file_with_values_that_cannot_be_is_refused_by_name(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "state.toml"
    Store(path).save(State(7, False, "abc", WEB))
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=r"state\.toml"):
        state.load(path)


def test_a_save_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.toml"
    Store(path).save(State(7, False, "abc", WEB))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Store(path).save(State(8, False, "abc", EDITED))
    assert state.load(path) == State(7, False, "abc", WEB)
    assert os.listdir(tmp_path) == ["state.toml"]


def edits(draw: st.DrawFn, intent: Intent) -> Intent:
    """The intent with some services gone, others changed, new ones, or in another order."""
    kept = [service for service in intent.services if draw(st.integers(0, 3))]
    changed = [replace(one, reals=one.reals[1:]) if draw(st.booleans()) else one for one in kept]
    known = {service.key for service in changed}
    new = [service for service in draw(st.lists(services(), max_size=2, unique_by=KEY)) if service.key not in known]
    found = draw(st.permutations([*changed, *new])) if draw(st.booleans()) else [*changed, *new]
    return Intent(tuple(found), draw(st.sampled_from((intent.timeouts, Timeouts(5)))))


@st.composite
def lives(draw: st.DrawFn) -> list[State]:
    """States that follow each other."""
    found = [draw(STATES)]
    for number in range(draw(st.integers(1, 4))):
        drains = (Drain("203.0.113.10:80/tcp", "10.0.1.11:8080", 1.5),) if draw(st.booleans()) else ()
        intent = edits(draw, found[-1].intent)
        found.append(replace(found[-1], revision=number, clean=False, intent=intent, drains=drains))
    return found


@settings(max_examples=60)
@given(life=lives(), tidied=st.integers(0, 5))
def test_every_save_comes_back_whatever_was_saved_before(
    tmp_path_factory: pytest.TempPathFactory, life: list[State], tidied: int
) -> None:
    folder = tmp_path_factory.mktemp("life")
    path = folder / "state.toml"
    store = Store(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "JOURNAL_MIN", 0)
        for number, value in enumerate(life):
            store.save(value)
            assert state.load(path) == value
            if number == tidied:
                store.tidy()
                assert state.load(path) == value
            if number == 2:  # a crash: the next one goes on
                store = Store(path)
                store.load()
    store.save(life[-1], whole=True)
    assert state.load(path) == life[-1]
    assert os.listdir(folder) == ["state.toml"]


MANY = Intent(tuple(Service(f"203.0.113.{at}", 81) for at in range(20)))
LIFE = [
    State(7, False, "abc", MANY),
    State(8, False, "abc", Intent(MANY.services[1:])),
    State(9, False, "abc", Intent((*MANY.services[1:], *WEB.services))),
    State(10, False, "abc", Intent((*WEB.services, *MANY.services[1:]), Timeouts(9), Answers("drop"), Options(1))),
]


def test_a_journal_torn_at_every_byte_is_the_last_save_that_was_finished(tmp_path: Path) -> None:
    path, journal, ends = tmp_path / "state.toml", tmp_path / "state.jsonl", [0]
    store = Store(path)
    for value in LIFE:
        store.save(value)
        ends.append(journal.stat().st_size if journal.exists() else 0)
    whole, lines = path.read_bytes(), journal.read_bytes()
    assert ends[1] == 0 < ends[2] < ends[3] < ends[4] == len(lines)
    for length in range(len(lines) + 1):
        for tail in (b"", b"\0" * 7):
            journal.write_bytes(lines[:length] + tail)
            last = max(at for at, end in enumerate(ends[1:]) if end <= length)
            again = Store(path)
            assert again.load() == LIFE[last]
            if length in ends or length % 50 == 0:
                again.save(CRASHED)
                assert state.load(path) == CRASHED
                path.write_bytes(whole)


def test_older_lines_beside_a_newer_whole_are_contained_in_it(tmp_path: Path) -> None:
    path, journal = tmp_path / "state.toml", tmp_path / "state.jsonl"
    store = Store(path)
    for value in LIFE:
        store.save(value)
    lines = journal.read_bytes()
    store.save(LIFE[-1], whole=True)
    journal.write_bytes(lines)  # the director died before it took them away
    again = Store(path)
    assert again.load() == LIFE[-1]
    again.save(LIFE[2])
    assert state.load(path) == LIFE[2]
    journal.write_bytes(lines.splitlines(keepends=True)[-1][:-5] + b"....\n" + lines)
    with pytest.raises(ConfigError, match=r"state\.jsonl.*line 1 is damaged"):
        state.load(path)


def test_a_line_that_does_not_fit_the_whole_is_refused_by_name(tmp_path: Path) -> None:
    path, journal = tmp_path / "state.toml", tmp_path / "state.jsonl"
    store = Store(path)
    for value in LIFE:
        store.save(value)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match=r"state\.jsonl.*does not follow number 1"):
        state.load(path)


def test_a_line_that_cannot_be_written_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.toml"
    store = Store(path)
    store.save(LIFE[0])
    store.save(LIFE[1])
    fsync = os.fsync

    def full(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(LIFE[2])
    assert state.load(path) == LIFE[1]
    store.save(LIFE[3])
    assert state.load(path) == LIFE[3]


def test_saves_go_on_while_the_journal_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, journal = tmp_path / "state.toml", tmp_path / "state.jsonl"
    store, encode = Store(path), state._encode
    monkeypatch.setattr(state, "JOURNAL_MIN", 0)
    store.save(replace(LIFE[0], intent=WEB))
    while not journal.exists() or journal.stat().st_size <= path.stat().st_size:
        store.save(replace(LIFE[0], intent=WEB, revision=8))

    def slow(value: State, serial: int) -> bytes:
        store.save(replace(LIFE[0], intent=WEB, revision=9))
        return encode(value, serial)

    monkeypatch.setattr(state, "_encode", slow)
    store.tidy()
    assert state.load(path) == replace(LIFE[0], intent=WEB, revision=9)
    assert len(journal.read_bytes().splitlines()) == 1


CRASHED = State(7, False, state.digest(WEB), EDITED)
CLEAN = State(7, True, state.digest(WEB), EDITED)
OTHER = Intent((Service("203.0.113.99", 80),))


@pytest.mark.parametrize(
    ("saved", "given", "restore", "intent", "revision", "remark"),
    [
        pytest.param(None, None, False, Intent(), 1, None, id="first start, nothing given: empty"),
        pytest.param(None, WEB, False, WEB, 1, None, id="first start: what is given"),
        pytest.param(None, None, True, Intent(), 1, "starting empty", id="restore of nothing: empty, and says so"),
        pytest.param(None, WEB, True, WEB, 1, "starting with what", id="restore of nothing: what is given"),
        pytest.param(CLEAN, None, False, Intent(), 8, None, id="after a stop, nothing given: empty"),
        pytest.param(CLEAN, WEB, False, WEB, 8, None, id="after a stop: what is given"),
        pytest.param(CLEAN, None, True, EDITED, 7, None, id="after a stop, --restore: the saved one"),
        pytest.param(CLEAN, WEB, True, EDITED, 7, None, id="after a stop, --restore beside a file: the saved one"),
        pytest.param(CRASHED, WEB, False, EDITED, 7, None, id="after a crash, same command: with run-time edits"),
        pytest.param(CRASHED, None, False, EDITED, 7, None, id="after a crash, nothing given: with run-time edits"),
        pytest.param(CRASHED, OTHER, False, OTHER, 8, "the given one", id="after a crash, other command: that one"),
        pytest.param(CRASHED, None, True, EDITED, 7, None, id="after a crash, --restore: the saved one"),
    ],
)
def test_a_start_picks(
    saved: State | None, given: Intent | None, restore: bool, intent: Intent, revision: int, remark: str | None
) -> None:
    choice = state.choose(saved, given, "", restore=restore)
    assert choice.restored == (saved is not None and choice.state.intent is saved.intent)
    assert (choice.state.intent, choice.state.revision, choice.state.clean) == (intent, revision, False)
    assert (choice.remark is None) == (remark is None)
    assert remark is None or remark in (choice.remark or "")


def test_a_second_crash_still_knows_its_command() -> None:
    again = state.choose(state.choose(CRASHED, WEB, "", restore=False).state, WEB, "", restore=False)
    assert again.state.intent == EDITED


@pytest.mark.parametrize("saved", [CLEAN, CRASHED])
def test_who_is_in_maintenance_stays_there_whatever_a_start_begins_with(saved: State) -> None:
    out = (Maintenance(str(WEB.services[0].key), "10.0.0.1:80", 1e9, "new disk"),)
    assert state.choose(replace(saved, maintenance=out), OTHER, "", restore=False).state.maintenance == out


@pytest.mark.parametrize(("given", "used"), [("", "eth0"), ("eth1", "eth1")])
def test_after_a_crash_the_vips_stay_on_their_device_unless_another_is_named(given: str, used: str) -> None:
    crashed = State(7, False, "", WEB, "eth0")
    assert state.choose(crashed, None, given, restore=False).state.vip_dev == used


def test_at_a_takeover_another_intent_is_a_change_of_what_was_saved() -> None:
    drain = Drain(str(WEB.services[0].key), "10.0.0.1:80", 1e9, False)
    running = replace(CRASHED, drains=(drain,), vip_dev="eth0", reloaded="0123")
    choice = state.choose(running, OTHER, "", restore=False, takeover=True)
    changed = {"revision": 8, "origin": state.digest(OTHER), "intent": OTHER, "reloaded": ""}
    assert choice.state == replace(running, **changed)
    assert (choice.restored, choice.remark) == (False, None)
    same = state.choose(running, running.intent, "eth1", restore=False, takeover=True).state
    assert (same.revision, same.vip_dev, same.drains) == (running.revision, "eth1", (drain,))
    assert state.choose(running, None, "", restore=False, takeover=True).state == running
