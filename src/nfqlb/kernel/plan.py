"""What the kernel should hold for one director, as a frozen value.

Strategy: control compiles the intent into a Plan, the parts of `Kernel` make the kernel equal to it. A plan names no
table, chain or set: those follow from the director's name. A family that no service uses is left alone altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self, TypeVar

from nfqlb.model import family

Endpoint = tuple[int, str, int]  # protocol number, address, port
Span = tuple[int, str, int, int]  # protocol number, address, first and last port
T = TypeVar("T")


class Way(NamedTuple):
    """The route to a real server that packets go by a mark: over which interface (index), to which next hop."""

    server: str
    interface: int
    gateway: str
    mtu: int = 0  # of the route; 0: the interface's


class Members(NamedTuple):
    """The members of one family's sets; the spans of a set do not overlap."""

    services: frozenset[Endpoint]
    reals: frozenset[Endpoint]
    vips: frozenset[str]
    servers: frozenset[str]
    tunnels: frozenset[str]
    heads: frozenset[Endpoint]
    ranges: frozenset[Span]
    real_ranges: frozenset[Span]
    anyport: frozenset[str]
    marks: frozenset[int]

    @property
    def kinds(self) -> frozenset[str]:
        """Which of the less common sets are there: rules that would match nothing are left out."""
        return frozenset(name for name in self._fields[6:] if getattr(self, name))

    @property
    def learns(self) -> bool:
        """Whether clients are remembered: nothing else tells whose packets these are on their way back."""
        return bool(self.anyport or self.marks)


@dataclass(frozen=True)
class Plan:
    """What the kernel should hold, for one director."""

    name: str
    services: frozenset[Endpoint] = frozenset()
    reals: frozenset[Endpoint] = frozenset()  # those whose replies pass
    gso: tuple[int, ...] = (0,)  # queue numbers of class gso (TCP), one per worker
    plain: tuple[int, ...] = (1,)  # queue numbers of class plain (UDP, ICMP, later fragments), one per worker
    diverter: str = "auto"  # "nft", "iptables", or "auto": nft where it loads
    firewall: str = "accept"  # or "leave"
    vip_dev: str | None = None
    tunnels: frozenset[str] = frozenset()  # real servers at the other end of a tunnel
    ranges: frozenset[Span] = frozenset()  # services with several ports
    real_ranges: frozenset[Span] = frozenset()  # real servers that answer from these
    anyport: frozenset[str] = frozenset()  # real servers that answer from whichever port a client asked
    marks: frozenset[tuple[int, int]] = frozenset()  # services by family and netfilter mark
    idle: int = 900  # seconds after which a client of these is forgotten
    head: tuple[int, ...] = (2,)  # queue numbers of class head (payload stays in the kernel), one per worker
    heads: frozenset[Endpoint] = frozenset()  # the services whose packets go there
    ways: frozenset[Way] = frozenset()
    mask: int = 0  # the bits of marks that lead over these ways; 0: none ever do

    @cached_property
    def families(self) -> tuple[int, ...]:
        """The families in use: of 4 and 6, those that have a service."""
        return tuple(sorted({family(vip) for vip in self.vips} | {number for number, _ in self.marks}))

    @cached_property
    def vips(self) -> frozenset[str]:
        return frozenset(map(_address, (*self.services, *self.ranges)))

    @property
    def requests(self) -> tuple[object, ...]:
        """All that makes packets of clients come to the queues."""
        return self.services, self.ranges, self.marks

    def with_(self, other: Plan) -> Self:
        """This plan, with the services and real servers of another as well."""
        names = "services", "reals", "tunnels", "ranges", "real_ranges", "anyport", "marks"
        return replace(self, **{name: getattr(self, name) | getattr(other, name) for name in names})

    @property
    def layout(self) -> tuple[object, ...]:
        """What a diverter's rules depend on, and not its sets."""
        return self.gso, self.plain, self.head, self.mask != 0

    def members(self, number: int) -> Members:
        """What belongs to family `number`; nothing where no service uses it."""
        if number not in self.families:
            return Members(*[frozenset()] * len(Members._fields))

        services, reals = _of(number, self.services, _address), _of(number, self.reals, _address)
        ranges, real_ranges = _of(number, self.ranges, _address), _of(number, self.real_ranges, _address)
        tunnels, anyport = (_of(number, addresses, str) for addresses in (self.tunnels, self.anyport))
        return Members(
            services,
            reals,
            frozenset(map(_address, (*services, *ranges))),
            frozenset(map(_address, (*reals, *real_ranges))) | anyport,
            tunnels,
            _of(number, self.heads, _address),
            disjoint(ranges),
            disjoint(real_ranges),
            anyport,
            frozenset(mark for version, mark in self.marks if version == number),
        )


def _address(entry: tuple[int | str, ...]) -> str:
    """Of an endpoint or a span."""
    return str(entry[1])


def _of(number: int, members: Iterable[T], address: Callable[[T], str]) -> frozenset[T]:
    """Those of one family."""
    return frozenset(member for member in members if family(address(member)) == number)


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


def nothing(name: str) -> Plan:
    """The plan of a director that is gone."""
    return Plan(name)
