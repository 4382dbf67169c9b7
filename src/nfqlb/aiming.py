"""Where packets go: the way to each real server that gets frames, that is reached by a mark, or that is this machine.

Strategy: the kernel is asked, and the data path is told what changed. The kernel routes to some real servers of direct
routing itself, by marks: which ones, and over which routes, is found out before a plan is made (`look`); after that
every slot that needs a way is aimed (`aim`), as often as something may have moved. Which slots these are is kept by
service: a change costs what changed, and real servers of NAT cost nothing, unless they are this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nfqlb._core.snapshot import Hop
from nfqlb.control.compile import Compiler
from nfqlb.control.planner import steered
from nfqlb.control.registry import differing
from nfqlb.errors import KernelError
from nfqlb.feed import Feed
from nfqlb.kernel import neighbours
from nfqlb.kernel.plan import Way
from nfqlb.model import Intent, Key, Service, family

if TYPE_CHECKING:
    from nfqlb._core.datapath import Datapath

log = logging.getLogger("nfqlb")

ROUTES_SECONDS = 1.0  # between two looks at all routes of NAT, however often some change


class Aiming:
    """The ways of one director's packets; `by` is RunConfig.dr_by, `mask` the bits of marks, 0 where there are none.

    `marks` are those by which the kernel steers packets to real servers; with `leads` it forwards by itself what is
    established. This machine's addresses are asked for when they are `stale`: always, unless somebody `listens` for
    changes of them. What leads asks for the routes of NAT again when they were `rerouted`, but once in ROUTES_SECONDS.
    """

    def __init__(
        self,
        datapath: Datapath,
        compiler: Compiler,
        by: str,
        mask: int,
        marks: Mapping[str, int],
        feed: Feed,
        *,
        leads: bool,
    ) -> None:
        self.mask, self.marks = mask, marks
        self._datapath, self._compiler, self._by, self._feed = datapath, compiler, by, feed
        self._leads = leads
        self._hops: Mapping[int, neighbours.Hop] = {}  # by slot: where flows leave that the kernel forwards
        self.stale, self.listens, self.rerouted = True, False, False
        self._asked = 0.0  # when all routes of NAT were
        self._own: set[str] = set()  # this machine's addresses
        self._intent = Intent()  # the last that was aimed for
        self._sent: dict[Key, dict[int, str]] = {}  # by service: slots whose packets are not NAT's, and their addresses
        self._here: dict[Key, list[int]] = {}  # by service: slots of NAT that are this machine
        self._natted: dict[Key, dict[int, str]] = {}  # by service: slots of NAT that are elsewhere, and their addresses
        self._narrow: dict[Key, dict[int, neighbours.Hop]] = {}  # by service: slots of NAT whose route has an MTU
        self._wanted: dict[int, str] = {}  # all that is in _sent
        self._ways: dict[int, neighbours.Hop] = {}  # by slot
        self._lost: set[str] = set()  # real servers to which there is no way
        self._kept: frozenset[str] = frozenset()  # VIPs of direct routing that marks do not work for
        self._routes: Mapping[str, neighbours.Route] = {}  # to the real servers that packets are steered to
        self._packets: dict[int, int] = {}  # by slot, at the last probe

    def steered(self, intent: Intent) -> list[Service]:
        """The services whose packets the kernel routes by marks."""
        return steered(intent, self._by, self._kept, self.mask // max(1, self.mask & -self.mask))

    def ways(self) -> list[Way]:
        """The routes that the kernel needs for that."""
        return [
            Way(server, route.interface, route.gateway, route.mtu)
            for server, route in self._routes.items()
            if not route.local
        ]

    def look(self, intent: Intent, vip_dev: str) -> bool:
        """Find out to which real servers of direct routing the kernel is to route, and how; whether that is new. The
        VIPs are this machine's where there is a `vip_dev`.
        """
        before = self._kept, self._routes
        direct = [service for service in intent.direct if not service.fwmark]
        vips = {service.address for service in direct} if self.mask else set()
        try:
            ruled, found = (neighbours.ruled(), neighbours.routes(vips)) if vips else (set(), {})
            local = vips if vip_dev else {vip for vip, route in found.items() if route.local}
            self._kept = frozenset(vip for vip in vips if vip in local or family(vip) not in ruled)
            servers = {real.address for service in self.steered(intent) for real in service.reals}
            self._routes = neighbours.routes(servers) if servers else {}
        except OSError as error:
            raise KernelError(f"cannot ask for routes: {error.strerror or error}") from error
        return (self._kept, self._routes) != before

    def aim(self, intent: Intent, patience: float = 0.0) -> None:
        """Send packets where the real servers are now; wait at most `patience` seconds for new ones. Of those that are
        reached by NAT only the ones on this machine need a way. It is the last intent that was compiled.

        Whom the kernel routes to is aimed at whether it answers or not: the kernel tells the client.
        """
        end = time.monotonic() + patience
        try:
            self._sort(intent)
            wanted = {slot: address for ends in self._sent.values() for slot, address in ends.items()}
            servers = set(wanted.values())
            found = neighbours.hops(servers) if servers else {}
            while not servers - found.keys() <= self._lost and time.monotonic() < end:
                time.sleep(0.01)
                found = neighbours.hops(servers)
        except OSError as error:
            raise KernelError(f"cannot look for real servers on the wire: {error.strerror or error}") from error
        lost = servers - found.keys()
        ways = {slot: found[address] for slot, address in wanted.items() if address in found}
        ways |= {slot: neighbours.HERE for slots in self._here.values() for slot in slots}
        for service in self.steered(intent):
            for slot, address in self._sent.get(service.key, {}).items():
                ways.pop(slot, None)
                if way := self._way(address):
                    ways[slot] = way
        for slot in self._ways.keys() | ways.keys():
            if self._ways.get(slot) != ways.get(slot):
                self._datapath.aim(slot, Hop(*ways[slot]) if slot in ways else None)
        if self._leads:
            hops = {slot: found[address] for slot, address in wanted.items() if address in found}
            for slots in self._narrow.values():
                hops |= slots
            self._lead(hops)
        for server in sorted(lost - self._lost):
            log.warning("real server %s: no route, or no answer to ARP or ND; its packets are dropped", server)
            self._feed.say("real", f"{server} is not reached")
        for server in sorted(self._lost & found.keys()):
            log.info("real server %s: reached", server)
            self._feed.say("real", f"{server} is reached again")
        self._ways, self._wanted, self._lost = ways, wanted, lost

    def _lead(self, hops: Mapping[int, neighbours.Hop]) -> None:
        """Flows that the kernel forwards leave by these next hops, whatever brings the engine's packets there."""
        changed = {slot for slot in self._hops.keys() | hops.keys() if self._hops.get(slot) != hops.get(slot)}
        for slot in changed:
            self._datapath.lead(slot, Hop(*hops[slot]) if slot in hops else None)
        self._hops = hops

    def probe(self) -> None:
        """Ask the servers that got packets since the last time whether they are there."""
        if not self._wanted:
            return
        packets = {slot: row[1] for slot, row in self._datapath.counted(self._wanted).items()}
        busy = {self._wanted[slot] for slot, count in packets.items() if count > self._packets.get(slot, 0)}
        self._packets = packets
        neighbours.probe(busy)

    def _sort(self, intent: Intent) -> None:
        """Which slots need a way: of services that changed, and of all when this machine's addresses did."""
        keys: Iterable[Key] = differing(self._intent, intent)
        if self.stale:
            self.stale = not self.listens  # before: of one that changes meanwhile we hear
            try:
                own = neighbours.own()
            except BaseException:
                self.stale = True
                raise
            if own != self._own:
                self._own, keys = own, {**self._intent.by_key, **intent.by_key}
        keys = list(keys)
        for key in keys:
            self._sent.pop(key, None)
            self._here.pop(key, None)
            self._natted.pop(key, None)
            service, slots = intent.by_key.get(key), self._compiler.slots.services.get(key, {})
            for real in service.reals if service else ():
                slot = slots[real.address, real.port]
                if service and service.mode_of(real) != "nat":
                    self._sent.setdefault(key, {})[slot] = real.address
                elif real.address in self._own:
                    self._here.setdefault(key, []).append(slot)
                else:
                    self._natted.setdefault(key, {})[slot] = real.address
        self._intent = intent
        if self._leads:
            if (self.rerouted or not self.listens) and time.monotonic() >= self._asked + ROUTES_SECONDS:
                self.rerouted, self._asked = False, time.monotonic()
                keys = [*keys, *self._natted]
            self._measure(keys)

    def _measure(self, keys: Iterable[Key]) -> None:
        """Find out which real servers of these services have a route with an MTU, of those that NAT reaches."""
        addresses = {address for key in keys for address in self._natted.get(key, {}).values()}
        routes = neighbours.routes(addresses) if addresses else {}
        for key in keys:
            self._narrow[key] = {
                slot: neighbours.Hop(routes[address].interface, routes[address].mtu)
                for slot, address in self._natted.get(key, {}).items()
                if address in routes and routes[address].mtu
            }
            if not self._narrow[key]:
                del self._narrow[key]

    def _way(self, server: str) -> neighbours.Hop | None:
        """Over the kernel's own route, if it has one."""
        if server in self._routes and self._routes[server].local:
            return neighbours.HERE
        if server in self._routes and server in self.marks:
            return neighbours.Hop(0, 0, mark=self.marks[server], mask=self.mask)
        return None
