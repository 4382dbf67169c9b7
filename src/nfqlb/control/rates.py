"""Rates of each real server, and counters that can begin anew, as the kernel's estimator has them.

Strategy: the data path only counts. Every TICK_SECONDS the differences go into averages, which move a quarter of the
way; the averages are fixed-point numbers, so that what is shown is what ipvsadm shows (net/netfilter/ipvs/ip_vs_est.c).
Zeroing keeps what the counters were and shows the difference. A service's figures are the sums of all real servers that
it has, and of those that it had. No clock and no I/O: the director calls.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import chain

TICK_SECONDS = 2.0
# Of connections, packets in and out, bytes in and out: how far the average is shifted left. A difference over two
# seconds is shifted by one less, which halves it.
SHIFTS = (10, 10, 10, 5, 5)
NOTHING = (0,) * len(SHIFTS)

Rows = Mapping[int, Sequence[int]]  # by slot; a row begins with the five counters


class Meter:
    def __init__(self) -> None:
        self._last: dict[int, Sequence[int]] = {}
        self._averages: dict[int, tuple[int, ...]] = {}  # that are not all nought
        self._zeroes: dict[int, Sequence[int]] = {}
        self._left: dict[Hashable, set[int]] = {}  # by service: slots of real servers that left it
        self._kept: dict[Hashable, tuple[int, ...]] = {}  # by service: what those counted whose slots were given back

    def tick(self, moved: Rows) -> None:
        """Take the counters that moved since the last time; call it every TICK_SECONDS."""
        for slot in moved.keys() | self._averages.keys():
            before, averages = self._last.get(slot, NOTHING), self._averages.get(slot, NOTHING)
            row = moved[slot][: len(SHIFTS)] if slot in moved else before
            averages = tuple(
                average + ((((now - then) << (shift - 1)) - average) >> 2)
                for now, then, average, shift in zip(row, before, averages, SHIFTS, strict=True)
            )
            self._last[slot] = row
            if any(averages):
                self._averages[slot] = averages
            else:
                self._averages.pop(slot, None)

    def follow(self, key: Hashable, before: Collection[int] | None, after: Collection[int] | None, rows: Rows) -> None:
        """The real servers of a service changed from these slots to those; None: there was, or is, no such service. A
        new one begins from nought, whatever its slots counted before (ip_vs_ctl.c, __ip_vs_update_dest).
        """
        left = self._left.pop(key, set())
        if before is None or after is None:
            self._kept.pop(key, None)
            self.zero(rows, after or ())
        elif left := (left | set(before)) - set(after):
            self._left[key] = left

    def release(self, rows: Rows, slot: int) -> None:
        """The slot will be another's, and count from nought: keep its figures for the service that it was of."""
        for key, left in self._left.items():
            if slot in left:
                left.remove(slot)
                self._kept[key] = self._total(rows, key, [slot])
        for of_slot in (self._last, self._averages, self._zeroes):
            of_slot.pop(slot, None)

    def service(self, rows: Rows, key: Hashable, slots: Iterable[int | None]) -> tuple[int, ...]:
        """The five counters of a service whose real servers have these slots now, and its five rates."""
        every = [*slots, *self._left.get(key, ())]
        return *self._total(rows, key, every), *self.rates(every)

    def _total(self, rows: Rows, key: Hashable, slots: Iterable[int | None]) -> tuple[int, ...]:
        kept = self._kept.get(key, NOTHING)
        return tuple(one + other for one, other in zip(kept, self.since_zero(rows, slots), strict=True))

    def rates(self, slots: Iterable[int | None]) -> tuple[int, ...]:
        """Connections, packets in and out, bytes in and out, per second, of these slots together."""
        averages = [self._averages.get(slot, NOTHING) for slot in slots if slot is not None]
        sums = (sum(column) for column in zip(NOTHING, *averages, strict=True))
        return tuple((total + (1 << shift - 1) - 1) >> shift for total, shift in zip(sums, SHIFTS, strict=True))

    def since_zero(self, rows: Rows, slots: Iterable[int | None]) -> tuple[int, ...]:
        """The five counters of these slots together, less what they were when they were zeroed."""
        found = [
            [now - zero for now, zero in zip(rows[slot][: len(SHIFTS)], self._zeroes.get(slot, NOTHING), strict=True)]
            for slot in slots
            if slot is not None and slot in rows
        ]
        return tuple(sum(column) for column in zip(NOTHING, *found, strict=True))

    def zero(self, rows: Rows, slots: Iterable[int], services: Iterable[Hashable] = ()) -> None:
        """Show the counters and the rates of these slots, and what was of these services, from nought on."""
        services = [*services]
        for key in services:
            self._kept.pop(key, None)
        for slot in chain(slots, *(self._left.get(key, ()) for key in services)):
            if slot in rows:
                self._zeroes[slot] = self._last[slot] = rows[slot][: len(SHIFTS)]
                self._averages.pop(slot, None)
