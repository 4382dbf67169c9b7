"""Keeps asking every real server that has a check, and says when one goes down or comes back.

Strategy: a task for each real server, so that no check delays another; the first one begins at a random moment of the
interval, so that thousands do not begin at once. What a check finds goes through the machine; only a change of whether
the server serves is told. After a change of the configuration a server keeps its status, and its task where the check
is the same. Everything runs on the loop.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from nfqlb.health.checks import Failed, Target, ask
from nfqlb.health.machine import Condition, Result, Status, step
from nfqlb.model import Health, Intent, Key

if TYPE_CHECKING:
    from aiohttp import ClientSession

End = tuple[Key, str, int]  # a real server of a service


class Wanted(NamedTuple):
    address: str
    port: int
    health: Health


class Seen(NamedTuple):
    """`since` in seconds since 1970: when it last went down or came up."""

    status: Status
    since: float


class Runner:
    """`changed` is told of a server that went down or came back, and why."""

    def __init__(self, changed: Callable[[End, Status], None], down: Iterable[End] = ()) -> None:
        self._changed = changed
        self._wanted: dict[End, Wanted] = {}
        self._tasks: dict[End, asyncio.Task[None]] = {}
        self._session: ClientSession | None = None
        now = time.time()
        self.seen = {end: Seen(Status(Condition.DOWN, why="as before the restart"), now) for end in down}

    @property
    def down(self) -> frozenset[End]:
        return frozenset(end for end, seen in self.seen.items() if not seen.status.serves)

    def adopt(self, intent: Intent) -> None:
        """Check what this intent wants checked, and nothing else."""
        wanted = {
            (service.key, real.address, real.port): Wanted(
                real.address, service.health.port or real.port or service.port, service.health
            )
            for service in intent.services
            if service.health
            for real in service.reals
        }
        for end in [end for end in self._tasks if wanted.get(end) != self._wanted.get(end)]:
            self._tasks.pop(end).cancel()
        self.seen = {end: seen for end, seen in self.seen.items() if end in wanted}
        self._wanted = wanted
        for end, one in wanted.items():
            self.seen.setdefault(end, Seen(Status(), time.time()))
            if end not in self._tasks:
                self._tasks[end] = asyncio.create_task(self._keep_asking(end, one))

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        if self._session:
            await self._session.close()

    async def _keep_asking(self, end: End, wanted: Wanted) -> None:
        loop, health = asyncio.get_running_loop(), wanted.health
        target = Target(wanted.address, wanted.port, health, self._http)
        due = loop.time() + random.random() * health.interval
        while True:
            await asyncio.sleep(due - loop.time())
            why = await self._ask(target)
            self._note(end, health, why)
            due = max(due + health.interval, loop.time())

    async def _ask(self, target: Target) -> str:
        """Why the check failed, nothing where it passed."""
        from aiohttp import ClientError

        try:
            async with asyncio.timeout(target.health.timeout):
                await ask(target)
        except TimeoutError:
            return f"no answer within {target.health.timeout:g} s"
        except Failed as error:
            return str(error)
        except (ClientError, ssl.SSLError, OSError, EOFError) as error:
            number = getattr(getattr(error, "os_error", error), "errno", None)
            return os.strerror(number) if number else str(error) or type(error).__name__
        return ""

    def _note(self, end: End, health: Health, why: str) -> None:
        before = self.seen[end]
        result = Result.FAIL if why else Result.PASS
        status = step(before.status, result, rise=health.rise, fall=health.fall, why=why)
        turned = status.serves != before.status.serves
        self.seen[end] = Seen(status, time.time() if turned else before.since)
        if turned:
            self._changed(end, status)

    def _http(self) -> ClientSession:
        if self._session is None:
            from aiohttp import ClientSession, DummyCookieJar, TCPConnector

            self._session = ClientSession(
                connector=TCPConnector(limit=0, force_close=True), cookie_jar=DummyCookieJar(), auto_decompress=False
            )
        return self._session
