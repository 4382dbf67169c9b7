"""client -- one director for each way -- real servers, straight cables.

client to-WAY 10.1.N.2 -- 10.1.N.1 uplink  director WAY  10.2.N0+M.1 to-sM -- 10.2.N0+M.2 from-WAY  server sM

Every way has a director of its own between the same client and the same servers, so nothing is set up or taken down
between two samples. The VIP is an address of the director. Real servers answer HTTP on port 80 (nginx), swallow what
comes to port 9001, repeat datagrams to port 9002, and count and drop those to port 9000 in front of everything.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench import share, stream
from netns.director import Director
from netns.host import CommandError, Host, Process
from netns.machines import Machines
from netns.web import Storage, WebServer

HTTP, COUNTED, SINK, ECHO = 80, 9000, 9001, 9002
SERVERS = (1, 2)
DROP = ["iptables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", str(COUNTED), "-j", "DROP"]
DROPPED = re.compile(r"^ *(\d+) +\d+ +DROP\b", re.MULTILINE)


class Reading(NamedTuple):
    """Packets that had arrived at a time, give or take half of what the reading took."""

    time: float
    took: float
    packets: int


class Way:
    """One director: its namespace, its addresses, where clients send to, and the processes that do the work."""

    def __init__(self, number: int, director: Director, sender: Host, servers: Sequence[Host]) -> None:
        self.number, self.director, self.sender, self.servers = number, director, sender, servers
        director.instance += f"-{number}"  # several are nfqlb
        self.device, self.client, self.vip = f"to-{director.name}", f"10.1.{number}.2", f"10.1.{number}.100"
        self.reals = [f"10.2.{number * 10 + server}.2" for server in SERVERS]
        self.targets = [self.vip] * len(self.reals)  # where a client's connections go, in turn
        self.pids: list[int] = []
        self.mac = ""


def cable(a: Host, device: str, address: str, b: Host, peer: str, other: str) -> None:
    a.ip(f"link add {device} type veth peer name {peer} netns {b.namespace}")
    a.ip(f"address add {address}/24 dev {device}", f"link set {device} up")
    b.ip(f"address add {other}/24 dev {peer}", f"link set {peer} up")


class Road(Machines):
    """`with Road("plain", "fast") as road`: ready to send, and nothing of it is left at the end."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        tag, folder = self.claim.tag, self.claim.folder
        self.client = Host(tag, "c", folder)
        pages = Storage(tag, "pages", folder)  # its folder alone
        self.servers = [WebServer(tag, f"s{number}", folder, pages) for number in SERVERS]
        self.ways = {
            name: Way(number, Director(tag, name, folder), self.client, self.servers)
            for number, name in enumerate(ways, 1)
        }
        self.hosts = [self.client, *self.servers, *(way.director for way in self.ways.values())]

    def build(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "add", host.namespace], check=True)
            host.ip("link set lo up")
            # ports are used again at once, and a server must not remember them from another way's connection
            host.sysctl("net.ipv4.tcp_max_tw_buckets=0", "net.ipv4.ip_local_port_range=10000 65535")
        for way in self.ways.values():
            self._build(way)
        for server in self.servers:
            server.run(DROP)
            server.start()
            assert server.nginx
            share.hasten(server.nginx.pid)
            self.start(server, "bench.stream", "sink", str(SINK), str(server.folder / "swallowed")).says("ready")
            self.start(server, "bench.pingpong", "echo", str(ECHO)).says("ready")

    def _build(self, way: Way) -> None:
        director = way.director
        director.sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        cable(self.client, way.device, way.client, director, "uplink", f"10.1.{way.number}.1")
        director.ip(f"address add {way.vip}/32 dev uplink")
        for number, server, address in zip(SERVERS, self.servers, way.reals, strict=True):
            gateway = f"{address[:-1]}1"
            cable(director, f"to-s{number}", gateway, server, f"from-{director.name}", address)
            server.ip(f"route add {way.client}/32 via {gateway}")
            self.client.ip(f"route add {address}/32 via 10.1.{way.number}.1")
        self.client.ip(f"route add {way.vip}/32 via 10.1.{way.number}.1")
        way.mac = director.run(["cat", "/sys/class/net/uplink/address"]).stdout.strip()

    def start(self, host: Host, module: str, *words: str) -> Process:
        """`python -m MODULE WORDS` on a host, before other programs."""
        process = host.spawn([sys.executable, "-m", module, *words], log=f"{module}.log")
        share.hasten(process.pid)
        return process

    def arrived(self) -> list[Reading]:
        """Packets that each server has counted and dropped."""
        return [self._arrived(server) for server in self.servers]

    def swallowed(self) -> int:
        """Bytes that the programs behind port 9001 have read."""
        return sum(stream.count(server.folder / "swallowed") for server in self.servers)

    def _arrived(self, server: Host) -> Reading:
        began = time.monotonic()
        listing = server.run(["iptables", "-t", "raw", "-vnxL", "PREROUTING"]).stdout
        took = time.monotonic() - began
        count = DROPPED.search(listing)
        if not count:
            raise CommandError(f"no rule that counts at {server.name}:\n{listing}")
        return Reading(began + took / 2, took, int(count[1]))
