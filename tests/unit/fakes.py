"""A director without a data path, its API on a real socket, and the `nfqlb` command called in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from nfqlb.api.client import Client
from nfqlb.api.director import Choosing, Connection
from nfqlb.api.server import serve
from nfqlb.applying import Applier, check_revision, refuse_while_waiting
from nfqlb.cli import main
from nfqlb.cli.env import Env
from nfqlb.control import drains
from nfqlb.control.rates import Meter
from nfqlb.draining import Draining, DrainView
from nfqlb.feed import Feed
from nfqlb.health.runner import Runner
from nfqlb.model import Intent, Key, Real, Service
from nfqlb.runconfig import RunConfig
from nfqlb.serving import Serving
from nfqlb.state import State

WEB = Service(
    "203.0.113.10",
    80,
    scheduler="wrr",
    reals=(Real("10.0.1.11", 8080, 3), Real("10.0.1.12", 8080), Real("10.0.1.13", 80, 0)),
)
DNS = Service("2001:db8::10", 53, "udp", scheduler="rr", reals=(Real("2001:db8:1::11", 53),))


class Drained(NamedTuple):
    reasons: dict[str, int]
    slots: dict[int, tuple[int, ...]]
    batches: int
    packets: int


class FakeDraining(Draining):
    """One connection less each time somebody looks; then the drain ends as `end` says."""

    end = "empty"
    shown: tuple[DrainView, ...] = ()

    async def begin(self, key: Key, real: Real, seconds: float, keep: bool, revision: int | None = None) -> DrainView:
        await self._host.change(lambda intent: drains.quiesce(intent, key, real), revision)
        self.shown = (DrainView(str(key), str(real), "draining", 1, 2, int(seconds), keep),)
        return self.shown[0]

    def views(self) -> list[DrainView]:
        self.shown = tuple(
            replace(one, active=one.active - 1) if one.active else replace(one, phase=self.end) for one in self.shown
        )
        return [*self.shown]


class FakeDirector:
    """Begins with WEB and DNS, slots from 0 in their order; the last server of WEB has not been counted yet."""

    def __init__(self) -> None:
        self.state = State(1, False, "", Intent((WEB, DNS)))
        self.config = RunConfig(api="/run/nfqlb/main/api.sock", workers=2)
        self.feed = Feed()
        self.applier = Applier(self)
        self.serving = Serving(self.state, lambda: None)
        self.maintained: list[tuple[str, str, bool, str]] = []
        self.failure: Exception | None = None
        self.rows: list[Connection] = []
        self.draining = FakeDraining(self)
        self.meter = Meter()
        self.chosen: dict[Key, Choosing] = {}

    @property
    def health(self) -> Runner:
        return self.serving.health

    @property
    def revision(self) -> int:
        return self.state.revision

    def intent(self) -> Intent:
        return self.state.intent

    async def change(self, edit: Callable[[Intent], Intent], revision: int | None = None, **kept: Any) -> int:
        check_revision(self.state, revision)
        if kept.get("pending", True):
            refuse_while_waiting(self.state)
        intent = edit(self.intent())
        if self.failure:
            raise self.failure
        after = self.revision + (intent != self.intent())
        self.state = msgspec.structs.replace(self.state, intent=intent, revision=after, **kept)
        return after

    def require(self, intent: Intent) -> None:
        if self.failure:
            raise self.failure

    async def keep(self, **kept: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **kept)

    def load(self, key: Key, real: Real) -> tuple[int, int]:
        return 1, 2

    async def maintain(self, key: Key, real: Real, on: bool, why: str = "") -> None:
        self.maintained.append((str(key), str(real), on, why))

    def drained(self) -> Drained:
        slots: dict[int, tuple[int, ...]] = {0: (7, 60, 50, 6000, 50000, 2, 5), 3: (4, 8, 8, 400, 800, 0, 4)}
        slots[1] = (3, 20, 10, 2000, 10000, 1, 2, 0, 1500)
        return Drained({"forwarded": 156, "no_service": 4, "truncated": 0}, slots, 12, 160)

    def connections(self, limit: int) -> Sequence[Connection]:
        return self.rows[:limit] if limit else self.rows

    def slots(self) -> Mapping[tuple[Key, str, int], int]:
        ends = [(service.key, real.address, real.port) for service in (WEB, DNS) for real in service.reals]
        return {end: slot for slot, end in enumerate(ends)}

    def choosing(self) -> Mapping[Key, Choosing]:
        return self.chosen

    def syncing(self) -> dict[str, object] | None:
        return None

    def info(self) -> dict[str, object]:
        return {
            "name": "main",
            "pid": 42,
            "vip_dev": None,
            "edited": False,
            "table": {"capacity": 1024, "used": 3},
            "queues": [{"number": 0, "class": "gso"}, {"number": 1, "class": "plain"}],
            "warnings": [],
        }


@contextmanager
def serving(director: FakeDirector, path: Path) -> Iterator[Client]:
    """The API of `director` on `path`, in a thread with a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    try:
        runner = loop.run_until_complete(serve(director, path))  # type: ignore[arg-type]
        thread.start()
        try:
            yield Client(str(path), timeout=20)
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
    finally:
        loop.close()


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """`nfqlb ARGS` in this process; what it would execute is kept in `executed`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **environ: str) -> None:
        self.capsys, self.environ, self.uid = capsys, environ, 0
        self.executed: list[tuple[str, list[str]]] = []

    def __call__(self, *args: str) -> Ended:
        env = Env(self.environ, lambda: self.uid, lambda path, argv: self.executed.append((path, argv)))
        with pytest.raises(SystemExit) as ended:
            main(args, env)
        out, err = self.capsys.readouterr()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Ended(ended.value.code or 0, out, err)
