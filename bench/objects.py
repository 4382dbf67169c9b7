"""Counts what is changed in this network namespace's nftables: `python -m bench.objects`.

Says `ready`, and after a line on its standard input how many messages of each kind came: the kernel sends one for each
element, set, rule, chain and table (net/netfilter/nf_tables_api.c, *_notify).
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import Counter

from nfqlb.kernel import netlink as nl

BUFFER = 64 << 20
SO_RCVBUFFORCE = 33


def main() -> None:
    seen: Counter[int] = Counter()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nl.NETLINK_NETFILTER) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        link.bind((0, 0))
        link.setblocking(False)
        link.setsockopt(nl.SOL_NETLINK, nl.ADD_MEMBERSHIP, nl.EVENTS)
        print("ready", flush=True)
        told = False
        while not told:
            told = sys.stdin in select.select([link, sys.stdin], [], [])[0]
            seen.update(kind & 0xFF for kind, *_ in nl.received(link))
    del seen[nl.NEWGEN]  # a step, not an object
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
