"""Plans by the services and real servers of both families, as tests write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nfqlb.kernel.plan import Endpoint, Members, Plan
from nfqlb.kernel.pool import Pool
from nfqlb.model import family


def serving(plan: Plan, services: Iterable[Endpoint] | None = None, reals: Iterable[Endpoint] | None = None) -> Plan:
    """The plan with these instead of its own, of services, of real servers or of both."""
    ours = services_of(plan) if services is None else services
    theirs = reals_of(plan) if reals is None else reals
    return replace(plan, v4=_members(4, ours, theirs), v6=_members(6, ours, theirs))


def services_of(plan: Plan) -> set[Endpoint]:
    return {*plan.v4.services, *plan.v6.services}


def reals_of(plan: Plan) -> set[Endpoint]:
    return {*plan.v4.reals, *plan.v6.reals}


def _members(number: int, services: Iterable[Endpoint], reals: Iterable[Endpoint]) -> Members:
    """Those of one family, and the addresses of both."""
    ours, theirs = (Pool(end for end in ends if family(end[1]) == number) for ends in (services, reals))
    return Members(ours, theirs, Pool(end[1] for end in ours), Pool(end[1] for end in theirs))
