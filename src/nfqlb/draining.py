"""Drains of a director: begun by whoever asks, looked after until their end, and told of afterwards.

What a drain is and when it ends is control.drains; here is the rest: it goes on without who asked and after a crash, a
later order for the same real server takes the place of an earlier one, and the last ends are remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import msgspec

from nfqlb import clock
from nfqlb.control import drains
from nfqlb.control.drains import Drain, Phase
from nfqlb.errors import NfqlbError
from nfqlb.feed import Feed
from nfqlb.model import Intent, Key, Real
from nfqlb.state import State

LOOK_SECONDS = 0.5  # between looks
ENDS = 256  # that are remembered

log = logging.getLogger("nfqlb")


class DrainView(msgspec.Struct, frozen=True):
    """A drain as it is now, or was when it ended: `phase` is one of control.drains.Phase."""

    service: str
    real: str
    phase: str
    active: int
    inactive: int
    seconds_left: int
    keep: bool


class Host(Protocol):
    """What is needed of the director."""

    feed: Feed

    @property
    def state(self) -> State: ...

    async def change(self, edit: Callable[[Intent], Intent], revision: int | None = None, **kept: Any) -> int: ...
    async def keep(self, **kept: Any) -> None: ...
    def load(self, key: Key, real: Real) -> tuple[int, int]: ...


class Draining:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._ended: dict[tuple[str, str], DrainView] = {}  # how the last drain of each real server ended

    async def begin(self, key: Key, real: Real, seconds: float, keep: bool, revision: int | None = None) -> DrainView:
        """Give the real server weight 0, and remove it when it is empty or time is up, unless it is kept."""
        drain = Drain(str(key), str(real), clock.now() + seconds, keep)

        def added(before: State) -> tuple[Drain, ...]:
            self._ended.pop(drain.end, None)
            return *(one for one in before.drains if one.end != drain.end), drain

        await self._host.change(lambda intent: drains.quiesce(intent, key, real), revision, drains=added)
        return self._view(drain, Phase.DRAINING)

    def views(self) -> list[DrainView]:
        """Those that go on, and how the others ended."""
        going = {one.end: self._view(one, Phase.DRAINING) for one in self._host.state.drains}
        return [*(view for end, view in self._ended.items() if end not in going), *going.values()]

    async def mind(self) -> NoReturn:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for drain in () if self._host.state.pending else self._host.state.drains:
                try:
                    await self.look(drain)
                except NfqlbError as error:
                    log.error("drain of %s: %s", drain.real, error)

    async def look(self, drain: Drain) -> None:
        """Look after one drain; at its end, the server goes. It may be another's by now, with more time."""
        host = self._host
        if drain not in host.state.drains:
            return
        phase = drains.phase(drain, host.state.intent, sum(host.load(drain.key, drain.server)), clock.now())
        if phase is Phase.DRAINING:
            return
        view = self._view(drain, phase)
        found = False

        def without(before: State) -> tuple[Drain, ...]:
            nonlocal found
            found = drain in before.drains
            if found:  # shown once the drain is out of the state
                self._ended[drain.end] = view
            return tuple(one for one in before.drains if one != drain)

        if phase in (Phase.EMPTY, Phase.DEADLINE) and not drain.keep:
            await host.change(lambda intent: drains.leave(intent, drain) if found else intent, drains=without)
        else:
            await host.keep(drains=without)
        if not found:
            return
        while len(self._ended) > ENDS:
            del self._ended[next(iter(self._ended))]
        log.info("drain of %s, a real server of %s: %s", drain.real, drain.service, phase)
        host.feed.say("drain", f"{drain.real} of {drain.service}: {phase}", host.state.revision)

    def _view(self, drain: Drain, phase: Phase) -> DrainView:
        left = max(0, round(drain.until - clock.now()))
        load = self._host.load(drain.key, drain.server)
        return DrainView(drain.service, drain.real, str(phase), *load, left, drain.keep)
