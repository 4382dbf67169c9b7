"""state.toml: what is saved comes back, a torn file is refused and kept, and the start picks the right intent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfqlb import state
from nfqlb.errors import ConfigError
from nfqlb.model import PROTOCOLS, SCHEDULERS, WEIGHT_MAX, Intent, Real, Service, Timeouts
from nfqlb.state import State

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


STATES = st.builds(
    State, st.integers(0, 2**60), st.booleans(), st.text("0123456789abcdef"), INTENTS, st.sampled_from(("", "eth0"))
)


@settings(max_examples=50)  # each waits for the disk
@given(value=STATES)
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, value: State) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip" / "state.toml"
    state.save(path, value)
    assert state.load(path) == value
    assert os.listdir(path.parent) == [path.name]


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert state.load(tmp_path / "state.toml") is None


def test_every_torn_file_is_refused_by_name_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.toml"
    state.save(path, State(7, False, "abc", WEB))
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
    state.save(path, State(7, False, "abc", WEB))
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=r"state\.toml"):
        state.load(path)


def test_a_save_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.toml"
    state.save(path, State(7, False, "abc", WEB))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.save(path, State(8, False, "abc", EDITED))
    assert state.load(path) == State(7, False, "abc", WEB)
    assert os.listdir(tmp_path) == ["state.toml"]


CRASHED = State(7, False, state.digest(WEB), EDITED)
CLEAN = State(7, True, state.digest(WEB), EDITED)
OTHER = Intent((Service("203.0.113.99", 80),))


@pytest.mark.parametrize(
    ("saved", "given", "restore", "intent", "revision", "remark"),
    [
        pytest.param(None, None, False, Intent(), 1, None, id="first start, nothing given: empty"),
        pytest.param(None, WEB, False, WEB, 1, None, id="first start: what is given"),
        pytest.param(None, None, True, Intent(), 1, "nothing was saved", id="restore of nothing: empty, and says so"),
        pytest.param(CLEAN, None, False, Intent(), 8, None, id="after a stop, nothing given: empty"),
        pytest.param(CLEAN, WEB, False, WEB, 8, None, id="after a stop: what is given"),
        pytest.param(CLEAN, None, True, EDITED, 7, None, id="after a stop, --restore: the saved one"),
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


@pytest.mark.parametrize(("given", "used"), [("", "eth0"), ("eth1", "eth1")])
def test_after_a_crash_the_vips_stay_on_their_device_unless_another_is_named(given: str, used: str) -> None:
    crashed = State(7, False, "", WEB, "eth0")
    assert state.choose(crashed, None, given, restore=False).state.vip_dev == used
