"""SYN/ACKs of a real server that announce no longer segments than fit into its tunnel: one nftables chain.

Strategy: in a tunnel the client's packets are the ones that grow, and what they hold is up to the MSS that the server
announces. Its SYN/ACK does not pass the director; so it is lowered where it leaves, and clients never send what would
not fit: nothing depends on ICMP errors that firewalls drop (RFC 4459, 3.2). The table is ours alone and made anew as a
whole. The kernel lowers and never raises (net/netfilter/nft_exthdr.c, nft_exthdr_tcp_set_eval).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import expressions as x
from nfqlb.kernel import netlink as nl
from nfqlb.kernel import nft, ruleset
from nfqlb.model import MSS_MIN, family

TABLE = "nfqlb-real-server"
CHAIN = "announce"
MANGLE = -150
TCP, TCP_FLAGS, SYN = 6, 13, b"\x02"
HEADERS = {4: 20 + 20 + 20, 6: 40 + 40 + 20}  # of the tunnel, IP and TCP


def fitting(number: int, mtu: int) -> int:
    """The longest segment of that IP version that a tunnel over links of that MTU holds."""
    return max(MSS_MIN, mtu - HEADERS[number])


def announce(vips: Sequence[str], mtu: int, mss: int | None) -> None:
    """Have SYN/ACKs of these VIPs announce at most `mss` bytes, by default what fits a tunnel over links of `mtu`."""
    messages = []
    for number in (4, 6):
        ours = [vip for vip in vips if family(vip) == number]
        if ours:
            messages += _table(number, ours, fitting(number, mtu) if mss is None else mss)
        elif attached(number):
            messages.append(ruleset.remove(TABLE, number))
    try:
        nl.batch(messages)
    except OSError as error:
        raise MissingError(
            f"the kernel takes no nftables rule that lowers the MSS ({error.strerror}): load the module nf_tables, "
            "or leave the MSS alone with --mss 0"
        ) from error


def leave() -> None:
    """Let SYN/ACKs announce what they like again."""
    try:
        nl.batch([ruleset.remove(TABLE, number) for number in (4, 6) if attached(number)])
    except OSError as error:
        raise KernelError(f"the nftables table {TABLE} cannot be removed: {error.strerror}") from error


def attached(number: int) -> bool:
    return TABLE in nft.tables(number)


def _table(number: int, vips: Sequence[str], mss: int) -> list[nl.Message]:
    create = nl.Message(nl.NEWTABLE, nl.CREATE, number, nl.text(1, TABLE))
    where = nl.nested(4, nl.number(1, ruleset.OUTPUT), nl.number(2, MANGLE))
    chain = nl.text(1, TABLE) + nl.text(3, CHAIN) + where + nl.number(5, x.ACCEPT) + nl.text(7, "filter")
    return [
        create,
        ruleset.remove(TABLE, number),
        create,
        nl.Message(nl.NEWCHAIN, nl.CREATE, number, chain),
        *(ruleset.rule(TABLE, CHAIN, number, _rule(number, vip, mss)) for vip in vips),
    ]


def _rule(number: int, vip: str, mss: int) -> list[bytes]:
    return [
        x.meta_protocol(),
        x.compare(x.EQUAL, bytes([TCP])),
        x.payload(x.NETWORK, ruleset.SOURCE[number][0], ruleset.SIZE[number]),
        x.compare(x.EQUAL, ipaddress.ip_address(vip).packed),
        x.payload(x.TRANSPORT, TCP_FLAGS, 1),
        x.masked(SYN),
        x.compare(x.EQUAL, SYN),
        x.data(mss.to_bytes(2, "big")),
        x.write_tcp_option(2, 2, 2),
    ]
