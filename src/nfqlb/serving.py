"""Which real servers get connections: what checks and people say, put together, and told when it changes.

Strategy: `look` says how things stand for an intent, from the checks' results, maintenance and what is remembered of
servers that flap (control.standing, control.damping); the director publishes that, and then has it `settle`: what
changed since the last time are turns, a sentence each. All of it goes into the state, and comes back from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from nfqlb import clock
from nfqlb.control.compile import SlotKey, Weights
from nfqlb.control.damping import Record, fell, is_over, returned
from nfqlb.control.outliers import Run, follow, may_go
from nfqlb.control.ramping import Starts, begun, ramped
from nfqlb.control.standing import Cause, Out, Standing, announces, has_quorum, judge, sum_of, withheld
from nfqlb.health.machine import Status
from nfqlb.health.runner import Runner
from nfqlb.health.scripts import Scripts
from nfqlb.model import Health, Intent, Key, Quorum, Service, endpoint, parse_real, parse_vip
from nfqlb.state import Damped, Down, State

UNPROVEN_SECONDS = 0.1  # between looks while first checks are awaited
RAMP_SECONDS = 1.0  # between steps of a slow start
LOOK_SECONDS = 60.0  # between looks when nothing is due


class Turn(NamedTuple):
    """Something went well or ill: a real server of a service, or, without an `end`, the service. `what` is "server",
    "quorum" or "panic".
    """

    what: str
    key: Key
    end: tuple[str, int] | None
    well: bool
    message: str
    cause: str = ""


class View(NamedTuple):
    """How things stand, for one intent; `weighted` has the weights that checks advise. `weights` are the standing's,
    lower for servers that ramp: since `starts`, in seconds of the monotonic clock.
    """

    intent: Intent
    weighted: Intent
    out: Mapping[SlotKey, Out]
    standing: Standing
    weights: Weights = {}  # noqa: RUF012
    starts: Starts = {}  # noqa: RUF012

    @property
    def asks(self) -> tuple[Intent, Weights, Mapping[SlotKey, str]]:
        """What is asked of the data path."""
        return self.weighted, self.weights, self.standing.fates


class Serving:
    """`changed` is told when it is time to look again."""

    def __init__(self, saved: State, changed: Callable[[], None], scripts: Scripts | None = None) -> None:
        self._changed = changed
        down = [_end(one.service, one.real) for one in saved.down]
        self.health = Runner(self._turned, down, advised=lambda _: changed(), scripts=scripts)
        self.maintenance = {_end(one.service, one.real): one for one in saved.maintenance}
        self._records = {_end(one.service, one.real): Record(one.times, one.until, one.back) for one in saved.damped}
        lost = frozenset(parse_vip(key) for key in saved.lost)
        self._intent = saved.intent
        self._unproven: set[Key] = set()
        self._runs: dict[SlotKey, Run] = {}
        self._watched: tuple[Intent, list[SlotKey]] = (Intent(), [])
        self._ejections: dict[SlotKey, Record] = {}
        self._why: dict[SlotKey, str] = {}  # of ejections
        self.view = View(saved.intent, saved.intent, self._out(saved.intent, clock.now()), Standing(lost=lost))

    @property
    def out(self) -> Mapping[SlotKey, Out]:
        """The real servers that get no new connections, and why."""
        return self.view.out

    def look(self, intent: Intent) -> View:
        """How things stand now; nothing changes by it."""
        out, weighted = self._out(intent, clock.now()), self.health.weighted(intent)
        last, now = self.view, time.monotonic()
        standing = judge(weighted, out, last.standing.lost)
        starts = begun(last.weighted, last.standing.weights, weighted, standing.weights, last.starts, now)
        return View(intent, weighted, out, standing, ramped(weighted, standing.weights, starts, now), starts)

    def settle(self, view: View) -> list[Turn]:
        """The view was published; what changed since the last one."""
        before, self.view, self._intent = self.view, view, view.intent
        now = clock.now()
        for records in (self._records, self._ejections):
            for end, record in tuple(records.items()):
                service = view.intent.by_key.get(end[0])
                if not service or not service.health or is_over(record, now, service.health.hold_max):
                    del records[end]
                elif end not in view.out:
                    records[end] = returned(record, now)
        self._ejections = {end: one for end, one in self._ejections.items() if _is_watched(view.intent, end)}
        self._why = {end: self._why[end] for end in self._ejections}
        self.maintenance = {end: one for end, one in self.maintenance.items() if _find(view.intent, end)}
        return [*self._servers(before, view, now), *_services(before, view)]

    def watched(self, intent: Intent) -> list[SlotKey]:
        """The real servers whose handshakes are looked at."""
        if intent is not self._watched[0]:
            services = (one for one in intent.services if one.health and one.health.passive)
            self._watched = intent, [(service.key, *end) for service in services for end in service.ends]
        return self._watched[1]

    def observe(self, counts: Mapping[SlotKey, tuple[int, int, int]]) -> None:
        """Handshakes that were answered, refused, and not answered; whoever fails is ejected."""
        now, ejected = clock.now(), False
        self._runs = {
            end: follow(self._runs[end], one) if end in self._runs else Run(one) for end, one in counts.items()
        }
        for end, run in self._runs.items():
            service = self._intent.by_key.get(end[0])
            if run.failed and service and service.health and run.failed >= service.health.passive > 0:
                self._runs[end] = run._replace(failed=0)
                ejected |= self._eject(service, service.health, end, run.failed, now)
        if ejected:
            self._changed()

    def _eject(self, service: Service, health: Health, end: SlotKey, failed: int, now: float) -> bool:
        out = {one[1:]: why for one, why in self._out(self._intent, now).items() if one[0] == service.key}
        if not may_go(service, end[1:], out, health.max_ejected):
            return False
        self._ejections[end] = fell(self._ejections.get(end, Record()), now, health.eject, health.hold_max, free=0)
        self._why[end] = f"{failed} handshakes failed on end"
        return True

    def doubt(self, intent: Intent) -> None:
        """Announce nothing for a quorum that no check has seen."""
        self._unproven = {service.key for service in intent.services if announces(service) and service.health}

    def withheld(self, view: View) -> frozenset[str]:
        """The VIPs that are not to be there."""
        for key in tuple(self._unproven):
            service = view.weighted.by_key.get(key)
            if not service or has_quorum(service, self._untold(view, service), before=True):
                self._unproven.discard(key)
        return withheld(view.intent, view.standing.lost | self._unproven)

    def _untold(self, view: View, service: Service) -> dict[tuple[str, int], Out]:
        """Those of a service that no check has passed for, and those that are out."""
        found = {}
        for end in service.ends:
            whole = (service.key, *end)
            seen = self.health.seen.get(whole)
            if whole in view.out or not seen or not seen.status.row:
                found[end] = view.out.get(whole, Out(Cause.DOWN))
        return found

    def due(self) -> float:
        """Seconds until it is worth looking again."""
        if self._unproven:
            return UNPROVEN_SECONDS
        now = clock.now()
        records = (*self._records.values(), *self._ejections.values())
        waits = (record.until - now for record in records if record.until > now)
        return min([RAMP_SECONDS if self.view.starts else LOOK_SECONDS, *waits])

    def ramping(self, end: SlotKey) -> int:
        """The weight that a real server has worked up to; 0 where it does not ramp."""
        key, *_ = end
        return (self.view.weights[key][end[1:]] or 0) if end[1:] in self.view.starts.get(key, {}) else 0

    def kept(self) -> dict[str, Any]:
        """The fields of the state that this is."""
        down = sorted(end for end in self.health.down)
        return {
            "down": tuple(Down(str(key), endpoint(address, port)) for key, address, port in down),
            "maintenance": tuple(self.maintenance.values()),
            "damped": tuple(
                Damped(str(key), endpoint(address, port), *record)
                for (key, address, port), record in self._records.items()
            ),
            "lost": tuple(sorted(map(str, self.view.standing.lost))),
        }

    def _turned(self, end: SlotKey, status: Status) -> None:
        """A real server's checks say otherwise now."""
        service = self._intent.by_key.get(end[0])
        if not status.serves and service and service.health and service.health.hold:
            record = self._records.get(end, Record())
            self._records[end] = fell(record, clock.now(), service.health.hold, service.health.hold_max)
        self._changed()

    def _out(self, intent: Intent, now: float) -> dict[SlotKey, Out]:
        found = {
            end: Out(Cause.DOWN, seen.status.why) for end, seen in self.health.seen.items() if not seen.status.serves
        }
        for end, record in self._ejections.items():
            if record.until > now and end not in found and _is_watched(intent, end):
                found[end] = Out(Cause.EJECTED, self._why[end])
        for end, record in self._records.items():
            if record.until > now and end not in found:
                found[end] = Out(Cause.HELD, f"it went down {record.times} times of late")
        by_agent = Out(Cause.MAINTENANCE, "its agent says so")
        found |= {end: by_agent for end, seen in self.health.seen.items() if seen.maintained}
        found |= {end: Out(Cause.MAINTENANCE, one.why) for end, one in self.maintenance.items()}
        return {end: one for end, one in found.items() if _find(intent, end)}

    def _servers(self, before: View, view: View, now: float) -> Iterator[Turn]:
        for end in sorted(before.out.keys() | view.out.keys()):
            old, new = before.out.get(end), view.out.get(end)
            if (old and old.cause) == (new and new.cause) or not _find(view.intent, end):
                continue
            key, address, port = end
            name = f"{endpoint(address, port)} of {key}"
            if not new:
                back = "back from maintenance" if old and old.cause is Cause.MAINTENANCE else "up again"
                yield Turn("server", key, (address, port), True, f"{name} is {back}")
                continue
            words = {
                Cause.DOWN: f"is down: {new.why}",
                Cause.MAINTENANCE: "is in maintenance" + (f": {new.why}" if new.why else ""),
            }
            if new.cause is Cause.EJECTED:
                left = max(0.0, self._ejections[end].until - now)
                words[new.cause] = f"is ejected for {left:.1f} s: {new.why}"
            if new.cause is Cause.HELD:
                left = max(0.0, self._records[end].until - now)
                words[new.cause] = f"passes its checks, but {new.why}: it stays out for {left:.0f} s more"
            yield Turn("server", key, (address, port), False, f"{name} {words[new.cause]}", str(new.cause))


def _services(before: View, view: View) -> Iterator[Turn]:
    one, other = before.standing, view.standing
    for key in sorted(one.lost ^ other.lost):
        service = view.weighted.by_key.get(key)
        if service and key in other.lost:
            wanted = (service.quorum or Quorum()).weight
            has = sum_of(service, {end[1:]: out for end, out in view.out.items() if end[0] == key})
            sorry = f"; {service.sorry} steps in" if service.sorry else ""
            why = f"has lost its quorum: weight {has} is up, {wanted} is wanted{sorry}"
            yield Turn("quorum", key, None, False, f"{_named(service)} {why}")
        elif service:
            yield Turn("quorum", key, None, True, f"{_named(service)} has its quorum again")
    for key in sorted(one.panic ^ other.panic):
        service = view.intent.by_key.get(key)
        if service and service.health and key in other.panic:
            why = f"less than {service.health.panic} % of its servers are up: all get connections"
            yield Turn("panic", key, None, False, f"{_named(service)} panics: {why}")
        elif service:
            yield Turn("panic", key, None, True, f"{_named(service)} uses servers that are up, and no others, again")


def _named(service: Service) -> str:
    return f"service {service.key}"


def _find(intent: Intent, end: SlotKey) -> bool:
    service = intent.by_key.get(end[0])
    return service is not None and end[1:] in service.ends


def _is_watched(intent: Intent, end: SlotKey) -> bool:
    service = intent.by_key.get(end[0])
    return service is not None and service.health is not None and service.health.passive > 0 and end[1:] in service.ends


def _end(service: str, real: str) -> SlotKey:
    key = parse_vip(service)
    found = parse_real(real, key)
    return key, found.address, found.port
