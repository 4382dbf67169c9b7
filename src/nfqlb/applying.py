"""Whole configurations: applied in one step, taken back unless confirmed, read again from the file of the start.

Strategy: an application is one change of the director, like any other, that puts a whole intent in place of another.
With a time to confirm, the intent before is kept in the saved state, so that it comes back even when the director dies
meanwhile; until then every other change is refused, since it would be lost with it. What the [director] section says is
for the next start: where it differs from what runs, that is a note.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from nfqlb import clock, state
from nfqlb.control.reconcile import Step, steps
from nfqlb.errors import ConfigError, ConflictError, NfqlbError, NotFoundError
from nfqlb.feed import Feed
from nfqlb.model import Intent
from nfqlb.paths import api_socket
from nfqlb.runconfig import SETTINGS, Ha, RunConfig
from nfqlb.state import Pending, State

CONFIRM_MAX = 86400  # seconds
T = TypeVar("T")


class Outcome(NamedTuple):
    """`confirm_by` in seconds since 1970, 0 where nothing waits."""

    revision: int
    steps: list[Step]
    notes: list[str]
    confirm_by: float = 0


class Host(Protocol):
    """What is needed of the director."""

    config: RunConfig
    feed: Feed

    @property
    def state(self) -> State: ...

    async def change(self, edit: Callable[[Intent], Intent], revision: int | None = None, **kept: Any) -> int: ...
    def require(self, intent: Intent) -> None: ...


class Applier:
    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def file(self) -> str:
        """The file that the director was started with; empty where it was not."""
        origin = self._host.config.origin
        return origin if os.path.isabs(origin) else ""

    @property
    def confirm_by(self) -> float | None:
        """When the revision before comes back, in seconds since 1970."""
        pending = self._host.state.pending
        return clock.wall(pending.until) if pending else None

    def settings(self) -> dict[str, str | int | Ha]:
        """What [director] and [ha] would say: all that is not so by default."""
        config = self._host.config
        default = RunConfig(api=api_socket(config.name), vip_dev=None)
        found = {name: getattr(config, name) for name in SETTINGS if getattr(config, name) != getattr(default, name)}
        return found | ({"vip_dev": self._host.state.vip_dev} if self._host.state.vip_dev else {})

    async def plan(self, director: Mapping[str, Any], intent: Intent, revision: int | None = None) -> Outcome:
        """What applying would do; refused as that would be for what this machine lacks."""
        now = self._host.state
        check_revision(now, revision)
        if intent != now.intent:
            await asyncio.to_thread(self._host.require, intent)
        return Outcome(now.revision, await asyncio.to_thread(steps, now.intent, intent), self._notes(director))

    async def apply(
        self,
        director: Mapping[str, Any],
        intent: Intent,
        *,
        file: str = "",
        confirm_within: float = 0,
        revision: int | None = None,
    ) -> Outcome:
        """Put `intent` in the place of the present one; with `confirm_within` seconds it is taken back after these."""
        if not 0 <= confirm_within <= CONFIRM_MAX:
            raise ConfigError(
                "confirm_within", f"{confirm_within:g}", "out of range", f"use 0 to {CONFIRM_MAX} seconds"
            )
        before = self._host.state
        if revision is None:
            revision = before.revision  # the steps are those from here
        found = await asyncio.to_thread(steps, before.intent, intent)
        kept: dict[str, Any] = {}
        if file and file == self.file:
            kept["reloaded"] = await asyncio.to_thread(state.digest, intent)
        if confirm_within and found:
            kept["pending"] = Pending(clock.now() + confirm_within, before.intent, before.reloaded)
        reached = await self._host.change(lambda _: intent, revision, **kept)
        waits = "pending" in kept
        if waits:
            message = f"revision {reached} goes back in {confirm_within:g} s unless it is confirmed"
            self._host.feed.say("waits", message, reached)
        return Outcome(reached, found, self._notes(director), clock.wall(kept["pending"].until) if waits else 0)

    async def confirm(self, revision: int | None = None) -> int:
        """Keep what waits for it; NotFoundError where nothing does."""
        pending = self._waiting()
        reached = await self._host.change(lambda intent: self._still(pending, intent), revision, pending=None)
        self._host.feed.say("confirmed", f"revision {reached} is confirmed", reached)
        return reached

    async def rollback(self, revision: int | None = None, why: str = "") -> int:
        """Go back to before what waits to be confirmed."""
        pending = self._waiting()
        kept = {"pending": None, "reloaded": pending.reloaded}
        reached = await self._host.change(lambda _: self._still(pending, pending.intent), revision, **kept)
        self._host.feed.say("rolled back", why or "as it was asked for", reached)
        return reached

    async def reload(self, revision: int | None = None) -> Outcome:
        """Apply the file that the director was started with, as it is now."""
        if not self.file:
            why = "was not started with a file"
            raise ConfigError("reload", self._host.config.name, why, "use `nfqlb apply FILE`")
        try:
            director, intent = await asyncio.to_thread(_read, self.file)
        except NfqlbError as error:
            self._host.feed.say("refused", str(error))
            raise
        return await self.apply(director, intent, file=self.file, revision=revision)

    async def mind(self) -> float:
        """Take back what was not confirmed in time; seconds until it is worth looking again."""
        pending = self._host.state.pending
        if pending is None:
            return 0.5
        left = pending.until - clock.now()
        if left > 0:
            return min(left, 0.5)
        with suppress(NotFoundError):  # somebody did, at the last moment
            await self.rollback(why="nobody confirmed it in time")
        return 0.0

    def _waiting(self) -> Pending:
        pending = self._host.state.pending
        if pending is None:
            raise NotFoundError("nothing waits to be confirmed; `nfqlb apply FILE --confirm-within TIME` makes it wait")
        return pending

    def _still(self, pending: Pending, intent: Intent) -> Intent:
        """What the director is to have then; asked for once nobody else can change it any more."""
        if self._host.state.pending is not pending:
            raise NotFoundError("nothing waits to be confirmed any more")
        return intent

    def _notes(self, director: Mapping[str, Any]) -> list[str]:
        pairs = ((key, value, getattr(self._host.config, key, None)) for key, value in director.items())
        return [
            f"{key} = {_told(wanted)} takes effect at the next start; now it is {_told(running)}"
            for key, wanted, running in pairs
            if wanted != running
        ]


async def whole(tasks: set[asyncio.Task[Any]], step: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, although whoever asked may go away: a thread that it waits for cannot be called back. It is
    among the `tasks` meanwhile.
    """
    task = asyncio.create_task(step)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return await asyncio.shield(task)


def check_revision(now: State, wanted: int | None) -> None:
    """ConflictError where somebody else made another revision meanwhile."""
    if wanted is not None and wanted != now.revision:
        raise ConflictError(f"this is revision {now.revision}, not {wanted}: somebody changed it meanwhile")


def refuse_while_waiting(now: State) -> None:
    """ConflictError for a change that would be lost when what waits for its confirmation goes back."""
    if now.pending:
        left = max(0, round(now.pending.until - clock.now()))
        why = f"revision {now.revision} waits to be confirmed, {left} s more"
        raise ConflictError(f"{why}; `nfqlb confirm` keeps it, `nfqlb rollback` goes back")


def _read(file: str) -> tuple[dict[str, Any], Intent]:
    from nfqlb.config.file import read

    return read(file, whole=True)


def _told(value: object) -> str:
    return "nothing" if value in (None, "") else "another" if isinstance(value, Ha) else str(value)
