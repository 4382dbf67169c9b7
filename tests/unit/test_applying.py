"""Whole configurations: applied, confirmed, taken back, read again; over a director without a data path."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nfqlb import clock, state
from nfqlb.config.toml import Loaded, dumps
from nfqlb.control import registry
from nfqlb.errors import ConfigError, ConfigErrors, ConflictError, KernelError, NotFoundError
from nfqlb.model import Intent, Real
from nfqlb.runconfig import RunConfig
from tests.unit.fakes import DNS, WEB, FakeDirector

BEFORE, AFTER = Intent((WEB, DNS)), Intent((replace(WEB, scheduler="rr"),))


def kinds(director: FakeDirector) -> list[str]:
    return [event.kind for event in director.feed.since(0)]


def started_with(director: FakeDirector, file: Path) -> None:
    director.config = RunConfig(api="/run/nfqlb/main/api.sock", origin=str(file))


def test_a_plan_changes_nothing(director: FakeDirector) -> None:
    outcome = asyncio.run(director.applier.plan({"workers": 4}, AFTER))
    assert [step.action for step in outcome.steps] == ["delete", "edit"]
    assert outcome.notes == ["workers = 4 takes effect at the next start; now it is 2"]
    assert (director.intent(), director.revision) == (BEFORE, 1)


def test_an_application_is_one_change(director: FakeDirector) -> None:
    outcome = asyncio.run(director.applier.apply({}, AFTER))
    assert (outcome.revision, director.revision, director.intent()) == (2, 2, AFTER)
    assert asyncio.run(director.applier.apply({}, AFTER)).steps == []
    assert director.revision == 2


def test_of_two_writers_the_second_is_told(director: FakeDirector) -> None:
    asyncio.run(director.applier.apply({}, AFTER, revision=1))
    with pytest.raises(ConflictError, match="this is revision 2, not 1"):
        asyncio.run(director.applier.apply({}, BEFORE, revision=1))
    with pytest.raises(ConflictError):
        asyncio.run(director.applier.plan({}, BEFORE, revision=1))
    assert director.intent() == AFTER


def test_what_the_kernel_refuses_leaves_all_as_it_was(director: FakeDirector) -> None:
    director.failure = KernelError("the kernel refused")
    with pytest.raises(KernelError):
        asyncio.run(director.applier.plan({}, AFTER))
    with pytest.raises(KernelError):
        asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    assert (director.intent(), director.state.pending) == (BEFORE, None)


def test_nothing_to_do_waits_for_nobody(director: FakeDirector) -> None:
    outcome = asyncio.run(director.applier.apply({}, BEFORE, confirm_within=60))
    assert (outcome.confirm_by, director.state.pending) == (0, None)


@pytest.mark.parametrize("seconds", [-1, 86401, float("nan")])
def test_the_time_to_confirm_has_bounds(director: FakeDirector, seconds: float) -> None:
    with pytest.raises(ConfigError, match="confirm_within"):
        asyncio.run(director.applier.apply({}, AFTER, confirm_within=seconds))


def test_what_nobody_confirms_goes_back(director: FakeDirector) -> None:
    applier = director.applier
    outcome = asyncio.run(applier.apply({}, AFTER, confirm_within=60))
    assert 59 < outcome.confirm_by - time.time() <= 60
    assert 0 < asyncio.run(applier.mind()) <= 0.5
    assert director.intent() == AFTER
    assert director.state.pending
    director.state = replace(director.state, pending=replace(director.state.pending, until=clock.now()))
    asyncio.run(applier.mind())
    assert (director.intent(), director.revision, director.state.pending) == (BEFORE, 3, None)
    assert kinds(director) == ["waits", "rolled back"]


def test_what_is_confirmed_stays(director: FakeDirector) -> None:
    asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    assert asyncio.run(director.applier.confirm()) == 2
    assert (director.intent(), director.state.pending) == (AFTER, None)
    with pytest.raises(NotFoundError, match="nothing waits to be confirmed"):
        asyncio.run(director.applier.confirm())
    assert kinds(director) == ["waits", "confirmed"]


def test_one_can_go_back_at_once(director: FakeDirector) -> None:
    asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    assert asyncio.run(director.applier.rollback()) == 3
    assert (director.intent(), director.state.pending) == (BEFORE, None)
    with pytest.raises(NotFoundError):
        asyncio.run(director.applier.rollback())


@pytest.mark.parametrize(("first", "kept"), [("confirm", AFTER), ("rollback", BEFORE)])
@pytest.mark.parametrize("second", ["confirm", "rollback", "mind"])
def test_of_those_who_confirm_and_go_back_at_a_time_the_first_counts(
    director: FakeDirector, monkeypatch: pytest.MonkeyPatch, first: str, kept: Intent, second: str
) -> None:
    """The second has seen that something waits, and then waits for the first to be done."""
    asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    assert director.state.pending
    director.state = replace(director.state, pending=replace(director.state.pending, until=clock.now()))
    change = director.change

    async def later(*args: Any, **fields: Any) -> int:
        monkeypatch.setattr(director, "change", change)
        await getattr(director.applier, first)()
        return await change(*args, **fields)

    monkeypatch.setattr(director, "change", later)
    if second == "mind":
        asyncio.run(director.applier.mind())
    else:
        with pytest.raises(NotFoundError, match="nothing waits to be confirmed any more"):
            asyncio.run(getattr(director.applier, second)())
    assert (director.intent(), director.state.pending) == (kept, None)
    assert kinds(director) == ["waits", {"confirm": "confirmed", "rollback": "rolled back"}[first]]


def test_nothing_else_changes_while_something_waits(director: FakeDirector) -> None:
    asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    for attempt in (
        director.change(lambda intent: registry.add_real(intent, WEB.key, Real("10.0.1.14", 80))),
        director.applier.apply({}, BEFORE),
        director.applier.apply({}, BEFORE, confirm_within=60),
    ):
        with pytest.raises(ConflictError, match=r"waits to be confirmed, (59|60) s more; `nfqlb confirm` keeps it"):
            asyncio.run(attempt)
    assert director.intent() == AFTER


def test_what_waits_survives_a_crash_in_the_state(director: FakeDirector, tmp_path: Path) -> None:
    asyncio.run(director.applier.apply({}, AFTER, confirm_within=60))
    state.Store(tmp_path / "state.toml").save(director.state)
    saved = state.load(tmp_path / "state.toml")
    assert saved == director.state
    restarted = state.choose(saved, None, "", restore=False).state
    assert restarted.pending == director.state.pending


def test_the_file_of_the_start_is_read_again(director: FakeDirector, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    started_with(director, file)
    file.write_text(dumps(Loaded({"workers": 3}, AFTER)))
    outcome = asyncio.run(director.applier.reload())
    assert director.intent() == AFTER
    assert outcome.notes == ["workers = 3 takes effect at the next start; now it is 1"]
    assert director.state.reloaded == state.digest(AFTER)


def test_a_file_with_mistakes_changes_nothing(director: FakeDirector, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    started_with(director, file)
    file.write_text('[[service]]\nvip = "10.0.0.1"\nmode = "bridge"\n')
    with pytest.raises(ConfigErrors) as refused:
        asyncio.run(director.applier.reload())
    assert len(refused.value.errors) == 2
    assert director.intent() == BEFORE
    assert kinds(director) == ["refused"]


def test_who_was_started_without_a_file_has_none_to_read(director: FakeDirector) -> None:
    with pytest.raises(ConfigError, match="was not started with a file; use `nfqlb apply FILE`"):
        asyncio.run(director.applier.reload())


@pytest.mark.parametrize("given", [BEFORE, AFTER], ids=["the old file", "the file that was read again"])
def test_after_a_crash_a_director_goes_on_whichever_reading_its_command_had(given: Intent) -> None:
    crashed = state.State(7, False, state.digest(BEFORE), Intent((DNS,)), reloaded=state.digest(AFTER))
    assert state.choose(crashed, given, "", restore=False).state.intent == Intent((DNS,))


def test_settings_are_those_that_are_not_so_by_default(director: FakeDirector) -> None:
    director.config = msgspec.structs.replace(director.config, metrics="127.0.0.1:9105", vip_dev="eth0")
    director.state = replace(director.state, vip_dev="eth1")
    assert director.applier.settings() == {"workers": 2, "metrics": "127.0.0.1:9105", "vip_dev": "eth1"}
