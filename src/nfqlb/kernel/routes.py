"""What would keep packets from arriving or from passing although all of ours is in place: found, not changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from itertools import islice

from nfqlb.kernel import neighbours
from nfqlb.kernel import netlink as nl
from nfqlb.kernel.plan import Plan

FORWARD = 2  # NF_INET_FORWARD
LOOKED_AT = 256  # addresses of a kind
TITLE = {4: "ip", 6: "ip6", nl.BOTH: "inet"}


def warnings(plan: Plan) -> list[str]:
    """A sentence each, with the fix where there is one; of very many addresses only some are looked at."""
    vips, servers = (some(members) for members in (plan.vips, plan.v4.servers | plan.v6.servers))
    routes = neighbours.routes({*vips, *servers})
    remote = [vip for vip in vips if not plan.shared and (vip not in routes or not routes[vip].local)]
    lost = [server for server in servers if server not in routes]
    return [
        *(
            f"the VIP {vip} is not an address of this machine: its packets arrive only if a router sends them here; "
            "else add it with --vip-dev"
            for vip in remote
        ),
        *(f"there is no route to the real server {server}" for server in lost),
        *(
            f"the chain {chain} of nftables table {title} {table} drops forwarded packets by default: "
            "it has to accept those to the real servers and from the VIPs"
            for title, table, chain in dropping(plan.firewall, plan.families)
        ),
    ]


def some(addresses: Set[str]) -> list[str]:
    """All of them, or as many as are looked at."""
    return sorted(islice(addresses, LOOKED_AT))


def dropping(firewall: str, families: Collection[int]) -> Iterator[tuple[str, str, str]]:
    """Chains of others (family, table, name) that drop what is forwarded unless told otherwise, and that our accept
    does not reach.
    """
    for family in (4, 6, nl.BOTH):
        for chain in nl.base_chains(family):
            ours = firewall == "accept" and chain[:2] == ("filter", "FORWARD") and family != nl.BOTH
            if chain.hook == FORWARD and chain.drops and not ours and family in (*families, nl.BOTH):
                yield TITLE[family], chain.table, chain.name
