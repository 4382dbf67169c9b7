"""The compiled peers as programs: `python -m bench.engine accept|return GSO-QUEUE PLAIN-QUEUE`, and `python -m
bench.engine percall QUEUE VIP REAL ...`.

Queues, buffers and settings are those of nfqlb's own worker (`nfqlb.worker`), so that nothing but the loop differs.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from netfilterqueue import COPY_NONE, NetfilterQueue, Packet

from bench.loops import Loop, PerPacket
from bench.road import COUNTED, ECHO, HTTP, SINK
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.queue import configure
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.kernel import netlink
from nfqlb.reference import MAXLEN
from nfqlb.testing import TCP, UDP, endpoint
from nfqlb.worker import widen

CONNECTIONS = 262_144
BUFFER = 32 << 20


def loop(kind: str, gso: str, plain: str) -> None:
    bound, queues = [], []
    for number, super_packets in ((int(gso), True), (int(plain), False)):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        widen(link)
        size = link.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        binding = NetfilterQueue(sockfd=link.fileno())
        binding.bind(number, Packet.drop, max_len=MAXLEN, mode=COPY_NONE, sock_len=size)
        configure(link.fileno(), number, gso=super_packets, maxlen=MAXLEN)
        bound.append((binding, link))
        queues.append((link.fileno(), number))
    print("ready", flush=True)
    Loop(queues, returning=kind == "return").run()


def percall(queue: str, vip: str, *reals: str) -> None:
    table = Table(-1, CONNECTIONS, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    datapath = Datapath(table)
    services = []
    for protocol, port in ((UDP, COUNTED), (UDP, ECHO), (TCP, HTTP), (TCP, SINK)):
        front, behind = endpoint(f"{vip}:{port}"), [endpoint(f"{real}:{port}") for real in reals]
        servers = [(table.slot(protocol, *front, *real), *real, 1, "nat") for real in behind]
        services.append(Service(protocol, *front, "rr", servers))
    datapath.publish(Snapshot(services))
    binding = NetfilterQueue()
    binding.bind(int(queue), PerPacket(datapath.worker()).handle, max_len=MAXLEN)
    with socket.socket(fileno=os.dup(binding.get_fd())) as link:
        netlink.widen(link, socket.SO_RCVBUF, BUFFER)
    print("ready", flush=True)
    binding.run()


if __name__ == "__main__":
    if sys.argv[1] == "percall":
        percall(*sys.argv[2:])
    else:
        loop(*sys.argv[1:])
