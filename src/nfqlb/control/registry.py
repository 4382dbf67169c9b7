"""The verbs that change an intent.

Strategy: each verb takes an intent and returns the next one, or raises and has changed nothing. The values check
themselves (nfqlb.model); here is only what needs the whole: whether a service or real server is there already, and its
place in the order. New ones go to the end; an edited one keeps its place, since schedulers walk in that order.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from nfqlb.errors import ExistsError, NotFoundError
from nfqlb.model import Answers, Intent, Key, Options, Real, Service, Sync, Timeouts, endpoint, is_script


def find_service(intent: Intent, key: Key) -> Service:
    if service := intent.by_key.get(key):
        return service
    raise NotFoundError(f"service {key}: there is none; `nfqlb show` lists the services")


def find_real(service: Service, address: str, port: int) -> Real:
    for real in service.reals:
        if (real.address, real.port) == (address, port):
            return real
    raise NotFoundError(f"service {service.key}: has no real server {endpoint(address, port)}; `nfqlb show` lists them")


def add_service(intent: Intent, service: Service) -> Intent:
    if service.key in intent.by_key:
        raise ExistsError(f"service {service.key}: exists already; change it with `nfqlb service edit`")
    return replace(intent, services=(*intent.services, service))


def edit_service(intent: Intent, key: Key, **changed: Any) -> Intent:
    """Give the service other values of these fields. A new scheduler, or fallback of one in Python, has no flags unless
    they come with it. A scheduler is not its own shadow any more.
    """
    service = find_service(intent, key)
    if changed.get("scheduler", service.scheduler) != service.scheduler:
        changed.setdefault("flags", ())
        if changed["scheduler"] == service.shadow:
            changed.setdefault("shadow", "")
    elif is_script(service.scheduler) and changed.get("fallback", service.fallback) != service.fallback:
        changed.setdefault("flags", ())
    return _put(intent, replace(service, **changed))


def delete_service(intent: Intent, key: Key) -> Intent:
    gone = find_service(intent, key)
    return replace(intent, services=tuple(service for service in intent.services if service is not gone))


def clear(intent: Intent) -> Intent:
    return replace(intent, services=())


def add_real(intent: Intent, key: Key, real: Real) -> Intent:
    service = find_service(intent, key)
    if any((other.address, other.port) == (real.address, real.port) for other in service.reals):
        raise ExistsError(f"service {key}: has the real server {real} already; change it with `nfqlb real edit`")
    return _put(intent, replace(service, reals=(*service.reals, real)))


def edit_real(intent: Intent, key: Key, real: Real) -> Intent:
    """Put the real server in the place of the one with this address and port."""
    service = find_service(intent, key)
    old = find_real(service, real.address, real.port)
    return _put(intent, replace(service, reals=tuple(real if other is old else other for other in service.reals)))


def delete_real(intent: Intent, key: Key, address: str, port: int) -> Intent:
    service = find_service(intent, key)
    gone = find_real(service, address, port)
    return _put(intent, replace(service, reals=tuple(real for real in service.reals if real is not gone)))


def set_timeouts(intent: Intent, timeouts: Timeouts) -> Intent:
    return replace(intent, timeouts=timeouts)


def set_answers(intent: Intent, answers: Answers) -> Intent:
    return replace(intent, answers=answers)


def set_sync(intent: Intent, sync: Sync | None) -> Intent:
    return replace(intent, sync=sync)


def set_options(intent: Intent, options: Options) -> Intent:
    return replace(intent, options=options)


def _put(intent: Intent, service: Service) -> Intent:
    """The service in the place of the one with the same key."""
    at = intent.services.index(intent.by_key[service.key])
    return replace(intent, services=(*intent.services[:at], service, *intent.services[at + 1 :]))


def differing(one: Intent, other: Intent) -> list[Key]:
    """The services that two intents do not share: those that only one has, and those that are not the same in both.

    Intents that come from each other share most of their services, and are compared by identity there.
    """
    if one.services is other.services:
        return []
    start = _common(one.services, other.services)
    end = _common(one.services[start:][::-1], other.services[start:][::-1])
    before = {service.key: service for service in one.services[start : len(one.services) - end]}
    after = {service.key: service for service in other.services[start : len(other.services) - end]}
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def lets_go(before: Intent, after: Intent) -> bool:
    """Whether connections that `before` let live may have to end: a real server left or takes no new ones any more, or
    the options changed.
    """
    if before.options != after.options:
        return True
    return any(_lets_go(before.by_key.get(key), after.by_key.get(key)) for key in differing(before, after))


def _lets_go(before: Service | None, after: Service | None) -> bool:
    weights = {(real.address, real.port): real.weight for real in after.reals} if after else {}
    ends = {(real.address, real.port): real.weight for real in before.reals} if before else {}
    return any(end not in weights or (weight and not weights[end]) for end, weight in ends.items())


def _common(one: tuple[Service, ...], other: tuple[Service, ...]) -> int:
    """How many services both begin with, by halves: tuples are compared at the speed of memory."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
