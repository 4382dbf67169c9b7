"""Real servers that are on their way out: no new connections, and gone when the last one ends or time is up.

Strategy: a drain is a value in the state, beside the intent, so it goes on after a crash with the same deadline. What
becomes of it is a pure function of the intent, of the connections that the server has, and of the clock.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec.structs import replace

from nfqlb.control.registry import delete_real, edit_real, find_real, find_service
from nfqlb.errors import NotFoundError
from nfqlb.model import Intent, Key, Real, parse_real, parse_vip


class Phase(StrEnum):
    """Where a drain is; all but DRAINING are its end."""

    DRAINING = "draining"
    EMPTY = "empty"  # the last connection has ended
    DEADLINE = "deadline"  # time was up before that
    CALLED_OFF = "called off"  # somebody gave the server a weight again
    GONE = "gone"  # somebody removed it


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`service` and `real` as they are written; `until` is a time of nfqlb.clock, which a crash does not stop."""

    service: str
    real: str
    until: float
    keep: bool = False  # with weight 0, instead of being removed

    @property
    def end(self) -> tuple[str, str]:
        """Whose drain it is: a real server of a service has one at most."""
        return self.service, self.real

    @property
    def key(self) -> Key:
        return parse_vip(self.service)

    @property
    def server(self) -> Real:
        return parse_real(self.real, self.key)


def quiesce(intent: Intent, key: Key, real: Real) -> Intent:
    """The intent in which this real server has weight 0; NotFoundError where there is none."""
    old = find_real(find_service(intent, key), real.address, real.port)
    return edit_real(intent, key, replace(old, weight=0))


def leave(intent: Intent, drain: Drain) -> Intent:
    """The intent without the drained server, unless it has got a weight or has gone meanwhile."""
    try:
        real = find_real(find_service(intent, drain.key), drain.server.address, drain.server.port)
    except NotFoundError:
        return intent
    return intent if real.weight else delete_real(intent, drain.key, real.address, real.port)


def phase(drain: Drain, intent: Intent, connections: int, now: float) -> Phase:
    try:
        real = find_real(find_service(intent, drain.key), drain.server.address, drain.server.port)
    except NotFoundError:
        return Phase.GONE
    if real.weight:
        return Phase.CALLED_OFF
    if not connections:
        return Phase.EMPTY
    return Phase.DRAINING if now < drain.until else Phase.DEADLINE
