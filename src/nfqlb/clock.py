"""What deadlines go by: seconds since 1970 that a step of the wall clock does not move.

Strategy: a deadline has to mean something to the next director, so it is a time of day; but machines boot with the
wrong one, and NTP then puts it right at once. So the wall clock is read once, and counted on from there by
CLOCK_BOOTTIME, which nobody sets, and by which the data path goes. People are told what the wall clock will say.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


NANOSECONDS = 1_000_000_000


def boottime() -> int:
    """What the data path goes by: nanoseconds since the machine booted, with those that it slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_ahead = time.time() - boottime() / NANOSECONDS


def keep(file: Path) -> None:
    """Go on by the clock of who wrote the file since the machine booted, or write it."""
    global _ahead
    boot = BOOT.read_text().strip()
    with suppress(OSError, ValueError):
        known, _, ahead = file.read_text().partition(" ")
        if known == boot:
            _ahead = float(ahead)
            return
    with suppress(OSError):  # it will be another one's clock after a crash
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(f"{boot} {_ahead!r}")


def now() -> float:
    return _ahead + boottime() / NANOSECONDS


def wall(moment: float) -> float:
    """What the wall clock says at that moment, unless it is set before then."""
    return moment - now() + time.time()
