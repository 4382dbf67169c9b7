"""Where packets go: the way to each real server that gets frames, that is reached by a mark, or that is this machine.

Strategy: the kernel is asked, and the data path is told what changed. The kernel routes to some real servers of direct
routing itself, by marks: which ones, and over which routes, is found out before a plan is made (`look`); after that
every slot that needs a way is aimed (`aim`), as often as something may have moved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nfqlb._core.snapshot import Hop
from nfqlb.control.compile import Compiler, steered
from nfqlb.errors import KernelError
from nfqlb.kernel import neighbours
from nfqlb.kernel.plan import Way
from nfqlb.model import Intent, Service, family

if TYPE_CHECKING:
    from nfqlb._core.datapath import Datapath

log = logging.getLogger("nfqlb")


class Aiming:
    """The ways of one director's packets; `by` is RunConfig.dr_by, `mask` the bits of marks, 0 where there are none.

    `marks` are those by which the kernel steers packets to real servers.
    """

    def __init__(self, datapath: Datapath, compiler: Compiler, by: str, mask: int, marks: Mapping[str, int]) -> None:
        self.mask, self.marks = mask, marks
        self._datapath, self._compiler, self._by = datapath, compiler, by
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
        direct = [service for service in intent.services if service.mode == "dr" and not service.fwmark]
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

    def _way(self, server: str) -> neighbours.Hop | None:
        """Over the kernel's own route, if it has one."""
        if server in self._routes and self._routes[server].local:
            return neighbours.Hop(0, 0, local=True)
        if server in self._routes and server in self.marks:
            return neighbours.Hop(0, 0, mark=self.marks[server], mask=self.mask)
        return None

    def aim(self, intent: Intent, patience: float = 0.0) -> None:
        """Send packets where the real servers are now; wait at most `patience` seconds for new ones. Of those that are
        reached by NAT only the ones on this machine need a way.

        Whom the kernel routes to is aimed at whether it answers or not: the kernel tells the client.
        """
        by_mark = {service.key for service in self.steered(intent)}
        modes = {
            (service.key, real.address, real.port): service.mode_of(real)
            for service in intent.services
            for real in service.reals
        }
        slots = {slot: (end[1], modes[end]) for end, slot in self._compiler.slots.items() if end in modes}
        if not slots and not self._ways:
            return
        wanted = {slot: address for slot, (address, mode) in slots.items() if mode != "nat"}
        end = time.monotonic() + patience
        while True:
            try:
                found, here = neighbours.hops(set(wanted.values())), neighbours.own()
            except OSError as error:
                raise KernelError(f"cannot look for real servers on the wire: {error.strerror or error}") from error
            lost = set(wanted.values()) - found.keys()
            if lost <= self._lost or time.monotonic() >= end:
                break
            time.sleep(0.01)
        ways = {slot: found[address] for slot, address in wanted.items() if address in found}
        ways |= {slot: neighbours.HERE for slot, (address, mode) in slots.items() if mode == "nat" and address in here}
        for (key, address, _), slot in self._compiler.slots.items():
            if key in by_mark:
                ways.pop(slot, None)
                if way := self._way(address):
                    ways[slot] = way
        for slot in self._ways.keys() | ways.keys():
            if self._ways.get(slot) != ways.get(slot):
                self._datapath.aim(slot, Hop(*ways[slot]) if slot in ways else None)
        for server in sorted(lost - self._lost):
            log.warning("real server %s: no route, or no answer to ARP or ND; its packets are dropped", server)
        for server in sorted(self._lost & found.keys()):
            log.info("real server %s: reached", server)
        self._ways, self._lost = ways, lost

    def probe(self) -> None:
        """Ask the servers that got packets since the last time whether they are there."""
        if not self._ways:
            return
        slots = self._datapath.drain().slots
        packets = {slot: slots[slot][1] for slot in self._ways}
        busy = {slot for slot, count in packets.items() if count > self._packets.get(slot, 0)}
        self._packets = packets
        neighbours.probe({address for (_, address, _), slot in self._compiler.slots.items() if slot in busy})
