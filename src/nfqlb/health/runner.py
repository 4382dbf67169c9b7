"""Keeps asking every real server that has checks, and says when one goes down or comes back.

Strategy: a task for each check of each real server, so that none delays another; the first one begins at a random
moment of its warm-up, so that thousands do not begin at once, and each keeps to its own moments, also after this
machine was busy. What a check finds goes through the machine; only a change of whether the server serves is told, and a
change of what its checks advise. After a change of the configuration a server keeps its status, and its tasks where the
checks are the same. Everything runs on the loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import ssl
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from nfqlb import clock
from nfqlb.health import stream
from nfqlb.health.advice import NOTHING, Advice, weight
from nfqlb.health.checks import Target, ask, require
from nfqlb.health.direct import Direct
from nfqlb.health.files import Files
from nfqlb.health.machine import Condition, Result, Status, step, together
from nfqlb.health.scripts import Scripts
from nfqlb.health.stream import Failed, Unknown
from nfqlb.model import Check, Health, Intent, Key, Real, Service

End = tuple[Key, str, int]  # a real server of a service
OWN_FAULTS = {  # of this machine, not of the server's
    *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN),
    *(errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EPERM),
}

log = logging.getLogger("nfqlb")


class Asked:
    """What one check of one real server found; `trouble` is why nobody can say, nothing where somebody can."""

    __slots__ = ("advice", "check", "status", "trouble")

    def __init__(self, check: Check, status: Status) -> None:
        self.check, self.status = check, status
        self.advice, self.trouble = NOTHING, ""


class Seen:
    """A real server: `since` when it serves or does not, a time of nfqlb.clock."""

    __slots__ = ("checks", "require", "since", "status")

    def __init__(self, status: Status, since: float) -> None:
        self.status, self.since = status, since
        self.checks: tuple[Asked, ...] = ()
        self.require = "all"

    @property
    def advice(self) -> list[Advice]:
        """What its checks say beside well and ill."""
        return [one.advice for one in self.checks if one.advice is not NOTHING]

    @property
    def maintained(self) -> bool:
        """Whether its agent says that it is in maintenance."""
        return any(advice.state == "maint" for advice in self.advice)

    def judge(self) -> Status:
        """How it is by all of its checks; what its agent says counts whatever others say."""
        if len(self.checks) == 1:
            return self.checks[0].status
        agents = [one.status for one in self.checks if one.check.type == "agent"]
        others = [one for one in self.checks if one.check.type != "agent"]
        named = [one.status._replace(why=f"{one.check.type}: {one.status.why}") for one in others]
        return together([*([together(named, self.require)] if named else []), *agents], "all")


class Lateness:
    """How many checks began so many seconds late; the last count is of those beyond every bound."""

    BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.seconds = 0.0

    def note(self, seconds: float) -> None:
        self.counts[bisect_left(self.BOUNDS, seconds)] += 1
        self.seconds += seconds


class Runner:
    """`changed` is told of a server that went down or came back, and how it is; `advised` of one whose checks advise
    something else.
    """

    def __init__(
        self,
        changed: Callable[[End, Status], None],
        down: Iterable[End] = (),
        *,
        advised: Callable[[End], None] = lambda end: None,
        scripts: Scripts | None = None,
    ) -> None:
        self._changed, self._advised = changed, advised
        self._means = scripts or Scripts(), Direct(), Files()
        self._targets: dict[End, tuple[Target, ...]] = {}
        self._tasks: dict[End, list[asyncio.Task[None]]] = {}
        self.lateness = Lateness()
        now = clock.now()
        self.seen = {end: Seen(Status(Condition.DOWN, why="as before the restart"), now) for end in down}

    @property
    def down(self) -> frozenset[End]:
        return frozenset(end for end, seen in self.seen.items() if not seen.status.serves)

    def weighted(self, intent: Intent) -> Intent:
        """The intent with the weights that checks advise."""
        advised = {end for end, seen in self.seen.items() if seen.advice}
        if not advised:
            return intent
        keys = {key for key, *_ in advised}

        def real(key: Key, one: Real) -> Real:
            end = key, one.address, one.port
            return replace(one, weight=weight(one.weight, self.seen[end].advice)) if end in advised else one

        return replace(
            intent,
            services=tuple(
                replace(service, reals=tuple(real(service.key, one) for one in service.reals))
                if service.key in keys
                else service
                for service in intent.services
            ),
        )

    def require(self, intent: Intent) -> None:
        """Refuse what cannot be checked here; ConfigError. Reads files."""
        for check in {check for service in intent.services if service.health for check in service.health.each}:
            require(check, self._means[0])

    def adopt(self, intent: Intent) -> None:
        """Check what this intent wants checked, and nothing else."""
        stream.context_of.cache_clear()  # certificates may be others
        wanted = {
            (service.key, real.address, real.port): (service.health, self._aim(service, service.health, real))
            for service in intent.services
            if service.health
            for real in service.reals
        }
        for end, tasks in list(self._tasks.items()):
            if end not in wanted or wanted[end][1] != self._targets[end]:
                for task in tasks:
                    task.cancel()
                del self._tasks[end]
        self.seen = {end: seen for end, seen in self.seen.items() if end in wanted}
        self._targets = {end: targets for end, (_, targets) in wanted.items()}
        for end, (health, targets) in wanted.items():
            seen = self.seen.setdefault(end, Seen(Status(), clock.now()))
            if end not in self._tasks:
                seen.checks = _kept(seen, health.each)
                pairs = zip(targets, seen.checks, strict=True)
                self._tasks[end] = [asyncio.create_task(self._keep_asking(end, *pair)) for pair in pairs]
            if seen.require != health.require:
                seen.require = health.require
                self._judge(end)

    async def close(self) -> None:
        """Until the last check has ended; what it waits with must not swallow this (asyncio.wait_for of 3.11 may)."""
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._means[1].close()
        self._tasks.clear()

    def _aim(self, service: Service, health: Health, real: Real) -> tuple[Target, ...]:
        mode = service.mode_of(real)
        return tuple(
            Target(real.address, _port(check, real) or service.port, check, service.key, mode, *self._means)
            for check in health.each
        )

    async def _keep_asking(self, end: End, target: Target, asked: Asked) -> None:
        loop, check = asyncio.get_running_loop(), target.check
        due = loop.time() + random.random() * (check.warmup or check.interval)
        while True:
            wanted = max(due, loop.time())
            await asyncio.sleep(wanted - loop.time())
            self.lateness.note(loop.time() - wanted)
            try:
                result, why, advice = await self._ask(target)
            except Exception as error:  # ours: it must not end the asking
                result, why, advice = Result.UNKNOWN, f"an error in nfqlb: {type(error).__name__}", NOTHING
                if why != asked.trouble:
                    log.exception("an error in a check of type %s", check.type)
            self._note(end, asked, result, why, advice)
            undecided = asked.status.condition in (Condition.FAILING, Condition.RISING)
            pause = check.retry_delay if undecided and check.retry_delay else check.interval
            due = following(due, pause, loop.time())

    async def _ask(self, target: Target) -> tuple[Result, str, Advice]:
        """What the check found, and why that is not well."""
        check = target.check
        try:
            if check.type == "script":
                return Result.PASS, "", await ask(target)
            async with within(check.timeout):
                return Result.PASS, "", await ask(target)
        except TimeoutError:
            why = f"no answer within {check.timeout:g} s"
            return Result.UNKNOWN if check.type in ("agent", "file") else Result.FAIL, why, NOTHING
        except Unknown as error:
            return Result.UNKNOWN, str(error), error.advice
        except Failed as error:
            return Result.FAIL, str(error), error.advice
        except (OSError, EOFError) as error:
            return Result.UNKNOWN if _is_ours(error) else Result.FAIL, _words(error), NOTHING

    def _note(self, end: End, asked: Asked, result: Result, why: str, advice: Advice) -> None:
        check, trouble = asked.check, why if result is Result.UNKNOWN else ""
        if trouble != asked.trouble:
            asked.trouble = trouble
            if trouble:
                log.warning("the %s check of %s of %s says nothing: %s", check.type, end[1], end[0], trouble)
        now = check.type == "agent"  # what an agent says holds at once
        rise, fall = (1, 1) if now else (check.rise, check.fall)
        asked.status = step(asked.status, result, rise=rise, fall=fall, why=why)
        self._judge(end)
        advice = asked.advice.then(advice) if now else asked.advice if result is Result.UNKNOWN else advice
        if advice != asked.advice:
            asked.advice = advice
            self._advised(end)

    def _judge(self, end: End) -> None:
        """See how the server is by its checks now, and tell it if it goes down or comes back by that."""
        seen = self.seen[end]
        before, seen.status = seen.status.serves, seen.judge()
        if seen.status.serves != before:
            seen.since = clock.now()
            self._changed(end, seen.status)


def following(due: float, pause: float, now: float) -> float:
    """When to ask next who was due at `due`: whole pauses later, at the last such time that has come, or at the first.
    What was missed before is not made up for, and thousands that were late together are not in step from then on.
    """
    return due + pause * max(1.0, (now - due) // pause)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """TimeoutError after so many seconds, and as many more as this machine was late to look, at most twice as many in
    all: the answer may have come meanwhile, and lie in the socket.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        end = loop.time() + seconds
        timer = loop.call_at(end, lambda: limit.reschedule(loop.time() + min(loop.time() - end, seconds)))
        try:
            yield
        finally:
            timer.cancel()


def _kept(seen: Seen, checks: Sequence[Check]) -> tuple[Asked, ...]:
    """The checks of a real server after a change: those that were there are as they were, others as the server is."""
    if len(checks) == len(seen.checks):
        found = [Asked(check, one.status) for check, one in zip(checks, seen.checks, strict=True)]
        for one, before in zip(found, seen.checks, strict=True):
            if one.check.type == before.check.type:
                one.advice = before.advice
        return tuple(found)
    known = {one.check: one.status for one in seen.checks}
    start = Status() if seen.status.serves else Status(Condition.DOWN, why=seen.status.why)
    return tuple(Asked(check, known.get(check, start)) for check in checks)


def _port(check: Check, real: Real) -> int:
    """Where the real server is asked; 0: at the service's port."""
    own = real.agent_port if check.type == "agent" else 0
    return own or check.port or real.port


def _is_ours(error: Exception) -> bool:
    return not isinstance(error, ssl.SSLError) and getattr(error, "errno", None) in OWN_FAULTS


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or type(error).__name__
