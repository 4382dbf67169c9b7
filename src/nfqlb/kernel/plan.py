"""What the kernel should hold for one director, as a frozen value.

Strategy: control compiles the intent into a Plan, the parts of `Kernel` make the kernel equal to it. A plan names no
table, chain or set: those follow from the director's name. A family that no service uses is left alone altogether. Of
plans that follow each other the large sets are pools: what did not change is shared, and found at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

from nfqlb.kernel.pool import Pool

Endpoint = tuple[int, str, int]  # protocol number, address, port
Span = tuple[int, str, int, int]  # protocol number, address, first and last port
NONE: Pool[str] = Pool()


class Way(NamedTuple):
    """The route to a real server that packets go by a mark: over which interface (index), to which next hop."""

    server: str
    interface: int
    gateway: str
    mtu: int = 0  # of the route; 0: the interface's


class Members(NamedTuple):
    """The members of one family's sets; the spans of a set do not overlap."""

    services: Set[Endpoint] = Pool()
    reals: Set[Endpoint] = Pool()  # those whose replies pass
    vips: Set[str] = NONE
    servers: Set[str] = NONE  # the addresses of those whose replies pass
    tunnels: Set[str] = NONE  # real servers at the other end of a tunnel
    heads: Set[Endpoint] = Pool()  # the services whose packets go to the queues of class head
    ranges: Set[Span] = frozenset()  # services with several ports
    real_ranges: Set[Span] = frozenset()  # real servers that answer from these
    anyport: Set[str] = NONE  # real servers that answer from whichever port a client asked
    marks: Set[int] = Pool()  # services by netfilter mark

    @property
    def kinds(self) -> frozenset[str]:
        """Which of the less common sets are there: rules that would match nothing are left out."""
        return frozenset(name for name in self._fields[6:] if getattr(self, name))

    @property
    def learns(self) -> bool:
        """Whether clients are remembered: nothing else tells whose packets these are on their way back."""
        return bool(self.anyport or self.marks)

    @property
    def requests(self) -> tuple[object, ...]:
        """All that makes packets of clients come to the queues."""
        return self.services, self.ranges, self.marks

    def with_(self, other: Members) -> Members:
        """These and those of another; a packet that is whole goes either way, so heads are what both have."""
        if self is other:
            return self
        return Members(
            self.services | other.services,
            self.reals | other.reals,
            self.vips | other.vips,
            self.servers | other.servers,
            self.tunnels | other.tunnels,
            self.heads & other.heads,
            disjoint(self.ranges | other.ranges),
            disjoint(self.real_ranges | other.real_ranges),
            self.anyport | other.anyport,
            self.marks | other.marks,
        )


NOTHING = Members()


@dataclass(frozen=True)
class Plan:
    """What the kernel should hold, for one director."""

    name: str
    v4: Members = NOTHING
    v6: Members = NOTHING
    gso: tuple[int, ...] = (0,)  # queue numbers of class gso (TCP), one per worker
    plain: tuple[int, ...] = (1,)  # queue numbers of class plain (UDP, ICMP, later fragments), one per worker
    diverter: str = "auto"  # "nft", "iptables", or "auto": nft where it loads
    firewall: str = "accept"  # or "leave"
    vip_dev: str | None = None
    withheld: frozenset[str] = frozenset()  # VIPs that are not to be there now
    shared: bool = False  # with other directors: the VIPs may be on one of them
    idle: int = 900  # seconds after which a client of services without a port is forgotten
    head: tuple[int, ...] = (2,)  # queue numbers of class head (payload stays in the kernel), one per worker
    syn: tuple[int, ...] = (3,)  # queue numbers of class syn (the first packet of a TCP connection), one per worker
    bypass: bool = False  # what finds no listener passes, as if it had not been diverted
    ways: frozenset[Way] = frozenset()
    mask: int = 0  # the bits of marks that lead over these ways; 0: none ever do

    @cached_property
    def families(self) -> tuple[int, ...]:
        """The families in use: of 4 and 6, those that have a service."""
        return tuple(number for number, members in ((4, self.v4), (6, self.v6)) if any(members.requests))

    @cached_property
    def vips(self) -> Set[str]:
        return self.v4.vips | self.v6.vips

    @property
    def held(self) -> Set[str]:
        """The VIPs that the device is to have."""
        return self.vips - self.withheld

    @property
    def requests(self) -> tuple[object, ...]:
        """All that decides which packets of clients come to which class of queues."""
        return *self.v4.requests, *self.v6.requests, self.v4.heads, self.v6.heads

    def with_(self, other: Plan) -> Self:
        """This plan, with the services and real servers of another as well."""
        return replace(self, v4=self.v4.with_(other.v4), v6=self.v6.with_(other.v6))

    @property
    def layout(self) -> tuple[object, ...]:
        """What a diverter's rules depend on, and not its sets."""
        return self.gso, self.plain, self.head, self.syn, self.bypass, self.mask != 0

    def members(self, number: int) -> Members:
        """What belongs to family `number`; nothing where no service uses it."""
        if number not in self.families:
            return NOTHING
        return self.v4 if number == 4 else self.v6


def disjoint(spans: Iterable[Span]) -> frozenset[Span]:
    """The same ports in as few spans as can be."""
    found: list[Span] = []
    for protocol, address, first, last in sorted(spans):
        if found and found[-1][:2] == (protocol, address) and first <= found[-1][3] + 1:
            found[-1] = (*found[-1][:3], max(last, found[-1][3]))
        else:
            found.append((protocol, address, first, last))
    return frozenset(found)


def marks(numbers: Mapping[str, int], mask: int) -> dict[str, int]:
    """Each real server's mark, by their numbers."""
    return {server: number * (mask & -mask) for server, number in numbers.items()}
