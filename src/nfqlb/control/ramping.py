"""Slow start: who begins to get connections works up to its weight. Pure: the time comes in.

Strategy: what counts is that a real server has a weight now and had none before, whatever the cause: it was added, is
up again, out of maintenance, or was given a weight. It begins only where others of its service had a weight before and
still have it: somebody has to take the rest. So nothing ramps at a start, nor in a service that is new or comes back as
a whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from nfqlb.control.compile import End, Weights
from nfqlb.model import Intent, Key, Service

LEAST = 0.1  # of its weight, to begin with

Starts = Mapping[Key, Mapping[End, float]]  # when each ramp began


def share(weight: int, age: float, seconds: float) -> int:
    """The weight that counts `age` seconds after a ramp of so many began; at least 1, unless it is to be 0."""
    done = min(1.0, max(LEAST, age / seconds))
    return max(min(weight, 1), int(weight * done))


def begun(before: Intent, had: Weights, after: Intent, has: Weights, starts: Starts, now: float) -> Starts:
    """The ramps that go on or begin; `had` and `has` are weights other than those of the intents."""
    found = {}
    for service in after.services:
        if not service.slow_start:
            continue
        old, new = _weighty(before.by_key.get(service.key), had), _weighty(service, has)
        going = {
            end: since
            for end, since in starts.get(service.key, {}).items()
            if end in new and now - since < service.slow_start
        }
        if old.keys() & new.keys():
            going |= {end: now for end, weight in new.items() if end not in old and weight > 1}
        if going:
            found[service.key] = going
    return found


def ramped(intent: Intent, weights: Weights, starts: Starts, now: float) -> Weights:
    """The weights, with those of servers that ramp as they are now."""
    found = dict(weights)
    for key, since in starts.items():
        service = intent.by_key[key]
        full = _weighty(service, weights)
        now_of = {end: share(full[end], now - began, service.slow_start) for end, began in since.items()}
        found[key] = {**weights.get(key, {}), **now_of}
    return found


def _weighty(service: Service | None, weights: Weights) -> dict[End, int]:
    """The real servers that get connections, and their weights."""
    if service is None:
        return {}
    given = weights.get(service.key, {})
    found = {}
    for real in service.reals:
        if weight := given.get((real.address, real.port), real.weight):
            found[real.address, real.port] = weight
    return found
