"""How long a real server that goes down again and again stays out. Pure: the time comes in.

Strategy: what went wrong is counted; out is out for `hold` seconds each time, `hold_max` at most, so whoever flaps is
out for longer and longer. Who serves for `hold_max` seconds on end begins anew.
"""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """`times` that it went out of late, the last time until `until`; it serves again since `back`, 0: not yet. Times of
    nfqlb.clock, which a restart does not stop.
    """

    times: int = 0
    until: float = 0.0
    back: float = 0.0


def fell(record: Record, now: float, hold: float, hold_max: float, free: int = 1) -> Record:
    """After it went out once more; the first `free` times cost nothing."""
    times = 1 + (0 if is_over(record, now, hold_max) else record.times)
    return Record(times, now + min(hold_max, hold * max(0, times - free)))


def returned(record: Record, now: float) -> Record:
    """After it began to serve again."""
    return record if record.back else record._replace(back=now)


def is_over(record: Record, now: float, hold_max: float) -> bool:
    """Whether it has served for so long that nothing of it counts any more."""
    return bool(record.back) and now - record.back >= hold_max
