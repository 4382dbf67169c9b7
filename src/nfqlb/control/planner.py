"""What the kernel must hold so that the packets of an intent reach the queues: from one intent to the next.

Strategy: what a service asks of the kernel follows from it alone. It is counted how many ask for each member of a set;
an intent is compared with the one before, and only what differs is taken out of the counts and put in. So a plan costs
what changed, and shares the rest with its predecessor, which may as well be the later one: a change that fails is
planned back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import replace
from typing import Any

import msgspec

from nfqlb.control.compile import End, Slots
from nfqlb.control.registry import differing
from nfqlb.kernel.plan import Members, Plan, Way, disjoint
from nfqlb.kernel.pool import Pool
from nfqlb.model import PROTOCOLS, Intent, Key, Service, family

Entry = tuple[str, Any]  # the name of a set, as in Members, and a member of it
FTP, FTP_DATA = 21, ((20, 20), (1024, 65535))  # ports that may be those of data connections
SPANS = ("ranges", "real_ranges")


class Planner:
    """Makes plans of successive intents; `frame` is a plan without members: name, queues, how packets are diverted."""

    def __init__(self, frame: Plan) -> None:
        self._frame = frame
        self._intent, self._left = Intent(), Slots()
        self._longest = longest(self._intent)
        self._tallies = {4: _Tally(), 6: _Tally()}

    def plan(
        self,
        intent: Intent,
        left: Slots = Slots(),  # noqa: B008
        *,
        vip_dev: str | None = None,
        withheld: Iterable[str] = (),
        heads: Iterable[Service] = (),
        ways: Iterable[Way] = (),
        mask: int = 0,
    ) -> Plan:
        """Replies pass with mode nat only. `left` are real servers that are in the intent no more and still have
        connections: their replies need the way back. `withheld` are VIPs that
        are not to be there now. `heads` are the services that are steered over `ways` by marks in
        `mask`.
        """
        changed: dict[int, tuple[list[Entry], list[Entry]]] = {4: ([], []), 6: ([], [])}
        for key in self._differing(intent, left):
            gone, come = changed[family(key.address)]
            gone += entries(key, self._intent.by_key.get(key), self._left.services.get(key, ()))
            come += entries(key, intent.by_key.get(key), left.services.get(key, ()))
        if intent is not self._intent:  # it is asked for again and again, for very many services
            self._longest = longest(intent)
        self._intent, self._left = intent, left
        for number, (gone, come) in changed.items():
            self._tallies[number].change(gone, come)
        whole: dict[int, list[tuple[int, str, int]]] = {4: [], 6: []}
        for service in heads:
            whole[family(service.address)].append((PROTOCOLS[service.protocol], service.address, service.port))
        v4, v6 = (tally.members._replace(heads=Pool(whole[number])) for number, tally in self._tallies.items())
        return replace(
            self._frame,
            v4=v4,
            v6=v6,
            idle=self._longest,
            vip_dev=vip_dev,
            withheld=frozenset(withheld),
            ways=frozenset(ways),
            mask=mask if intent.direct else 0,
        )

    def _differing(self, intent: Intent, left: Slots) -> Iterable[Key]:
        before, after = self._left.services, left.services
        keys = before.keys() | after.keys() if before is not after else set[Key]()
        return {*differing(self._intent, intent), *(key for key in keys if before.get(key) is not after.get(key))}


class _Tally:
    """The members of one family's sets, each for as long as somebody asks for it."""

    def __init__(self) -> None:
        self.members = Members()
        self._spans: dict[str, Pool[Any]] = {name: Pool() for name in SPANS}  # as they are asked for
        self._more: dict[Entry, int] = {}  # how many ask, beside the first

    def change(self, gone: Iterable[Entry], come: Iterable[Entry]) -> None:
        sums = Counter(come)
        sums.subtract(Counter(gone))
        added: dict[str, list[Any]] = {}
        removed: dict[str, list[Any]] = {}
        for entry, more in sums.items():
            if more:
                name, member = entry
                before = 1 + self._more.pop(entry, 0) if member in self._pool(name) else 0
                if before + more > 1:
                    self._more[entry] = before + more - 1
                if not before:
                    added.setdefault(name, []).append(member)
                elif not before + more:
                    removed.setdefault(name, []).append(member)
        for name in added.keys() | removed.keys():
            pool = self._pool(name).changed(added.get(name, ()), removed.get(name, ()))
            found: Set[Any] = pool
            if name in SPANS:
                self._spans[name], found = pool, disjoint(pool)
            self.members = self.members._replace(**{name: found})

    def _pool(self, name: str) -> Pool[Any]:
        found: Pool[Any] = self._spans[name] if name in SPANS else getattr(self.members, name)
        return found


def longest(intent: Intent) -> int:
    """Seconds that a connection may be silent at most."""
    own = (service.timeouts for service in intent.services if service.timeouts)
    longest: int = max(second for one in (intent.timeouts, *own) for second in msgspec.structs.astuple(one))
    return longest


def entries(key: Key, service: Service | None, left: Iterable[End]) -> Iterator[Entry]:
    """What a service asks of the kernel, and what the real servers do that have left it."""
    ftp = service is not None and service.persistence is not None and (key.protocol, key.port) == ("tcp", FTP)
    if service:
        if key.mark:
            yield "marks", key.mark
        else:
            yield "vips", key.address
            protocol = PROTOCOLS[key.protocol]
            if key.wide:
                yield "ranges", (protocol, key.address, *key.ports)
            else:
                yield "services", (protocol, key.address, key.port)
            if ftp:
                for ports in FTP_DATA:
                    yield "ranges", (protocol, key.address, *ports)
        for real in service.reals:
            mode = service.mode_of(real)
            if mode == "nat":
                yield from _replies(key, real.address, real.port, ftp)
            elif mode == "tun":
                yield "tunnels", real.address
    for address, port in left:
        yield from _replies(key, address, port, ftp)


def _replies(key: Key, address: str, port: int, ftp: bool) -> Iterator[Entry]:
    """What lets a real server's replies pass."""
    yield "servers", address
    if ftp or not (port or key.last):
        yield "anyport", address
    if port or key.last:
        for protocol in PROTOCOLS.values() if key.mark else (PROTOCOLS[key.protocol],):
            if port:
                yield "reals", (protocol, address, port)
            else:
                yield "real_ranges", (protocol, address, *key.ports)


def steered(intent: Intent, by: str, kept: Collection[str], room: int) -> list[Service]:
    """The services of direct routing whose packets the kernel routes by a mark (docs/forwarding.md says why these).

    None for the VIPs that are `kept`: they are addresses of this machine, or its kernel has no rules; none that changes
    the MSS or looks for calls, none of several ports, and none where services by firewall mark may want the same
    packets whole. `by` is RunConfig.dr_by, `room` how many real servers can have a mark; services with more than are
    left go without.
    """
    found: list[Service] = []
    servers: set[str] = set()
    marked = {family(service.address) for service in intent.services if service.fwmark} if intent.direct else ()
    for service in intent.direct:
        fits = by == "route" or (by == "auto" and service.protocol == "tcp")
        fits = fits and not (service.mss or service.key.wide or family(service.address) in marked)
        fits = fits and not (service.persistence and service.persistence.engine)
        fits = fits and all(service.mode_of(real) == "dr" for real in service.reals)
        if fits and service.address not in kept:
            more = servers | {real.address for real in service.reals}
            if len(more) <= room:
                found.append(service)
                servers = more
    return found
