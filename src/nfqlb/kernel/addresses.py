"""The VIPs on the interface that `vip_dev` names.

Strategy: a VIP is added as a host address without a prefix route, ready at once (no duplicate address detection: the
VIP may just have left another machine), and announced. One of IPv6 is deprecated from the start (RFC 4862, 5.5.4): it
works as any other, but as the longest prefix it would be the source of what this machine itself sends. Only what we
added is removed again; an address that was there already stays the operator's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Set

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError
from nfqlb.kernel.announce import announce
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.saved import Saved
from nfqlb.model import family

NONE: tuple[None, frozenset[str]] = (None, frozenset())
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
FOREVER = 0xFFFFFFFF  # seconds


class Addresses:
    """The addresses that this director added."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._applied: tuple[str | None, Set[str]] = NONE

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        wanted = (plan.vip_dev, plan.held) if plan.vip_dev else NONE
        if wanted == self._applied and not afresh:
            return
        if plan.vip_dev:
            with IPRoute() as ip:
                index = index_of(ip, plan.vip_dev)
                missing = sorted(plan.held - present(ip, index))
                pairs = [[plan.vip_dev, vip] for vip in sorted(plan.held)]
                shared = self._saved.others().addresses
                ours = [pair for pair in pairs if pair[1] in missing or pair in shared]
                new = [pair for pair in ours if pair not in self._saved.addresses]
                if new:
                    self._saved.addresses += new
                    self._saved.write()
                for vip in missing:
                    add(ip, index, plan.vip_dev, vip)
            announce(plan.vip_dev, missing)
        self._applied = wanted

    def prune(self, plan: Plan) -> None:
        gone = [pair for pair in self._saved.addresses if pair[0] != plan.vip_dev or pair[1] not in plan.held]
        if not gone:
            return
        shared = self._saved.others().addresses
        with IPRoute() as ip:
            for device, vip in (pair for pair in gone if pair not in shared):
                remove(ip, device, vip)
        self._saved.addresses = [pair for pair in self._saved.addresses if pair not in gone]
        self._saved.write()
        self._applied = NONE

    def check(self, plan: Plan) -> list[str]:
        if not plan.vip_dev or not plan.held:
            return []
        with IPRoute() as ip:
            missing = plan.held - present(ip, index_of(ip, plan.vip_dev))
        return [f"the address {vip} was removed from {plan.vip_dev}" for vip in sorted(missing)]


def interface_exists(device: str) -> bool:
    with IPRoute() as ip:
        return bool(ip.link_lookup(ifname=device))


def index_of(ip: IPRoute, device: str) -> int:
    found = ip.link_lookup(ifname=device)
    if not found:
        raise KernelError(f"the interface {device}, which should hold the VIPs, is gone")
    return int(found[0])


def present(ip: IPRoute, index: int) -> set[str]:
    return {message.get("local") or message.get("address") for message in ip.get_addr(index=index)}


def add(ip: IPRoute, index: int, device: str, vip: str) -> None:
    wide = family(vip) == 6
    flags = IFA_F_NOPREFIXROUTE | (IFA_F_NODAD if wide else 0)
    unasked = {"preferred": 0, "valid": FOREVER} if wide else {}
    try:
        ip.addr("add", index=index, address=vip, prefixlen=128 if wide else 32, flags=flags, **unasked)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise KernelError(f"the address {vip} cannot be added to {device}: {error.args[-1]}") from error


def remove(ip: IPRoute, device: str, vip: str) -> None:
    found: Iterable[int] = ip.link_lookup(ifname=device)
    for index in found:
        try:
            ip.addr("delete", index=index, address=vip, prefixlen=128 if family(vip) == 6 else 32)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:
                raise KernelError(f"the address {vip} cannot be removed from {device}: {error.args[-1]}") from error
