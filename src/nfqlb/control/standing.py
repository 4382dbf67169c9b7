"""What checks and people say of real servers, as what a data path is to do. Pure: no clock, no I/O.

Strategy: a real server is `out` for a cause, or it is not; everything else follows from that and from which services
have lost their quorum before. What comes out are weights other than those asked for, and the fates of connections, of
the services alone that have any: a director with ten thousand services that are well pays for none.

A server that is out is no part of its service, as keepalived deletes it (checkers' ipwrapper.c), so that schedulers by
hash have its clients go elsewhere, too; with on_down "quiesce" it has weight 0. Fewer than `panic` percent up, and
nobody believes it: all get connections but those in maintenance. A service without its quorum goes over to its sorry
server as a whole, if it has one; connections of servers that are well go on, then.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import NamedTuple

from nfqlb.control.compile import End, SlotKey, Weights
from nfqlb.model import Health, Intent, Key, Quorum, Real, Service


class Cause(StrEnum):
    """Why a real server gets no new connections."""

    DOWN = "down"  # its checks failed
    EJECTED = "ejected"  # its handshakes failed
    HELD = "held"  # they pass again, but it went down too often
    MAINTENANCE = "maintenance"  # somebody says so


class Out(NamedTuple):
    cause: Cause
    why: str = ""


class Standing(NamedTuple):
    """`weights` are those that are not as asked for, None for a server that is no part of its service now. `fates` of
    their connections are as snapshot.Snapshot takes them. `lost` are services without their quorum, those in `panic`
    use servers that are down.
    """

    weights: Weights = {}  # noqa: RUF012
    fates: Mapping[SlotKey, str] = {}
    lost: frozenset[Key] = frozenset()
    panic: frozenset[Key] = frozenset()


def judge(intent: Intent, out: Mapping[SlotKey, Out], lost: Set[Key] = frozenset()) -> Standing:
    """What follows from who is `out`; `lost` are the services that had no quorum before."""
    ends: dict[Key, dict[End, Out]] = {}
    for (key, address, port), one in out.items():
        ends.setdefault(key, {})[address, port] = one
    weights: dict[Key, Mapping[End, int | None]] = {}
    fates: dict[SlotKey, str] = {}
    without, panic = set(), set()
    for service in (one for one in intent.services if one.quorum or one.key in ends):
        key, gone = service.key, ends.get(service.key, {})
        alone = not has_quorum(service, gone, key not in lost)
        if alone:
            without.add(key)
        instead = service.sorry if alone else None
        if not instead and panics(service, gone):
            panic.add(key)
            gone = {end: one for end, one in gone.items() if one.cause is Cause.MAINTENANCE}
        given, found = _service(service, gone, instead)
        if given:
            weights[key] = given
        fates.update(((key, *end), fate) for end, fate in found.items())
    return Standing(weights, fates, frozenset(without), frozenset(panic))


def sum_of(service: Service, out: Mapping[End, Out]) -> int:
    """The weights of those that are well."""
    return sum(real.weight for real in service.reals if (real.address, real.port) not in out)


def has_quorum(service: Service, out: Mapping[End, Out], before: bool) -> bool:
    """Whether the service has its quorum, which it had `before` or not."""
    quorum = service.quorum or Quorum()
    return sum_of(service, out) >= quorum.weight + (-quorum.hysteresis if before else quorum.hysteresis)


def withheld(intent: Intent, lost: Set[Key]) -> frozenset[str]:
    """The VIPs that a service without its quorum does not want announced."""
    services = (intent.by_key.get(key) for key in lost)
    return frozenset(service.address for service in services if service and announces(service))


def announces(service: Service) -> bool:
    """Whether its VIP is there only with a quorum."""
    return service.quorum is not None and service.quorum.announce == "quorum"


def panics(service: Service, out: Mapping[End, Out]) -> bool:
    """Whether so many of the servers that could be up are not that it is no news of them."""
    if not service.health or not service.health.panic:
        return False
    causes = [out.get((real.address, real.port)) for real in service.reals if real.weight]
    could = [one for one in causes if one is None or one.cause is not Cause.MAINTENANCE]
    return 100 * could.count(None) < service.health.panic * len(could)


def _service(
    service: Service, out: Mapping[End, Out], instead: Real | None
) -> tuple[dict[End, int | None], dict[End, str]]:
    """Weights and fates; `instead` is the sorry server that gets everything."""
    on_down = (service.health or Health()).on_down
    weights: dict[End, int | None] = {}
    fates: dict[End, str] = {}
    for real in service.reals:
        end = real.address, real.port
        one = out.get(end)
        if one and one.cause is not Cause.MAINTENANCE and on_down == "quiesce" and not instead:
            weights[end] = 0
        elif one or instead:
            weights[end] = None
            fates[end] = on_down if one and one.cause is not Cause.MAINTENANCE else "keep"
    if sorry := service.sorry:
        end = sorry.address, sorry.port
        if instead:
            weights[end] = sorry.weight
        elif service.quorum and service.quorum.sorry_inhibit:
            weights[end] = 0
        else:
            weights[end], fates[end] = None, on_down
    return weights, {end: "keep" if fate == "quiesce" else fate for end, fate in fates.items()}
