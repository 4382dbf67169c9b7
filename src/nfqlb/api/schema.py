"""The JSON that the API speaks: one struct per answer, and how each is made from the intent and the counters.

The field names are the keys; they are a promise to scripts, so a key is added, never renamed. Requests that create
something carry the values of nfqlb.model as they are (Service, Real, Timeouts, Answers, Options).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nfqlb.api.director import Choosing, Connection, Slots
from nfqlb.control.compile import SlotKey, unpacked
from nfqlb.control.rates import Meter
from nfqlb.control.reconcile import Step
from nfqlb.control.standing import Cause
from nfqlb.draining import DrainView
from nfqlb.health.runner import Asked
from nfqlb.model import (
    PROTOCOLS,
    Answers,
    Health,
    Intent,
    Key,
    Options,
    OwnTimeouts,
    Persistence,
    Quorum,
    Real,
    Service,
    Sync,
    Timeouts,
    endpoint,
)
from nfqlb.runconfig import Ha
from nfqlb.serving import Serving

if TYPE_CHECKING:
    from nfqlb._core.advisor import Advice
    from nfqlb._core.datapath import Drained

PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
# include/net/ip_vs.h, IP_VS_TCP_S_*
TCP_STATES = (
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
)


# likewise, IP_VS_SCTP_S_*
SCTP_STATES = (
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
)
STATES = {"tcp": TCP_STATES, "sctp": SCTP_STATES}
TEMPLATE_STATES = ("NONE", "ASSURED")  # IP_VS_CTPL_S_*


class ServiceEdit(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays as it is. Another mode is for new connections."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    mode: str | msgspec.UnsetType = msgspec.UNSET
    scheduler: str | msgspec.UnsetType = msgspec.UNSET
    flags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    persistence: Persistence | msgspec.UnsetType | None = msgspec.UNSET
    one_packet: bool | msgspec.UnsetType = msgspec.UNSET
    mss: int | msgspec.UnsetType = msgspec.UNSET
    health: Health | msgspec.UnsetType | None = msgspec.UNSET
    offload: bool | msgspec.UnsetType = msgspec.UNSET
    quorum: Quorum | msgspec.UnsetType | None = msgspec.UNSET
    fallback: str | msgspec.UnsetType = msgspec.UNSET
    budget: int | msgspec.UnsetType = msgspec.UNSET
    shadow: str | msgspec.UnsetType = msgspec.UNSET
    timeouts: OwnTimeouts | msgspec.UnsetType | None = msgspec.UNSET
    connections_max: int | msgspec.UnsetType = msgspec.UNSET
    slow_start: int | msgspec.UnsetType = msgspec.UNSET
    maglev_size: int | msgspec.UnsetType = msgspec.UNSET


class RealEdit(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    weight: int | msgspec.UnsetType = msgspec.UNSET
    upper: int | msgspec.UnsetType = msgspec.UNSET
    lower: int | msgspec.UnsetType = msgspec.UNSET
    mode: str | msgspec.UnsetType = msgspec.UNSET
    agent_port: int | msgspec.UnsetType = msgspec.UNSET


class DrainOrder(msgspec.Struct, forbid_unknown_fields=True):
    """`timeout` in seconds; with `keep` the server stays, with weight 0."""

    timeout: float = 300
    keep: bool = False


class Changed(msgspec.Struct):
    revision: int


class Configuration(msgspec.Struct, forbid_unknown_fields=True):
    """What the configuration file says; what is left out is as by default, only `services` have to be there. `director`
    is for the next start: it is compared with what runs, no more. What GET gives is taken: `revision` as in If-Match,
    `confirm_by` says nothing.
    """

    services: tuple[Service, ...] | msgspec.UnsetType = msgspec.UNSET
    director: dict[str, str | int | Ha] = {}
    timeouts: Timeouts = Timeouts()
    answers: Answers = Answers()
    options: Options = Options()
    sync: Sync | None = None
    revision: int | None = None
    confirm_by: float | None = None


class ConfigurationView(msgspec.Struct):
    """`director` has what is not so by default; `confirm_by`, in seconds since 1970, is when the revision before comes
    back unless somebody confirms.
    """

    revision: int
    confirm_by: float | None
    director: dict[str, str | int | Ha]
    timeouts: Timeouts
    answers: Answers
    options: Options
    services: tuple[Service, ...]
    sync: Sync | None


class Applied(msgspec.Struct):
    """`steps` from what was there, `notes` on what takes effect at the next start only; not `applied`: a plan."""

    revision: int
    applied: bool
    steps: list[Step]
    notes: list[str]
    confirm_by: float | None = None


class CheckView(msgspec.Struct):
    """One check of a real server; `trouble` is why it cannot say how the server is, nothing where it can."""

    type: str
    condition: str
    count: int
    why: str
    trouble: str


class HealthView(msgspec.Struct):
    """`condition` is "up", "failing", "down" or "rising", for `seconds` now, or "held", "ejected" or "maintenance",
    which keep it out, too. `count` results of the last kind came in a row, `why` is what the last failed check found,
    or why the server is out.
    """

    service: str
    real: str
    type: str
    condition: str
    count: int
    seconds: int
    why: str
    checks: list[CheckView]


class Healths(msgspec.Struct):
    health: list[HealthView]


class ScriptView(msgspec.Struct):
    """A scheduler in Python: how often it has `chosen`, `declined`, `failed`, was `wrong` or `late`, and was left alone
    (`rested`), since it was put there; microseconds for a choice in the mean, and the most; the last `error`.
    """

    name: str
    budget: int
    chosen: int
    declined: int
    failed: int
    wrong: int
    late: int
    rested: int
    mean: float
    longest: int
    error: str


class ShadowReal(msgspec.Struct):
    """Connections that a real server got, and those that it would have got from the shadow."""

    endpoint: str
    live: int
    shadow: int


class Difference(msgspec.Struct):
    """A client, the real server that it got, and that of the shadow; nothing where there is none."""

    client: str
    live: str
    shadow: str


class ShadowView(msgspec.Struct):
    """Of the connections `compared`, the shadow had given those that `differed` to another server; `last` are some of
    these, newest first.
    """

    scheduler: str
    compared: int
    differed: int
    reals: list[ShadowReal]
    last: list[Difference]
    script: ScriptView | None


class SchedulerView(msgspec.Struct):
    service: str
    scheduler: str
    fallback: str
    script: ScriptView | None
    shadow: ShadowView | None


class Schedulers(msgspec.Struct):
    """Those in Python, and those that have a shadow."""

    schedulers: list[SchedulerView]


class Drains(msgspec.Struct):
    drains: list[DrainView]


class MaintenanceOrder(msgspec.Struct, forbid_unknown_fields=True):
    """`on` or over; `why` is for people."""

    on: bool = True
    why: str = ""


class RealView(msgspec.Struct):
    endpoint: str
    address: str
    port: int
    weight: int
    active: int
    inactive: int
    upper: int
    lower: int
    persistent: int
    mode: str
    health: str = ""
    """Nothing where nobody asks, and it is not in maintenance."""
    agent_port: int = 0
    ramping: int = 0
    """The weight that it has worked up to so far; 0 where it does not ramp."""
    reply_us: int = 0
    """Microseconds that it takes to reply, as `ewma` reckons; 0 where nothing is known."""
    why: str = ""
    """Why it is in maintenance; nothing where it is not, or where nobody said."""


class ServiceView(msgspec.Struct):
    key: str
    name: str
    protocol: str
    address: str
    port: int
    mode: str
    scheduler: str
    active: int
    inactive: int
    reals: list[RealView]
    last: int
    fwmark: int
    flags: tuple[str, ...]
    persistence: Persistence | None
    one_packet: bool
    mss: int
    health: Health | None
    offload: bool
    quorum: Quorum | None
    fallback: str
    budget: int
    shadow: str
    timeouts: OwnTimeouts | None
    connections_max: int
    slow_start: int
    maglev_size: int


class SyncView(msgspec.Struct):
    """`sync` is null where there is none; docs/sync.md says what is in it."""

    sync: dict[str, Any] | None


class Services(msgspec.Struct):
    revision: int
    timeouts: Timeouts
    answers: Answers
    options: Options
    services: list[ServiceView]


class RealStats(msgspec.Struct):
    """Counted since the start or the last zeroing; the rates are per second."""

    endpoint: str
    conns: int
    inpkts: int
    outpkts: int
    inbytes: int
    outbytes: int
    cps: int
    inpps: int
    outpps: int
    inbps: int
    outbps: int


class ServiceStats(msgspec.Struct):
    """Each counter is the sum over the service's real servers."""

    key: str
    reals: list[RealStats]
    conns: int
    inpkts: int
    outpkts: int
    inbytes: int
    outbytes: int
    cps: int
    inpps: int
    outpps: int
    inbps: int
    outbps: int


class Stats(msgspec.Struct):
    """`packets` and `batches` count everything that came through the queues."""

    packets: int
    batches: int
    services: list[ServiceStats]


class ConnectionView(msgspec.Struct):
    """`expires` in seconds. A `template` is no connection: it says where the client's connections go; its protocol is
    "ip" and its virtual address the mark for a service by mark.
    """

    protocol: str
    expires: int
    state: str
    client: str
    virtual: str
    destination: str
    template: bool


class Connections(msgspec.Struct):
    connections: list[ConnectionView]


class Reasons(msgspec.Struct):
    """Packets by the reason that decided them."""

    reasons: dict[str, int]


class ErrorView(msgspec.Struct):
    """`kind` is a class of nfqlb.errors; `field` to `fix` are empty unless it is ConfigError. All that is wrong with a
    file is ConfigErrors, with `errors`.
    """

    kind: str
    message: str
    field: str = ""
    value: str = ""
    problem: str = ""
    fix: str = ""
    errors: list[ErrorView] | msgspec.UnsetType = msgspec.UNSET


class ErrorBody(msgspec.Struct):
    error: ErrorView


class Counters(NamedTuple):
    """A row of Drained.slots."""

    conns: int = 0
    inpkts: int = 0
    outpkts: int = 0
    inbytes: int = 0
    outbytes: int = 0
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    reply_us: int = 0


def healths(serving: Serving, intent: Intent, now: float) -> Healths:
    """In the order of the services."""
    found = []
    for service in intent.services:
        for real in service.reals:
            end = service.key, real.address, real.port
            one, out = serving.health.seen.get(end), serving.out.get(end)
            if one and service.health:
                status, seconds = one.status, max(0, int(now - one.since))
                about = (str(service.key), str(real), service.health.kind)
                why = out.why if out and out.cause is not Cause.DOWN else status.why
                checks = [_check(asked) for asked in one.checks]
                found.append(HealthView(*about, _condition(serving, end), status.row, seconds, why, checks))
    return Healths(found)


def _check(asked: Asked) -> CheckView:
    status = asked.status
    return CheckView(asked.check.type, str(status.condition), status.row, status.why, asked.trouble)


def schedulers(choosing: Mapping[Key, Choosing], intent: Intent, slots: Slots) -> Schedulers:
    """In the order of the services."""
    found = []
    for service in intent.services:
        one = choosing.get(service.key)
        if one:
            script = _script(one.advice, service)
            shadow = _shadow(one, service, slots)
            found.append(SchedulerView(str(service.key), service.scheduler, service.fallback, script, shadow))
    return Schedulers(found)


def _script(advice: Advice | None, service: Service) -> ScriptView | None:
    if advice is None:
        return None
    calls = advice.chosen + advice.declined + advice.failed + advice.wrong + advice.late
    mean = round(advice.spent / 1000 / max(1, calls), 1)
    return ScriptView(advice.name, service.budget, *advice[1:7], mean, advice.longest // 1000, advice.error)


def _shadow(one: Choosing, service: Service, slots: Slots) -> ShadowView | None:
    if one.compared is None:
        return None
    compared, differed, tallies, last = one.compared
    numbers = {slots.get((service.key, real.address, real.port), -1): str(real) for real in service.reals}
    reals = [ShadowReal(name, *tallies.get(slot, (0, 0))) for slot, name in numbers.items()]
    differences = [
        Difference(endpoint(unpacked(client), port), numbers.get(live, ""), numbers.get(shadow, ""))
        for client, port, live, shadow in last
    ]
    return ShadowView(service.shadow, compared, differed, reals, differences, _script(one.shadow, service))


def service_view(service: Service, slots: Slots, drained: Drained, serving: Serving) -> ServiceView:
    counted = [(real, _counters(service, real, slots, drained)) for real in service.reals]
    total = _sum(counters for _, counters in counted)
    return ServiceView(
        key=str(service.key),
        name=service.name,
        protocol=service.protocol,
        address=service.address,
        port=service.port,
        mode=service.mode,
        scheduler=service.scheduler,
        active=total.active,
        inactive=total.inactive,
        reals=[
            RealView(
                *(str(real), real.address, real.port, real.weight, counters.active, counters.inactive),
                *(real.upper, real.lower, counters.persistent, service.mode_of(real)),
                _condition(serving, (service.key, real.address, real.port)),
                real.agent_port,
                serving.ramping((service.key, real.address, real.port)),
                counters.reply_us,
                _why(serving, (service.key, real.address, real.port)),
            )
            for real, counters in counted
        ],
        last=service.last,
        fwmark=service.fwmark,
        flags=service.flags,
        persistence=service.persistence,
        one_packet=service.one_packet,
        mss=service.mss,
        health=service.health,
        offload=service.offload,
        quorum=service.quorum,
        fallback=service.fallback,
        budget=service.budget,
        shadow=service.shadow,
        timeouts=service.timeouts,
        connections_max=service.connections_max,
        slow_start=service.slow_start,
        maglev_size=service.maglev_size,
    )


def services(intent: Intent, revision: int, slots: Slots, drained: Drained, serving: Serving) -> Services:
    views = [service_view(service, slots, drained, serving) for service in intent.services]
    return Services(revision, intent.timeouts, intent.answers, intent.options, views)


def _condition(serving: Serving, end: SlotKey) -> str:
    out, seen = serving.out.get(end), serving.health.seen.get(end)
    if out and out.cause is not Cause.DOWN:
        return str(out.cause)
    return str(seen.status.condition) if seen else ""


def _why(serving: Serving, end: SlotKey) -> str:
    out = serving.out.get(end)
    return out.why if out and out.cause is Cause.MAINTENANCE else ""


def stats(intent: Intent, slots: Slots, drained: Drained, meter: Meter) -> Stats:
    found = []
    for service in intent.services:
        numbers = [slots.get((service.key, real.address, real.port)) for real in service.reals]
        reals = [
            RealStats(str(real), *meter.since_zero(drained.slots, [slot]), *meter.rates([slot]))
            for real, slot in zip(service.reals, numbers, strict=True)
        ]
        found.append(ServiceStats(str(service.key), reals, *meter.service(drained.slots, service.key, numbers)))
    return Stats(packets=drained.packets, batches=drained.batches, services=found)


def connections(rows: Sequence[Connection]) -> Connections:
    return Connections([_connection(*row) for row in rows])


def _connection(
    protocol: int,
    client: bytes,
    cport: int,
    vip: bytes,
    vport: int,
    server: bytes,
    sport: int,
    state: int,
    seconds_left: int,
    template: bool,
) -> ConnectionView:
    name = PROTOCOL_NAMES.get(protocol, "ip")
    return ConnectionView(
        protocol=name,
        expires=seconds_left,
        state=TEMPLATE_STATES[state] if template else STATES[name][state] if name in STATES else name.upper(),
        client=endpoint(unpacked(client), cport),
        virtual=endpoint(unpacked(vip), vport),
        destination=endpoint(unpacked(server), sport),
        template=template,
    )


def _counters(service: Service, real: Real, slots: Slots, drained: Drained) -> Counters:
    """Zeros for a server that the data path does not know yet."""
    slot = slots.get((service.key, real.address, real.port))
    return Counters(*drained.slots.get(slot, ())) if slot is not None else Counters()


def _sum(rows: Iterable[Counters]) -> Counters:
    return Counters(*map(sum, zip(Counters(), *rows, strict=True)))
