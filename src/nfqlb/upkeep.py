"""What connections and schedulers need although no packet comes: ends, defences, and being forgotten."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, NoReturn

from nfqlb import clock

if TYPE_CHECKING:
    from nfqlb._core.connection import Table
    from nfqlb._core.datapath import Datapath
    from nfqlb._core.snapshot import Snapshot

COLLECT_SECONDS = 60.0  # between looks for destinations that a scheduler can forget
DEFEND_SECONDS = 1.0  # between looks at the places that are left (ip_vs_ctl.c, DEFENSE_TIMER_PERIOD)

log = logging.getLogger("nfqlb")


class Upkeep:
    """`say` tells those who follow events: what kind of event it is, and a sentence."""

    def __init__(
        self, datapath: Datapath, table: Table, snapshot: Callable[[], Snapshot], say: Callable[[str, str], None]
    ) -> None:
        self._datapath, self._table, self._snapshot, self._say = datapath, table, snapshot, say
        self._left = asyncio.Event()  # connections may have to end that no packet will come to
        self._sweeping = asyncio.Lock()  # of connections that end without a packet

    def sweep(self) -> None:
        """Have the connections end that a change left without a real server."""
        self._left.set()

    def minding(self) -> list[Coroutine[None, None, NoReturn]]:
        return [self._mind_leftovers(), self._mind_defences(), self._mind_destinations()]

    async def _mind_leftovers(self) -> NoReturn:
        """End the connections that a change left without a real server, as far as they go at once."""
        while True:
            await self._left.wait()
            self._left.clear()
            async with self._sweeping:
                await asyncio.to_thread(lambda: self._datapath.sweep(clock.boottime()))

    async def _mind_defences(self) -> NoReturn:
        """Look once a second whether the table has to defend itself, and have it do so."""
        while True:
            await asyncio.sleep(DEFEND_SECONDS)
            before = self._datapath.defences
            async with self._sweeping:
                await asyncio.to_thread(lambda: self._datapath.defend(clock.boottime()))
            after = self._datapath.defences
            for name in ("drop_entry", "drop_packet", "secure_tcp"):
                if bool(after[name]) != bool(before[name]):
                    state = "up" if after[name] else "down"
                    used, capacity = self._table.used, self._table.capacity
                    log.warning("defence %s is %s: %d of %d places are taken", name, state, used, capacity)
                    self._say("defence", f"{name} is {state}")

    async def _mind_destinations(self) -> NoReturn:
        """Have schedulers forget the destinations that nobody asks for any more (ip_vs_lblc.c, its timer)."""
        for minute in itertools.count(1):
            await asyncio.sleep(COLLECT_SECONDS)
            for service in self._snapshot().services:
                service.collect(clock.boottime(), minute % 30 == 0)
        raise AssertionError
