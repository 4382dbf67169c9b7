"""What the data path sees of handshakes, as a reason to take a real server out. Pure: counters and the time come in.

Strategy: at each look, handshakes that failed are set against those that were answered. Who failed more often than not
runs up what it failed; a look in which most were answered forgets it. How long it is out is damping's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nfqlb.control.standing import Cause, Out
from nfqlb.model import Service

End = tuple[str, int]


class Run(NamedTuple):
    """Counters as they were at the last look (answered, refused, not answered), and what failed on end since."""

    counts: tuple[int, int, int] = (0, 0, 0)
    failed: int = 0


def follow(run: Run, counts: tuple[int, int, int]) -> Run:
    """After one more look."""
    answered, *failures = (max(0, now - then) for now, then in zip(counts, run.counts, strict=True))
    failed = sum(failures)
    if not answered and not failed:
        return run._replace(counts=counts)
    return Run(counts, run.failed + failed - answered if failed > answered else 0)


def may_go(service: Service, end: End, out: Mapping[End, Out], ceiling: int) -> bool:
    """Whether the server can be ejected: at most `ceiling` percent are at a time, or one, and never the last.

    `out` is who is out now: an ejection that is over, or that a check has confirmed since, counts no more.
    """
    reals = [(real.address, real.port) for real in service.reals if real.weight]
    if end in out or end not in reals or all(one in out for one in reals if one != end):
        return False
    gone = sum(1 for one in reals if one in out and out[one].cause is Cause.EJECTED)
    return gone == 0 or 100 * (gone + 1) <= ceiling * len(reals)
