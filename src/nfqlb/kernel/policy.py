"""Rules and tables by which the kernel itself routes a marked packet to its real server.

Strategy: a real server has a number. `fwmark NUMBER/MASK` leads to a table of its own, in which there is nothing but a
default route to the server's next hop; so the kernel does for these packets all that it does for any that it forwards,
although they are addressed to the VIP. Numbers are given in turn, so that one which was taken from a server is not
another's soon, and those of other directors, whose rules are seen, are left alone. They are written down: a restart
goes on with the marks that packets bear already.

Whether it works is asked of the kernel: where would a packet with that mark go?
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError
from nfqlb.kernel import neighbours
from nfqlb.kernel.plan import Plan, Way, marks
from nfqlb.kernel.saved import Saved
from nfqlb.model import family

PREFERENCE = 900  # of all rules: in front of main, and of VRFs
TABLES = 110_000  # a server's table is this and its number
ONLINK = 4  # RTNH_F_ONLINK: the next hop need not be in a prefix of the interface
PROTOCOL = 110  # rtm_protocol of our routes: who made them
ANYWHERE = {4: "192.0.0.8", 6: "100::"}  # nobody's addresses (RFC 7600, RFC 6666)


class Policy:
    """A rule and a table with one route for each real server of a plan's ways."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._last = max(saved.numbers.values(), default=0)
        self._applied: tuple[frozenset[Way], int] = (frozenset(), 0)

    def numbers(self, plan: Plan) -> dict[str, int]:
        """Every server's number, given now where it has none; KernelError where there are not enough."""
        servers = {way.server for way in plan.ways}
        room = plan.mask // max(1, plan.mask & -plan.mask)
        given = {server: n for server, n in self._saved.numbers.items() if server in servers and n <= room}
        new = sorted(servers - given.keys())
        if new:
            taken = {*self._saved.numbers.values(), *self._saved.others().numbers.values(), *_present()}
            free = [number for number in _turn(self._last, room) if number not in taken]
            if len(free) < len(new):
                raise KernelError(f'more real servers than marks in {plan.mask:#x}: widen dr_mask, or dr_by = "frame"')
            given |= dict(zip(new, free, strict=False))
            self._last = given[new[-1]]
            self._saved.numbers |= given
            self._saved.write()
        return given

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        if (plan.ways, plan.mask) == self._applied and not afresh:
            return
        given = self.numbers(plan)
        old = frozenset[Way]() if afresh or plan.mask != self._applied[1] else self._applied[0]
        self._applied = frozenset(), 0
        if plan.ways != old:
            with IPRoute() as ip:
                for way in sorted(plan.ways - old):
                    _lead(ip, way, given[way.server], plan.mask)
        self._applied = plan.ways, plan.mask

    def prune(self, plan: Plan) -> None:
        servers = {way.server for way in plan.ways}
        gone = {server: number for server, number in self._saved.numbers.items() if server not in servers}
        if not gone:
            return
        with IPRoute() as ip:
            for server, number in gone.items():
                _forget(ip, family(server), TABLES + number)
        self._saved.numbers = {server: n for server, n in self._saved.numbers.items() if server not in gone}
        self._saved.write()
        self._applied = frozenset(way for way in self._applied[0] if way.server in servers), self._applied[1]

    def check(self, plan: Plan) -> list[str]:
        given = marks(self.numbers(plan), plan.mask) if plan.ways else {}
        found = []
        for way in sorted(plan.ways):
            anywhere = ANYWHERE[family(way.server)]
            route = neighbours.routes([anywhere], given[way.server]).get(anywhere)
            if route is None or (route.interface, route.gateway, route.mtu) != way[1:]:
                mark = f"{given[way.server]:#x}/{plan.mask:#x}"
                found.append(f"packets with mark {mark} were not routed to the real server {way.server}")
        return found


def _turn(last: int, room: int) -> Iterable[int]:
    """All numbers, those behind the last first."""
    return (*range(last + 1, room + 1), *range(1, min(last, room) + 1))


def _present() -> set[int]:
    """The numbers of every director's rules."""
    with IPRoute() as ip:
        found = [_table(rule) - TABLES for kind in neighbours.FAMILY.values() for rule in ip.get_rules(family=kind)]
    return {number for number in found if number > 0}


def _table(rule: Any) -> int:
    return int(rule.get("table") or 0)


def _lead(ip: IPRoute, way: Way, number: int, mask: int) -> None:
    """Make the route, and then the rule that leads to it."""
    kind, table = neighbours.FAMILY[family(way.server)], TABLES + number
    hop: dict[str, Any] = {"gateway": way.gateway}
    if family(way.gateway) != family(way.server):
        hop = {"via": {"family": neighbours.FAMILY[family(way.gateway)], "addr": way.gateway}}
    if way.mtu:
        hop["metrics"] = {"mtu": way.mtu}
    try:
        ip.route(
            "replace", family=kind, dst="default", table=table, oif=way.interface, flags=ONLINK, proto=PROTOCOL, **hop
        )
        mark = number * (mask & -mask)
        ip.rule("add", family=kind, priority=PREFERENCE, fwmark=mark, fwmask=mask, table=table)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise KernelError(f"packets cannot be routed to {way.server} by a mark: {error.args[-1]}") from error


def _forget(ip: IPRoute, kind: int, table: int) -> None:
    """Take away the rules that lead to a table, and then its route."""
    number = neighbours.FAMILY[kind]
    rules = [rule for rule in ip.get_rules(family=number) if _table(rule) == table]
    for rule in rules:
        mark, mask = rule.get("fwmark"), rule.get("fwmask")
        _gone(ip.rule, family=number, priority=rule.get("priority"), fwmark=mark, fwmask=mask, table=table)
    _gone(ip.route, family=number, dst="default", table=table)


def _gone(verb: Any, **what: Any) -> None:
    try:
        verb("delete", **what)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ESRCH):
            raise KernelError(
                f"what leads to routing table {what['table']} cannot be removed: {error.args[-1]}"
            ) from error
