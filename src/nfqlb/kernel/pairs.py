"""Network devices whose other end is in another network namespace, where nothing stands in between: a packet that goes
out by one may as well begin at that end, and its way through both queues is saved (bpf_redirect_peer).

Strategy: only veth can; and only one that nobody looks at on the way out: no queueing discipline, no filter of tc, no
BPF program, no nftables chain. What cannot be found out counts as somebody who looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from nfqlb.kernel import bpf, netlink

EGRESS = 1  # NF_NETDEV_EGRESS


def paired(ip: IPRoute, devices: Iterable[Mapping[str, Any]], hooked: Set[int]) -> frozenset[int]:
    """The indexes of such devices, of those that `ip.get_links()` gave; tc's hook is on those that are `hooked`."""
    found = [int(link["index"]) for link in devices if _ends_elsewhere(link)]
    if not found or _hooked():
        return frozenset()
    return frozenset(index for index in found if not bpf.leaving(ip, index, hooked=index in hooked))


def _ends_elsewhere(link: Mapping[str, Any]) -> bool:
    about: dict[str, Any] = dict(link["attrs"])
    kind = dict(about["IFLA_LINKINFO"]["attrs"]).get("IFLA_INFO_KIND") if "IFLA_LINKINFO" in about else ""
    return kind == "veth" and "IFLA_LINK_NETNSID" in about and about.get("IFLA_QDISC") == "noqueue"


def _hooked() -> bool:
    """Whether a chain of nftables sees what leaves by a device, whichever it is."""
    try:
        return any(chain.hook == EGRESS for chain in netlink.base_chains(netlink.NETDEV))
    except OSError:  # no nftables
        return False
