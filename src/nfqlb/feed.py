"""What happens to a director, one event after another, for those who listen.

Strategy: the last events stand in a ring; a listener says the number of the last one it knows and gets what came after,
or a "gap" where that is not all of it. Numbers grow over restarts too: they begin with the clock's milliseconds. The
loop's thread and the threads of a change may both speak; listeners live on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import msgspec

from nfqlb.control.reconcile import Step

KEPT = 1024
STEPS_MAX = 100  # of one change; more are counted in its message


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """`kind` is "changed", "waits" (for its confirmation), "confirmed", "rolled back", "refused", "drain", "real",
    "repaired", "health", "defence", "scheduler", "failover" or "gap"; `time` in seconds since 1970. `steps` are what a
    change did.
    """

    number: int
    time: float
    kind: str
    message: str
    revision: int = 0
    steps: Sequence[Step] = ()


class Feed:
    def __init__(self, now: float | None = None) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._last = int((time.time() if now is None else now) * 1000)
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def say(self, kind: str, message: str, revision: int = 0, steps: Sequence[Step] = ()) -> None:
        """Add an event; from any thread, one at a time."""
        if len(steps) > STEPS_MAX:
            message += f"; {len(steps) - STEPS_MAX} more steps"
        self._last += 1
        self._events.append(Event(self._last, time.time(), kind, message, revision, tuple(steps[:STEPS_MAX])))
        for loop, heard in tuple(self._listeners):
            loop.call_soon_threadsafe(heard.set)

    def since(self, number: int) -> list[Event]:
        """What came after the event of this number, oldest first; 0: all that is kept."""
        found = [event for event in tuple(self._events) if event.number > number]
        if number and found and found[0].number > number + 1:
            oldest = found[0]
            return [Event(oldest.number - 1, oldest.time, "gap", "what came in between is not kept any more"), *found]
        return found

    async def follow(self, number: int) -> AsyncIterator[Event]:
        """The same, and from then on each as it happens."""
        listener = asyncio.get_running_loop(), asyncio.Event()
        self._listeners.add(listener)
        try:
            while True:
                listener[1].clear()
                for event in self.since(number):
                    number = event.number
                    yield event
                await listener[1].wait()
        finally:
            self._listeners.discard(listener)
