"""What the kernel should hold for one director, as a frozen value.

Strategy: control compiles the intent into a Plan, the parts of `Kernel` make the kernel equal to it. A plan names no
table, chain or set: those follow from the director's name. A family that no service uses is left alone altogether.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nfqlb.model import family

Endpoint = tuple[int, str, int]  # protocol number, address, port


class Members(NamedTuple):
    """The members of one family's sets."""

    services: frozenset[Endpoint]
    reals: frozenset[Endpoint]
    vips: frozenset[str]
    servers: frozenset[str]
    tunnels: frozenset[str]


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

    @cached_property
    def families(self) -> tuple[int, ...]:
        """The families in use: of 4 and 6, those that have a service."""
        return tuple(sorted({family(address) for _, address, _ in self.services}))

    @cached_property
    def vips(self) -> frozenset[str]:
        return frozenset(address for _, address, _ in self.services)

    def members(self, number: int) -> Members:
        """What belongs to family `number`; nothing where no service uses it."""
        if number not in self.families:
            return Members(frozenset(), frozenset(), frozenset(), frozenset(), frozenset())
        services = frozenset(entry for entry in self.services if family(entry[1]) == number)
        reals = frozenset(entry for entry in self.reals if family(entry[1]) == number)
        tunnels = frozenset(address for address in self.tunnels if family(address) == number)
        vips, servers = (frozenset(entry[1] for entry in entries) for entries in (services, reals))
        return Members(services, reals, vips, servers, tunnels)


def nothing(name: str) -> Plan:
    """The plan of a director that is gone."""
    return Plan(name)
