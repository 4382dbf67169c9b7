"""The director over a kernel and a data path that only write down what they are asked: order, failures, both ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted  # type: ignore[import-untyped]

from nfqlb import clock, director, state
from nfqlb.advising import Advisors
from nfqlb.control import compile, registry
from nfqlb.control.compile import Compiler, unpacked
from nfqlb.control.reconcile import Step
from nfqlb.director import Director
from nfqlb.errors import ConfigError, KernelError, MissingError, NotFoundError, UnreachableError
from nfqlb.handover import LETS_GO
from nfqlb.health.machine import Condition, Status
from nfqlb.health.runner import Seen
from nfqlb.kernel import neighbours
from nfqlb.kernel.kernel import _told
from nfqlb.kernel.neighbours import Hop, Route
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.plan import marks as marks_of
from nfqlb.model import Health, Intent, Key, Options, Quorum, Real, Service, Sync
from nfqlb.runconfig import QUEUES, Ha, RunConfig
from nfqlb.state import State, Store
from nfqlb.worker import Queue
from tests.plans import reals_of, services_of

WEB = Service("203.0.113.10", 80, reals=(Real("10.0.1.11", 8080), Real("10.0.1.12", 8080)))
INTENT = Intent((WEB,))
NEW, OLD = Real("10.0.1.13", 8080), WEB.reals[0]


class Fakes:
    """Kernel, data path, table and workers in one: `done` is what happened, `fails` what goes wrong, once."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.fails: dict[object, Exception] = {}
        self.plan: Plan | None = None
        self.published: object = None
        self.found: list[str] = []  # by repair
        self.swept = 0
        self.defences = {"drop_entry": 0, "drop_packet": 0, "secure_tcp": 0, "evicted": 0}
        self.wrong: list[str] = []  # warnings
        self.adopted, self.torn, self.used, self.capacity, self.lost = 0, 0, 0, 64, ""
        self.loads: dict[int, tuple[int, int]] = {}  # connections by slot
        self.counts: dict[int, tuple[int, ...]] = {}  # what a slot counted
        self.known: list[int] = []
        self.standby = False

    def step(self, what: object) -> None:
        if what in self.fails:
            raise self.fails.pop(what)
        self.done.append(what)

    def take(self) -> list[object]:
        done, self.done = self.done, []
        return done

    # the kernel
    diverter = "nft"

    def require(self, plan: Plan) -> None:
        self.step("require")

    def apply(self, plan: Plan) -> None:
        steered = f" {len(plan.v4.heads)}/{len(plan.ways)}" if plan.mask else ""
        self.step(f"kernel {len(services_of(plan))}/{len(reals_of(plan))}{steered}")
        self.plan = plan

    def marks(self, plan: Plan) -> dict[str, int]:
        return marks_of({way.server: number for number, way in enumerate(sorted(plan.ways), 1)}, plan.mask)

    def repair(self) -> list[str]:
        if "repair" in self.fails:
            raise self.fails.pop("repair")
        return self.found

    def warnings(self) -> list[str]:
        return self.wrong

    def withdraw(self) -> None:
        self.step("withdraw")

    # the data path
    def publish(self, snapshot: object) -> None:
        self.step("publish")
        self.published = snapshot

    def stand_by(self, on: bool) -> None:
        self.standby = on

    def worker(self) -> object:
        return None

    def defend(self, now: int) -> int:
        return 0

    def counted(self, slots: Sequence[int]) -> dict[int, tuple[int, ...]]:
        return {slot: self.counts[slot] for slot in slots if slot in self.counts}

    def release(self, slot: int) -> bool:
        self.known.remove(slot)
        return self.counts.pop(slot) != ()

    def sweep(self, now: int) -> int:
        self.swept += 1
        return 0

    def aim(self, slot: int, hop: object) -> None:
        self.step(f"aim {slot}" if hop else f"no way to {slot}")

    # the table
    def load(self, slot: int) -> tuple[int, int]:
        return self.loads.get(slot, (0, 0))

    def close(self, clean: bool) -> None:
        self.step(f"close {clean}")

    # a worker
    def start(self) -> list[str]:
        self.step("take packets")
        return []

    def stop(self) -> None:
        self.step("stop")

    def let_go(self) -> None:
        self.step("let go")

    def info(self, seen: object) -> list[dict[str, object]]:
        return []


class Made:
    """A director with its fakes."""

    def __init__(
        self,
        folder: Path,
        fakes: Fakes,
        *,
        bound: bool = False,
        starts: int = 0,
        takeover: bool = False,
        marks: Any = None,
        advisors: Advisors | None = None,
        **config: Any,
    ) -> None:
        self.fakes, self.file = fakes, folder / "state" / "state.toml"
        self.director = Director(
            RunConfig(**{"api": str(folder / "api.sock"), "intent": INTENT, **config}),
            state_file=self.file,
            table=cast(Any, fakes),
            datapath=cast(Any, fakes),
            compiler=Compiler(
                lambda service, real: int(real.address.rpartition(".")[2]),
                service,
                snapshot,
                advise=advisors and advisors.advisor,
            ),
            advisors=advisors or Advisors(),
            kernel=lambda: fakes,
            queues=[[Queue(cast(Any, None), 4096 + at, kind, bound) for at, kind in enumerate(QUEUES)]],
            holder=1,
            starts=starts,
            takeover=takeover,
            marks=marks,
        )

    def change(self, edit: Callable[[Intent], Intent]) -> int:
        return asyncio.run(self.director.change(edit))

    def saved(self) -> State:
        saved = state.load(self.file)
        assert saved
        return saved


def service(*values: object, **_: object) -> Any:
    return values


def snapshot(services: Sequence[object], *timeouts: int, **_: object) -> Any:
    return tuple(services), timeouts


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    save = Store.save

    def noted(store: Store, value: State, **how: bool) -> None:
        fakes.step("save")
        save(store, value, **how)

    monkeypatch.setattr(Store, "save", noted)
    monkeypatch.setattr(director, "Worker", lambda *_, **__: fakes)
    return fakes


@pytest.fixture
def made(tmp_path: Path, fakes: Fakes) -> Made:
    made = Made(tmp_path, fakes)
    made.director.start()
    fakes.take()
    return made


LOCAL = Route(True, 1, "203.0.113.20", 0, bytes(16))
DIRECT = Service("203.0.113.20", 80, mode="dr", reals=(Real("10.0.1.11", 80), Real("10.0.1.12", 80)))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Route]:
    """The routes there are; real servers are reached over interface 7."""
    found = {f"10.0.1.{at}": Route(False, 7, f"10.0.1.{at}", 0, bytes(16)) for at in (11, 12, 13)}
    monkeypatch.setattr(neighbours, "routes", lambda asked: {ip: found[ip] for ip in asked if ip in found})
    monkeypatch.setattr(neighbours, "ruled", lambda: {4})
    monkeypatch.setattr(neighbours, "hops", lambda asked: {ip: Hop(7, 1500, b"server", b"ours..") for ip in asked})
    return found


def add(intent: Intent) -> Intent:
    return registry.add_real(intent, WEB.key, NEW)


def delete(intent: Intent) -> Intent:
    return registry.delete_real(intent, WEB.key, OLD.address, OLD.port)


def move(intent: Intent) -> Intent:
    """Another VIP in front of the same real servers."""
    service = Service("203.0.113.11", 80, reals=WEB.reals)
    return registry.add_service(registry.delete_service(intent, WEB.key), service)


def weigh(intent: Intent) -> Intent:
    return registry.edit_real(intent, WEB.key, Real(OLD.address, OLD.port, 5))


# --- begin ------------------------------------------------------------------------------------------------------------


def test_a_first_start_checks_before_it_touches(tmp_path: Path, fakes: Fakes) -> None:
    made = Made(tmp_path, fakes)
    made.director.start()
    assert fakes.done == ["publish", "require", "take packets", "kernel 1/2", "save"]
    assert made.saved() == State(1, False, state.digest(INTENT), INTENT)


def test_after_a_crash_packets_are_taken_at_once(tmp_path: Path, fakes: Fakes) -> None:
    Made(tmp_path, fakes).director.start()
    fakes.take()
    again = Made(tmp_path, fakes, bound=True, starts=1)
    again.director.start()
    assert fakes.done == ["publish", "take packets", "kernel 1/2"]
    assert again.director.intent() == INTENT


def test_run_time_edits_survive_a_crash_of_the_same_command(tmp_path: Path, fakes: Fakes, made: Made) -> None:
    made.change(add)
    again = Made(tmp_path, fakes)
    again.director.start()
    assert again.director.intent() == add(INTENT)
    assert again.director.revision == 2
    assert again.director.info()["edited"] is True


@pytest.mark.parametrize(
    ("step", "error", "happened"),
    [
        ("require", MissingError("no ipset"), ["publish"]),
        ("take packets", KernelError("queue"), ["publish", "require"]),
        ("kernel 1/2", KernelError("no"), ["publish", "require", "take packets"]),
        ("save", OSError(28, "full"), ["publish", "require", "take packets", "kernel 1/2", "withdraw"]),
    ],
)
def test_a_first_start_that_fails_leaves_nothing(
    tmp_path: Path, fakes: Fakes, step: str, error: Exception, happened: list[str]
) -> None:
    made = Made(tmp_path, fakes)
    fakes.fails[step] = error
    with pytest.raises((KernelError, MissingError)):
        made.director.start()
    assert fakes.done == happened
    assert not made.file.exists()


def test_a_restart_that_fails_leaves_the_kernel_to_the_next(tmp_path: Path, fakes: Fakes) -> None:
    made = Made(tmp_path, fakes, bound=True, starts=3)
    fakes.fails["save"] = OSError(28, "full")
    with pytest.raises(KernelError, match=r"state\.toml: full"):
        made.director.start()
    assert "withdraw" not in fakes.done


def test_warnings_are_said_before_ready(tmp_path: Path, fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    fakes.wrong = ["10.0.1.11 has no route"]
    made = Made(tmp_path, fakes)
    made.director.start()
    assert caplog.messages == ["10.0.1.11 has no route"]
    assert made.director.info()["warnings"] == ["10.0.1.11 has no route"]


# --- who gets connections ---------------------------------------------------------------------------------------------

HEALTHY = msgspec.structs.replace(WEB, health=Health(hold=10), quorum=Quorum(2))


def find(made: Made, *down: Real) -> None:
    """The checks find these down, and nobody else; the director hears of it."""
    serving = made.director.serving
    for real in WEB.reals:
        end = WEB.key, real.address, real.port
        status = Status(Condition.DOWN, why="refused") if real in down else Status()
        before = serving.health.seen.get(end)
        serving.health.seen[end] = Seen(status, 0)
        if (before.status.serves if before else True) != status.serves:
            serving._turned(end, status)
    asyncio.run(made.director._judge())


@pytest.fixture
def checked(tmp_path: Path, fakes: Fakes) -> Made:
    made = Made(tmp_path, fakes, intent=Intent((HEALTHY,)))
    made.director.start()
    fakes.take()
    return made


def servers(fakes: Fakes) -> set[str]:
    """Those that the data path knows of."""
    (compiled,) = cast(Any, fakes.published)[0]
    return {unpacked(address) for _, address, *_ in compiled[4]}


def test_who_is_down_is_left_out_until_it_is_up(checked: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    find(checked, OLD)
    assert checked.fakes.done == ["publish", "save"]
    assert servers(checked.fakes) == {"10.0.1.12"}
    find(checked)
    assert servers(checked.fakes) == {"10.0.1.11", "10.0.1.12"}
    assert caplog.messages == [
        f"real server {OLD} of {WEB.key} is down: refused",
        f"service {WEB.key} has lost its quorum: weight 1 is up, 2 is wanted",
        f"real server {OLD} of {WEB.key} is up again",
        f"service {WEB.key} has its quorum again",
    ]
    assert next(event.message for event in checked.director.feed.since(0)).endswith("is down: refused")


def test_one_that_goes_down_again_is_held_out_and_that_survives_a_restart(
    tmp_path: Path, checked: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    for down in ([OLD], [], [OLD], []):
        find(checked, *down)
    assert caplog.messages[-1].endswith(
        "passes its checks, but it went down 2 times of late: it stays out for 10 s more"
    )
    assert servers(checked.fakes) == {"10.0.1.12"}
    assert 0 < checked.director.serving.due() <= 10
    again = Made(tmp_path, checked.fakes, intent=Intent((HEALTHY,)))
    again.director.start()
    assert servers(checked.fakes) == {"10.0.1.12"}
    assert again.director.serving.view.standing.lost == {WEB.key}
    now += 10
    asyncio.run(again.director._judge())
    assert servers(checked.fakes) == {"10.0.1.11", "10.0.1.12"}
    now += 300
    asyncio.run(again.director._judge())
    assert again.saved().damped == ()


def test_a_ramp_is_published_step_by_step_and_a_restart_ends_it(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heavy = (Real("10.0.1.11", 8080, 100), Real("10.0.1.12", 8080, 100))
    slow = msgspec.structs.replace(WEB, reals=heavy, slow_start=10)
    made = Made(tmp_path, fakes, intent=Intent((slow,)))
    made.director.start()
    asyncio.run(made.director.maintain(WEB.key, OLD, True))
    asyncio.run(made.director.maintain(WEB.key, OLD, False))
    assert made.director._ill.is_set()
    made.director._upkeep._left.clear()
    fakes.take()
    weights = []
    for _ in range(3):
        weights.append(weights_of(fakes))
        now += 5
        asyncio.run(made.director._judge())
    assert weights == [[100, 10], [100, 50], [100, 100]]
    assert fakes.take() == ["publish", "publish"]
    assert not made.director._upkeep._left.is_set()
    asyncio.run(made.director.maintain(WEB.key, OLD, True))
    asyncio.run(made.director.maintain(WEB.key, OLD, False))
    assert weights_of(fakes) == [100, 10]
    Made(tmp_path, fakes, intent=Intent((slow,))).director.start()
    assert weights_of(fakes) == [100, 100]


def weights_of(fakes: Fakes) -> list[int]:
    """Of the real servers that the data path knows, newest first."""
    (compiled,) = cast(Any, fakes.published)[0]
    return [weight for _, _, _, weight, *_ in compiled[4]]


def test_who_fails_its_clients_is_ejected_for_longer_each_time(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    service = msgspec.structs.replace(WEB, health=Health(passive=5, eject=10, hold_max=100))
    made = Made(tmp_path, fakes, intent=Intent((service,)))
    made.director.start()
    find(made)
    serving, ends = made.director.serving, [(WEB.key, real.address, real.port) for real in WEB.reals]
    assert sorted(serving.watched(made.director.intent())) == ends
    refused, waits = 0, []
    for _ in range(3):
        for more in (0, 4, 1):
            refused += more
            serving.observe({ends[0]: (0, refused, 0), ends[1]: (refused, 0, 0)})
            asyncio.run(made.director._judge())
            assert (ends[0] in serving.out) == (more == 1)
        assert servers(fakes) == {"10.0.1.12"}
        waits.append(round(serving.due()))
        now += waits[-1] + 1
        asyncio.run(made.director._judge())
        assert servers(fakes) == {"10.0.1.11", "10.0.1.12"}
    assert waits == [10, 20, 30]
    why = "is ejected for 10.0 s: 5 handshakes failed on end"
    assert f"real server {OLD} of {WEB.key} {why}" in caplog.messages


def test_an_ejection_ends_with_the_look_at_handshakes(tmp_path: Path, fakes: Fakes) -> None:
    made = Made(tmp_path, fakes, intent=Intent((msgspec.structs.replace(WEB, health=Health(passive=5)),)))
    made.director.start()
    find(made)
    end = WEB.key, OLD.address, OLD.port
    for refused in (0, 5):
        made.director.serving.observe({end: (0, refused, 0)})
    asyncio.run(made.director._judge())
    assert made.director.serving.out[end].cause == "ejected"
    made.change(lambda intent: Intent((msgspec.structs.replace(intent.services[0], health=Health()),)))
    assert made.director.serving.out == {}
    assert servers(fakes) == {"10.0.1.11", "10.0.1.12"}


def test_maintenance_survives_restarts_and_edits_and_ends_with_the_server(tmp_path: Path, checked: Made) -> None:
    asyncio.run(checked.director.maintain(WEB.key, OLD, True, "disk"))
    assert servers(checked.fakes) == {"10.0.1.12"}
    checked.change(lambda intent: registry.edit_real(intent, WEB.key, Real(OLD.address, OLD.port, 5)))
    assert servers(checked.fakes) == {"10.0.1.12"}
    again = Made(tmp_path, checked.fakes, intent=Intent((HEALTHY,)))
    again.director.start()
    assert servers(checked.fakes) == {"10.0.1.12"}
    assert again.director.serving.out[WEB.key, OLD.address, OLD.port].why == "disk"
    asyncio.run(again.director.maintain(WEB.key, OLD, False))
    assert servers(checked.fakes) == {"10.0.1.11", "10.0.1.12"}
    asyncio.run(again.director.maintain(WEB.key, OLD, True))
    again.change(delete)
    asyncio.run(again.director._judge())
    assert again.saved().maintenance == ()
    with pytest.raises(NotFoundError):
        asyncio.run(again.director.maintain(WEB.key, OLD, True))


def test_the_vip_is_there_only_with_a_quorum_that_checks_have_seen(tmp_path: Path, fakes: Fakes) -> None:
    service = msgspec.structs.replace(HEALTHY, quorum=Quorum(2, announce="quorum"))
    made = Made(tmp_path, fakes, intent=Intent((service,)), vip_dev="eth0")

    def held() -> set[str]:
        assert fakes.plan
        return {*fakes.plan.held}

    def asked(*reals: Real) -> None:
        for real in WEB.reals:
            end = WEB.key, real.address, real.port
            made.director.serving.health.seen[end] = Seen(Status(row=int(real in reals)), 0)
        asyncio.run(made.director._judge())

    made.director.start()
    assert held() == set()
    asked(OLD)
    assert held() == set()
    assert made.director.serving.due() < 1
    asked(*WEB.reals)
    assert held() == {WEB.address}
    find(made, OLD)
    assert held() == set()
    find(made)
    assert held() == {WEB.address}
    again = Made(tmp_path, fakes, bound=True, starts=1, intent=Intent((service,)), vip_dev="eth0")
    again.director.start()
    assert held() == {WEB.address}, "after a crash it stays"


def test_the_sorry_server_has_its_way_before_it_is_needed(tmp_path: Path, fakes: Fakes) -> None:
    service = msgspec.structs.replace(HEALTHY, quorum=Quorum(sorry="10.0.9.9:80"))
    made = Made(tmp_path, fakes, intent=Intent((service,)))
    made.director.start()
    assert fakes.plan
    assert len(reals_of(fakes.plan)) == 3
    assert servers(fakes) == {"10.0.1.11", "10.0.1.12"}
    find(made, *WEB.reals)
    assert servers(fakes) == {"10.0.9.9"}
    assert made.saved().lost == (str(WEB.key),)
    find(made)
    assert servers(fakes) == {"10.0.1.11", "10.0.1.12"}


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "order"),
    [
        pytest.param(add, ["kernel 1/3", "publish", "save"], id="what is added: kernel first"),
        pytest.param(delete, ["publish", "save"], id="a server's way back: not now"),
        pytest.param(move, ["kernel 2/2", "publish", "kernel 1/2", "save"], id="both: in between it holds both"),
        pytest.param(weigh, ["publish", "save"], id="a weight: the kernel does not know it"),
    ],
)
def test_a_change_goes(made: Made, edit: Callable[[Intent], Intent], order: list[str]) -> None:
    assert made.change(edit) == 2
    assert made.fakes.done == order
    assert made.director.intent() == edit(INTENT)
    assert made.saved() == State(2, False, state.digest(INTENT), edit(INTENT))


@pytest.mark.parametrize(("edit", "swept"), [(delete, 1), (weigh, 0), (add, 0)])
def test_what_a_server_that_left_has_in_the_table_is_looked_for(
    made: Made, edit: Callable[[Intent], Intent], swept: int
) -> None:
    async def change() -> None:
        minder = asyncio.create_task(made.director._upkeep._mind_leftovers())
        await made.director.change(edit)
        await until(lambda: made.fakes.swept == swept)
        minder.cancel()

    asyncio.run(change())
    assert not made.director._upkeep._left.is_set()


def test_a_change_of_nothing_is_none(made: Made) -> None:
    assert made.change(lambda intent: intent) == 1
    assert made.fakes.done == []


def test_nobody_waits_for_a_scheduler_that_runs_for_long(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change goes through meanwhile; the first one begins again with what that left."""
    running, leave = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "running", (running, leave), raising=False)
    text = "import sys\nsys.running[0].set()\nassert sys.running[1].wait(60)\n"
    texts = {"slow.py": text + "def pick(flow, servers):\n    return None\n"}
    made = Made(tmp_path, fakes, advisors=Advisors(texts.__getitem__, seconds=60))
    made.director.start()
    key = WEB.key

    async def changes() -> None:
        change = made.director.change
        slow = asyncio.create_task(change(lambda intent: registry.edit_service(intent, key, scheduler="slow.py")))
        assert await asyncio.to_thread(running.wait, 60)
        assert await change(weigh) == 2
        leave.set()
        assert await slow == 3

    asyncio.run(changes())
    assert made.director.intent().by_key[key] == msgspec.structs.replace(weigh(INTENT).by_key[key], scheduler="slow.py")


@pytest.mark.parametrize(
    ("step", "order"),
    [
        ("kernel 2/2", []),
        ("publish", ["kernel 2/2", "kernel 1/2"]),
        ("kernel 1/2", ["kernel 2/2", "publish", "publish", "kernel 1/2"]),
        ("save", ["kernel 2/2", "publish", "kernel 1/2", "kernel 2/2", "publish", "kernel 1/2"]),
    ],
)
def test_a_change_that_fails_at(made: Made, step: str, order: list[str]) -> None:
    fakes = made.fakes
    before = (made.director.intent(), made.director.revision, dict(made.director.slots()), made.saved())
    plan, published = fakes.plan, fakes.published
    fakes.fails[step] = OSError(28, "full") if step == "save" else KernelError("no")
    with pytest.raises(KernelError):
        made.change(move)
    assert (made.director.intent(), made.director.revision, dict(made.director.slots()), made.saved()) == before
    assert (fakes.plan, fakes.published) == (plan, published)
    assert fakes.done == order
    assert made.change(move) == 2


def test_a_removed_server_keeps_the_way_back_until_its_connections_end(made: Made) -> None:
    fakes = made.fakes
    fakes.loads = {11: (1, 2)}
    made.change(delete)
    assert fakes.done == ["publish", "save"]
    fakes.loads = {}
    asyncio.run(made.director._repair())
    assert fakes.done == ["publish", "save", "kernel 1/1"]


def test_a_service_counts_on_without_a_server_that_left_and_its_slot_is_given_to_others(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes, director = made.fakes, made.director
    fakes.counts, fakes.known = {11: (5, 50, 40, 500, 400), 12: (1, 10, 9, 100, 90)}, [11, 12]
    monkeypatch.setattr("nfqlb.director.RELEASE_SECONDS", 0.001)
    monkeypatch.setattr(compile, "KEPT_SECONDS", 0.0)

    def total() -> tuple[int, ...]:
        return director.meter.service(fakes.counts, WEB.key, director.slots().values())[:5]

    made.change(delete)
    assert total() == (6, 60, 49, 600, 490)
    asyncio.run(director._repair())

    async def minded() -> None:
        minding = asyncio.ensure_future(director._mind_slots())
        try:
            async with asyncio.timeout(10):
                while fakes.known != [12]:
                    await asyncio.sleep(0)
        finally:
            minding.cancel()

    asyncio.run(minded())
    assert (fakes.counts, total()) == ({12: (1, 10, 9, 100, 90)}, (6, 60, 49, 600, 490))


def test_an_edit_that_is_refused_touches_nothing(made: Made) -> None:
    with pytest.raises(NotFoundError):
        made.change(lambda intent: registry.delete_service(intent, Key("tcp", "203.0.113.99", 80)))
    assert made.fakes.done == []
    assert made.director.revision == 1


def test_a_way_back_that_fails_too_is_gone_again_by_the_repair(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    fakes = made.fakes
    fakes.fails = {"save": OSError(28, "full"), "kernel 1/2": KernelError("no")}
    with pytest.raises(KernelError, match="full"):
        made.change(add)
    assert fakes.done == ["kernel 1/3", "publish", "publish"]
    assert caplog.messages == ["could not go back to revision 1: no"]


def test_what_no_way_back_could_do_the_minder_does(made: Made) -> None:
    fakes = made.fakes
    fakes.fails = {"save": OSError(28, "full"), "kernel 1/2": KernelError("no")}

    async def change() -> None:
        with pytest.raises(KernelError, match="full"):
            await made.director.change(add)
        await made.director._repair()

    asyncio.run(change())
    assert fakes.done == ["kernel 1/3", "publish", "publish", "kernel 1/2"]
    assert fakes.plan == made.director._plan_of(made.director.serving.view)


def test_changes_wait_for_each_other(made: Made) -> None:
    async def both() -> tuple[int, int]:
        first, second = await asyncio.gather(made.director.change(add), made.director.change(delete))
        return first, second

    assert asyncio.run(both()) == (2, 3)
    assert made.fakes.done == ["kernel 1/3", "publish", "save", "publish", "save"]
    assert made.director.intent() == delete(add(INTENT))


def test_a_change_goes_on_when_whoever_asked_goes_away(made: Made) -> None:
    async def ask() -> None:
        asked = asyncio.create_task(made.director.change(add))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await made.director.change(weigh)  # waits for the other's lock

    asyncio.run(ask())
    assert made.director.intent() == weigh(add(INTENT))


# --- drains -----------------------------------------------------------------------------------------------------------


def drain(made: Made, keep: bool = False, seconds: float = 60) -> None:
    asyncio.run(made.director.draining.begin(WEB.key, OLD, seconds, keep))


def look(made: Made) -> tuple[str, int]:
    """After one look at the first drain: its phase, and the weight of its server, -1 where it is gone."""
    asyncio.run(made.director.draining.look(made.director.state.drains[0]))
    [view] = made.director.draining.views()
    weights = [real.weight for real in made.director.intent().services[0].reals if real.address == OLD.address]
    return view.phase, weights[0] if weights else -1


@pytest.mark.parametrize(("keep", "weight"), [(False, -1), (True, 0)])
def test_a_drained_server_leaves_with_its_last_connection(made: Made, keep: bool, weight: int) -> None:
    made.fakes.loads = {11: (1, 2)}
    made.fakes.take()
    drain(made, keep)
    assert made.fakes.take() == ["publish", "save"]  # weight and drain at once
    assert look(made) == ("draining", 0)
    made.fakes.loads = {11: (0, 1)}
    assert look(made) == ("draining", 0)
    made.fakes.loads = {}
    assert look(made) == ("empty", weight)
    assert made.fakes.take().count("save") == 1  # server and drain at once
    assert made.saved().drains == ()
    assert made.saved().intent == made.director.intent()


def test_who_asks_while_a_drain_ends_hears_how(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []

    def steps(*_: object) -> list[Step]:  # of the change that takes the server out, when it is done
        heard.append([one.phase for one in made.director.draining.views()])
        return []

    drain(made)
    monkeypatch.setattr(director, "steps", steps)
    assert look(made) == ("empty", -1)
    assert heard == [["empty"]]


def test_a_drain_ends_when_time_is_up(made: Made) -> None:
    made.fakes.loads = {11: (1, 2)}
    drain(made, seconds=0)
    assert look(made) == ("deadline", -1)
    ended = made.director.draining.views()[0]
    assert (ended.active, ended.inactive) == (1, 2)


def test_a_weight_calls_a_drain_off(made: Made) -> None:
    made.fakes.loads = {11: (1, 2)}
    drain(made)
    made.change(weigh)
    assert look(made) == ("called off", 5)


def test_a_server_that_is_removed_meanwhile_is_gone(made: Made) -> None:
    drain(made)
    made.change(delete)
    assert look(made) == ("gone", -1)


def test_a_second_order_replaces_the_first(made: Made) -> None:
    drain(made)
    drain(made, keep=True)
    [view] = made.director.draining.views()
    assert view.keep


def test_a_drain_goes_on_after_a_crash(tmp_path: Path, fakes: Fakes, made: Made) -> None:
    fakes.loads = {11: (1, 0)}
    drain(made)
    again = Made(tmp_path, fakes, bound=True, starts=1)
    again.director.start()
    assert look(again) == ("draining", 0)
    fakes.loads = {}
    assert look(again) == ("empty", -1)


def test_what_cannot_be_drained_is_refused(made: Made) -> None:
    with pytest.raises(NotFoundError):
        asyncio.run(made.director.draining.begin(WEB.key, NEW, 60, False))
    assert made.director.draining.views() == []


# --- a backup ---------------------------------------------------------------------------------------------------------


def test_a_backup_stands_by_from_its_start_until_it_is_master(tmp_path: Path, fakes: Fakes) -> None:
    backup_only = msgspec.structs.replace(INTENT, options=Options(backup_only=True))
    ha = Ha(interface="eth0", vrid=1)
    first = Made(tmp_path, fakes, intent=backup_only, ha=ha)
    first.director.start()
    assert fakes.standby
    for role, standby in (("backup", True), ("master", False), ("unknown", False), ("fault", True), ("unknown", True)):
        turn(first, role)
        assert fakes.standby == standby, role
    turn(first, "master")
    Made(tmp_path, fakes, intent=backup_only, ha=ha, bound=True, starts=1).director.start()
    assert not fakes.standby, "it may have the VIPs since before its crash"


def test_who_is_backup_of_sync_alone_stands_by_when_asked_to(made: Made) -> None:
    assert not made.fakes.standby
    for role, standby in (("backup", True), ("both", False)):
        sync = Sync(role=role, peers=("127.0.0.1",))
        made.director.state = msgspec.structs.replace(
            made.director.state, intent=msgspec.structs.replace(INTENT, sync=sync)
        )
        made.change(lambda intent: msgspec.structs.replace(intent, options=Options(backup_only=True)))
        assert made.fakes.standby == standby


def turn(made: Made, role: str) -> None:
    assert made.director.failover
    made.director.failover.role = role
    made.director._turned(role)


class Waits:
    """Failover that notes what holds this director, and a sync that `lacks` something."""

    def __init__(self, lacks: str = "") -> None:
        self.holds: list[str] = []
        self.obstacle, self.ready = lacks, False

    def require(self) -> None:
        pass

    def wants(self, addresses: Set[str]) -> None:
        pass

    def hold(self, why: str) -> None:
        self.holds.append(why)

    def release(self, why: str) -> None:
        self.holds.remove(why)

    async def mind(self) -> None:
        await asyncio.sleep(3600)


@pytest.mark.parametrize("lacks", ["", "no sync over eth99"])
def test_who_cannot_sync_may_be_master_after_a_while_and_who_is_not_in_step_yet_may_not(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    monkeypatch.setattr(director, "OBSTACLE_SECONDS", 0.0)
    monkeypatch.setattr(director, "STEP_SECONDS", 0.001)
    waits = Waits(lacks)
    made.director._syncing = cast(Any, waits)

    async def minded() -> None:
        minding = asyncio.ensure_future(made.director._mind_failover(cast(Any, waits)))
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0.01)
        held = [*waits.holds]
        waits.ready = True
        async with asyncio.timeout(10):
            while waits.holds:
                await asyncio.sleep(0)
        minding.cancel()
        assert held == ([] if lacks else ["connections of the other directors"])

    asyncio.run(minded())
    assert [lacks in line for line in caplog.messages] == [True] * bool(lacks)


# --- between changes and end ------------------------------------------------------------------------------------------


def test_the_kernel_is_minded_and_every_repair_counted_and_said(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fakes, info = made.fakes, made.director.info

    async def rounds() -> None:
        monkeypatch.setattr(director, "REPAIR_SECONDS", 0.001)
        minder = asyncio.create_task(made.director._mind_kernel())
        fakes.found = ["the table was gone", "ip_forward was 0"]
        await until(lambda: info()["repairs"] != 0)
        fakes.found = []
        fakes.fails["repair"] = KernelError("busy")
        await until(lambda: info()["warnings"] == ["busy"])
        await until(lambda: info()["warnings"] == [])
        minder.cancel()

    asyncio.run(rounds())
    assert caplog.messages.count("repaired: the table was gone") == caplog.messages.count("repaired: ip_forward was 0")
    assert caplog.messages.count("repair failed: busy") == 1


def test_warnings_follow_changes(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    async def change() -> None:
        made.fakes.wrong = ["10.0.1.13 has no route"]
        await made.director._repair()
        assert made.director.info()["warnings"] == []  # as nothing was changed, nobody looks
        await made.director.change(add)
        await made.director._repair()
        await made.director._repair()

    asyncio.run(change())
    assert made.director.info()["warnings"] == ["10.0.1.13 has no route"]
    assert caplog.messages == ["10.0.1.13 has no route"]


def test_a_real_server_of_nat_that_is_this_machine_is_known(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for own, steps in [({WEB.reals[0].address}, ["aim 11"]), (set(), ["no way to 11"])]:
        monkeypatch.setattr(neighbours, "own", lambda own=own: own)
        made.fakes.take()
        made.director._aiming.aim(made.director.intent())
        assert made.fakes.take() == steps


def test_frames_go_where_real_servers_are_found(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    there = {server: Hop(7, 1500, b"first.", b"ours..") for server in ("10.0.1.11", "10.0.1.12")}
    monkeypatch.setattr(neighbours, "hops", lambda servers: {ip: there[ip] for ip in servers if ip in there})
    monkeypatch.setattr(neighbours, "routes", lambda vips: dict.fromkeys(vips, LOCAL))
    direct = Service("203.0.113.20", 80, mode="dr", reals=(Real("10.0.1.11", 80), Real("10.0.1.12", 80)))

    def look() -> list[object]:
        made.fakes.take()
        made.director._aiming.aim(made.director.intent())
        return made.fakes.take()

    assert look() == [], "nobody gets frames"
    made.change(lambda intent: registry.add_service(registry.delete_service(intent, WEB.key), direct))
    steps = made.fakes.take()
    assert steps.index("aim 11") < steps.index("publish")
    assert steps.index("aim 12") < steps.index("publish")
    assert look() == []
    there["10.0.1.11"] = Hop(7, 1500, b"second", b"ours..")
    assert look() == ["aim 11"]
    del there["10.0.1.12"]
    assert look() == ["no way to 12"]
    assert look() == []
    there["10.0.1.12"] = Hop(7, 1500, b"first.", b"ours..")
    assert look() == ["aim 12"]
    said = "real server 10.0.1.12: no route, or no answer to ARP or ND; its packets are dropped"
    assert caplog.messages == [said, "real server 10.0.1.12: reached"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_api_then_the_rules_then_the_queues(made: Made, number: signal.Signals) -> None:
    api = Path(made.director.config.api)

    async def live() -> int:
        ready = asyncio.Event()
        running = asyncio.create_task(made.director.run(ready.set))
        await ready.wait()
        reader, writer = await asyncio.open_unix_connection(api)
        writer.write(b"GET /v1/daemon HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'"revision":1' in await reader.read()
        writer.close()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # from the terminal and from the holder
        return await running

    assert asyncio.run(live()) == 0
    assert made.fakes.done == ["withdraw", "stop", "close True", "save"]
    assert not api.exists()
    assert made.saved() == State(1, True, state.digest(INTENT), INTENT)
    with pytest.raises(UnreachableError):
        made.change(add)


def test_who_lets_go_closes_the_api_answers_and_touches_nothing(made: Made) -> None:
    async def live() -> int:
        ready = asyncio.Event()
        running = asyncio.create_task(made.director.run(ready.set))
        await ready.wait()
        os.kill(os.getpid(), LETS_GO)
        return await running

    assert asyncio.run(live()) == director.LEFT
    assert made.fakes.done == ["let go", "close False"]
    assert not Path(made.director.config.api).exists()
    assert made.saved().clean is False
    with pytest.raises(UnreachableError):
        made.change(add)


def test_a_takeover_with_another_intent_is_a_change(tmp_path: Path, fakes: Fakes, made: Made) -> None:
    made.change(add)
    heir = Made(tmp_path, fakes, bound=True, starts=1, takeover=True, intent=move(INTENT))
    heir.director.start()
    assert (heir.director.revision, heir.director.intent()) == (3, move(INTENT))
    assert heir.director._upkeep._left.is_set()


def test_a_table_that_could_not_be_used_is_told_of(
    tmp_path: Path, fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.lost = "its layout is 1"
    Made(tmp_path, fakes, bound=True, starts=1).director.start()
    assert caplog.messages == ["connections of the last director are lost: its table cannot be used, its layout is 1"]


def test_who_asks_for_maintenance_and_goes_away_lets_nobody_in_half_way(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is cancelled while a thread compiles: the next change waits for that thread, not for the request."""
    made = Made(tmp_path, fakes)
    made.director.start()
    begun, go_on = threading.Event(), threading.Event()
    compile_, running = made.director._compile, []

    def slow(view: Any) -> Any:
        running.append("one at a time")
        assert len(running) == 1
        begun.set()
        assert go_on.wait(10)
        running.pop()
        return compile_(view)

    async def live() -> None:
        monkeypatch.setattr(made.director, "_compile", slow)
        asked = asyncio.create_task(made.director.maintain(WEB.key, OLD, True))
        await asyncio.to_thread(begun.wait, 10)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        change = asyncio.create_task(made.director.change(add))
        for _ in range(20):
            await asyncio.sleep(0)
        assert made.director._lock.locked()
        assert not change.done()
        go_on.set()
        await change

    asyncio.run(live())
    assert made.director.serving.maintenance
    assert made.director.intent() == add(INTENT)
    assert servers(fakes) == {"10.0.1.12", "10.0.1.13"}


def test_a_first_start_without_its_api_is_taken_back(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    Path(made.director.config.api).write_text("not a socket")
    assert asyncio.run(made.director.run(lambda: pytest.fail("ready without an API"))) == ConfigError.exit_code
    assert made.fakes.done == ["withdraw", "stop", "close True", "save"]
    assert len(caplog.messages) == 1


def test_metrics_that_cannot_be_served_end_a_first_start_only(
    tmp_path: Path, fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        first = Made(tmp_path, fakes, metrics=where)
        first.director.start()
        assert asyncio.run(first.director.run(lambda: pytest.fail("ready"))) == ConfigError.exit_code
        assert f"metrics '{where}': cannot listen there: " in caplog.text
        again = Made(tmp_path, fakes, bound=True, starts=1, metrics=where)
        assert asyncio.run(again.director._serve_metrics()) is None
    assert "packets are taken nevertheless" in caplog.text


def test_a_restart_without_its_api_takes_packets(
    tmp_path: Path, fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    made = Made(tmp_path, fakes, bound=True, starts=1)
    Path(made.director.config.api).write_text("not a socket")
    assert asyncio.run(made.director._serve()) is None
    assert "packets are taken nevertheless" in caplog.text


@pytest.mark.parametrize(("step", "error"), [("withdraw", KernelError("no")), ("save", OSError(28, "full"))])
def test_an_end_goes_on_past_what_fails(made: Made, step: str, error: Exception) -> None:
    made.fakes.fails[step] = error
    assert made.director.finish() == KernelError.exit_code
    assert made.fakes.done == [done for done in ("withdraw", "stop", "close True", "save") if done != step]


def test_a_bug_in_a_repair_does_not_stop_the_packets(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.fakes.fails["repair"] = ZeroDivisionError("oh")
    asyncio.run(made.director._repair())
    assert made.director.info()["warnings"] == ["oh"]
    assert "Traceback" in caplog.text


def test_a_minder_that_ends_by_a_bug_ends_the_process_as_a_crash(made: Made) -> None:
    """In a process of its own: that one ends."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            asyncio.run(asyncio.wait_for(made.director.run(lambda: None, lambda: cast(None, 1 // 0)), 20))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == director.CRASHED


def test_what_netlink_refuses_is_an_error_of_the_kernel_s() -> None:
    with pytest.raises(KernelError, match="the kernel refused: dump interrupted"), _told():
        raise NetlinkDumpInterrupted


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_signs_of_life_end_where_packets_wait_and_nobody_takes_them(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: dict[str, object] = {"number": 4096, "waiting": 0, "packets": 7}
    beats: list[object] = []
    monkeypatch.setattr(made.fakes, "info", lambda seen: [dict(queue)])
    monkeypatch.setattr(director, "BEAT_SECONDS", 0.001)

    async def live() -> None:
        beating = asyncio.create_task(made.director._beat(lambda: beats.append(dict(queue))))
        await until(lambda: len(beats) > 2)  # nothing waits
        queue["waiting"] = 5
        await asyncio.sleep(0.01)
        stuck = len(beats)
        await asyncio.sleep(0.02)
        assert len(beats) == stuck
        queue["packets"] = 8
        await until(lambda: len(beats) > stuck)
        beating.cancel()

    asyncio.run(live())


# --- packets that the kernel routes -----------------------------------------------------------------------------------


def direct(intent: Intent) -> Intent:
    return registry.add_service(registry.delete_service(intent, WEB.key), DIRECT)


def test_packets_are_marked_once_the_kernel_knows_the_way(made: Made, network: dict[str, Route]) -> None:
    made.change(direct)
    assert made.fakes.done == ["kernel 2/2 0/2", "aim 11", "aim 12", "publish", "kernel 1/2 1/2", "save"]
    made.fakes.take()
    made.change(lambda intent: registry.add_real(intent, DIRECT.key, Real("10.0.1.13", 80)))
    assert made.fakes.done == ["kernel 1/2 1/3", "aim 13", "publish", "save"]


def test_a_removed_server_keeps_its_rule_until_the_minder_comes_by(made: Made, network: dict[str, Route]) -> None:
    made.change(direct)
    made.fakes.take()
    made.change(lambda intent: registry.delete_real(intent, DIRECT.key, "10.0.1.11", 80))
    assert made.fakes.take() == ["kernel 1/3 1/2", "no way to 11", "publish", "save"]
    asyncio.run(made.director._repair())
    assert made.fakes.take() == ["kernel 1/0 1/1"]


def test_a_vip_that_becomes_local_leaves_the_head_queue_first(made: Made, network: dict[str, Route]) -> None:
    made.change(direct)
    made.fakes.take()
    asyncio.run(made.director._follow())
    assert made.fakes.take() == [], "nothing is new"
    network["203.0.113.20"] = LOCAL
    asyncio.run(made.director._follow())
    assert made.fakes.take() == ["kernel 1/2 0/2", "aim 11", "aim 12"]
    asyncio.run(made.director._repair())
    assert made.fakes.take() == ["kernel 1/0 0/0"], "the way back of what is not NAT any more goes with it"
    del network["203.0.113.20"]
    asyncio.run(made.director._follow())
    assert made.fakes.take() == ["kernel 1/0 0/2", "aim 11", "aim 12", "kernel 1/0 1/2"]


def test_a_route_that_changes_is_followed(made: Made, network: dict[str, Route]) -> None:
    made.change(direct)
    made.fakes.take()
    network["10.0.1.11"] = Route(False, 8, "10.0.9.1", 1400, bytes(16))
    asyncio.run(made.director._follow())
    plan = made.fakes.plan
    assert plan is not None
    assert plan.ways == {("10.0.1.11", 8, "10.0.9.1", 1400), ("10.0.1.12", 7, "10.0.1.12", 0)}
    del network["10.0.1.11"]
    asyncio.run(made.director._follow())
    assert "no way to 11" in made.fakes.done


@pytest.mark.parametrize(("config", "heads"), [({"dr_by": "frame"}, ""), ({"vip_dev": "lo"}, " 0/0")])
def test_frames_are_sent_where_that_is_asked_or_the_vip_is_local(
    tmp_path: Path, fakes: Fakes, network: dict[str, Route], config: dict[str, str], heads: str
) -> None:
    Made(tmp_path, fakes, **config, intent=Intent((DIRECT,))).director.start()
    assert fakes.done == ["aim 11", "aim 12", "publish", "require", "take packets", f"kernel 1/0{heads}", "save"]


def test_after_a_crash_packets_are_marked_as_before(tmp_path: Path, fakes: Fakes, network: dict[str, Route]) -> None:
    known = {"10.0.1.11": 0x1000000, "10.0.1.12": 0x2000000}
    Made(tmp_path, fakes, intent=Intent((DIRECT,)), bound=True, starts=1, marks=known).director.start()
    assert fakes.done == ["aim 11", "aim 12", "publish", "take packets", "kernel 1/0 1/2", "save"]


def test_frames_are_sent_where_the_kernel_has_no_rules(
    made: Made, network: dict[str, Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ruled", set)
    made.change(direct)
    assert made.fakes.done == ["kernel 2/2 0/0", "aim 11", "aim 12", "publish", "kernel 1/2 0/0", "save"]
