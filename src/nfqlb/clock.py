"""What deadlines go by: seconds since 1970 that a step of the wall clock does not move while a process lives.

Strategy: a deadline has to mean something to the next director, so it is a time of day; but machines boot with the
wrong one, and NTP then puts it right at once. So the wall clock is read when the process begins, and counted on from
there by CLOCK_BOOTTIME, which nobody sets. People are told what the wall clock will say.
"""

from __future__ import annotations

import time


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_AHEAD = time.time() - _boottime()


def now() -> float:
    return _AHEAD + _boottime()


def wall(moment: float) -> float:
    """What the wall clock says at that moment, unless it is set before then."""
    return moment - now() + time.time()
