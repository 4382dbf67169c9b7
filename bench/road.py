"""client -- one director for each way -- real servers, straight cables, and the packets that arrive at the servers.

client to-WAY 10.1.N.2 -- 10.1.N.1 uplink  director WAY  10.2.N0+M.1 to-sM -- 10.2.N0+M.2 from-WAY  server sM

Every way has a director of its own between the same client and the same servers, so nothing is set up or taken down
between two samples. The VIP is an address of the director. A rule in front of everything drops and counts at the
servers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import NamedTuple

from netns import CommandError, Host, Process
from netns.director import Director
from netns.machines import Machines

PORT = 9000
SERVERS = (1, 2)
LONGEST = 20.0  # seconds, should nobody end the sender
DROP = ["iptables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", str(PORT), "-j", "DROP"]
COUNTED = re.compile(r"^ *(\d+) +\d+ +DROP\b", re.MULTILINE)


class Reading(NamedTuple):
    """Packets that had arrived at a time, give or take half of what the reading took."""

    time: float
    took: float
    packets: int


class Way:
    """One director: its namespace, its addresses, and what is to be known to send through it."""

    def __init__(self, number: int, director: Director) -> None:
        self.number, self.director = number, director
        self.device, self.client, self.vip = f"to-{director.name}", f"10.1.{number}.2", f"10.1.{number}.100"
        self.reals = [f"10.2.{number * 10 + server}.2" for server in SERVERS]
        self.mac = ""


class Road(Machines):
    """`with Road("plain", "fast") as road`: ready to send, and nothing of it is left at the end."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        tag, folder = self.claim.tag, self.claim.folder
        self.client = Host(tag, "c", folder)
        self.servers = [Host(tag, f"s{number}", folder) for number in SERVERS]
        self.ways = {name: Way(number, Director(tag, name, folder)) for number, name in enumerate(ways, 1)}
        self.hosts = [self.client, *self.servers, *(way.director for way in self.ways.values())]

    def build(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "add", host.namespace], check=True)
            host.ip("link set lo up")
        for way in self.ways.values():
            self._build(way)
        for server in self.servers:
            server.run(DROP)

    def _build(self, way: Way) -> None:
        director = way.director
        director.sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        self._cable(self.client, way.device, way.client, director, "uplink", f"10.1.{way.number}.1")
        director.ip(f"address add {way.vip}/32 dev uplink")
        for number, server, address in zip(SERVERS, self.servers, way.reals, strict=True):
            gateway = f"{address[:-1]}1"
            self._cable(director, f"to-s{number}", gateway, server, f"from-{director.name}", address)
            server.ip(f"route add {way.client}/32 via {gateway}")
        way.mac = director.run(["cat", "/sys/class/net/uplink/address"]).stdout.strip()

    def _cable(self, a: Host, device: str, address: str, b: Host, peer: str, other: str) -> None:
        a.ip(f"link add {device} type veth peer name {peer} netns {b.namespace}")
        a.ip(f"address add {address}/24 dev {device}", f"link set {device} up")
        b.ip(f"address add {other}/24 dev {peer}", f"link set {peer} up")

    def blast(self, name: str, destinations: list[str]) -> Process:
        """Start sending through a way; returns when the first packets are out. SIGTERM ends it."""
        way = self.ways[name]
        words = [way.device, way.mac, way.client, ",".join(destinations), str(PORT), str(LONGEST)]
        process = self.client.spawn([sys.executable, "-m", "bench.blast", *words], log="blast.log")
        process.says("going")
        return process

    def rate(self, seconds: float) -> tuple[float, float]:
        """Packets per second that arrive at the servers over so long a time from now on, and the share of that time
        that reading the counters took: by so much the rate is uncertain.
        """
        before = [self._arrived(server) for server in self.servers]
        time.sleep(seconds)
        after = [self._arrived(server) for server in self.servers]
        rate = blur = 0.0
        for first, last in zip(before, after, strict=True):
            rate += (last.packets - first.packets) / (last.time - first.time)
            blur = max(blur, (last.took + first.took) / 2 / (last.time - first.time))
        return rate, blur

    def _arrived(self, server: Host) -> Reading:
        began = time.monotonic()
        listing = server.run(["iptables", "-t", "raw", "-vnxL", "PREROUTING"]).stdout
        took = time.monotonic() - began
        count = COUNTED.search(listing)
        if not count:
            raise CommandError(f"no rule that counts at {server.name}:\n{listing}")
        return Reading(began + took / 2, took, int(count[1]))
