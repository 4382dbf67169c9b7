"""A kernel's sync daemon and ours tell each other of connections, and each goes on with those of the other."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence, Set

import pytest

from netns import load
from netns.director import Director
from netns.host import Host, until
from netns.pair import GATEWAY, Pair
from netns.wiring import endpoint
from tests import sizes

STICKY = 8  # port whose clients keep their server
HELD = 4  # connections of each port and family
SIZE = 4 * sizes.MIB  # of a download
SECONDS = 90.0
APART = 10  # seconds that two timers of a connection may differ by
pytestmark = pytest.mark.timeout(800)
LINE = re.compile(r"(?P<what>\S+) +(?P<minutes>\d+):(?P<seconds>\d+) +(?P<rest>\S.*)")
# four datagrams from one port: the third is the one that is told
DATAGRAMS = """
import socket, sys
address, port, source = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.bind(("", source))
    sender.connect((address, port))
    sender.settimeout(10)
    for _ in range(4):
        sender.send(b"x")
        sender.recv(100)
"""


class Shared(Pair):
    """The first director is the kernel, the second one nfqlb; whoever of them has the VIPs serves."""

    families: Sequence[int]
    version: int

    def start_both(self, version: int) -> None:
        self.version, self.families = version, (4, 6) if version == 1 else (4,)
        kernel = self.director
        for server in self.servers:
            server.start_echo(STICKY)
        kernel.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", f"net.ipv4.vs.sync_version={version}")
        for family in self.families:
            self.virtual(family, 80)
            self.virtual(family, 7)
            self.virtual(family, 7, "-u")
            self.virtual(family, STICKY, "-t", "-p", "300")
        text = f'[sync]\ninterface = "eth0"\nid = 7\nversion = {version}\n'
        text += self.services(80) + self.services(7) + self.services(7, protocol="udp")
        text += self.services(STICKY, more="persistence.timeout = 300\n")
        file = self.second.folder / "director.toml"
        file.write_text(text)
        self.second.nfqlb("--diverter", "iptables", "--config", str(file), timeout=120)

    def virtual(self, family: int, port: int, protocol: str = "-t", *more: str) -> None:
        """A service of the kernel."""
        service = self.service(port, family)
        self.director.run(["ipvsadm", "-A", protocol, service, "-s", "rr", *more])
        for server in self.servers:
            real = endpoint(server.address(family), port)
            self.director.run(["ipvsadm", "-a", protocol, service, "-r", real, "-m"])

    def speaks(self, role: str) -> None:
        """The kernel becomes master or backup."""
        for before in ("master", "backup"):
            self.director.run(["ipvsadm", "--stop-daemon", before], check=False)
        self.director.run(["ipvsadm", "--start-daemon", role, "--mcast-interface", "eth0", "--syncid", "7"])

    def move(self, to: Director) -> None:
        """VIPs and the servers' gateway; and the kernel tells of connections, or is told."""
        self.speaks("master" if to is self.director else "backup")
        for director in self.directors:
            if director is to:
                continue
            for pair in (self.vips, GATEWAY):
                for address in (f"{pair.v4}/32", f"{pair.v6}/128"):
                    director.run(["ip", "address", "del", address, "dev", "eth0"], check=False)
        for pair in (self.vips, GATEWAY):
            to.ip(f"address replace {pair.v4}/32 dev eth0", f"address replace {pair.v6}/128 dev eth0 nodad")
        for host in (self.router, *self.servers):
            host.ip("neigh flush dev eth0")


def listed(said: str) -> dict[str, int]:
    """What `ipvsadm -Lnc` says of connections and templates, without states that pass: the seconds they have left."""
    found = (LINE.fullmatch(line.strip()) for line in said.splitlines())
    return {
        re.sub(r" +", " ", f"{one['what']} {one['rest']}"): int(one["minutes"]) * 60 + int(one["seconds"])
        for one in found
        if one and not re.search("SYN_RECV|WAIT|CLOSE", one["rest"])
    }


def agree(net: Shared, count: int, before: Set[str]) -> Set[str]:
    """Both have the same connections: ends, server and state. Those that are new, and silent since they were told, end
    at the same time, too; version 0 does not say when a template ends.
    """

    passing = re.compile(r":80 " if net.version else r":80 |ASSURED")

    def tables() -> tuple[dict[str, int], dict[str, int]]:
        kernel, ours = net.director.run(["ipvsadm", "-Lnc"]), net.second.cli("ipvsadm", "-Lnc")
        return listed(kernel.stdout), listed(ours.stdout)

    def differ() -> list[str]:
        one, other = tables()
        found = [f"{at}: {one.get(at)} and {other.get(at)} s" for at in sorted(one.keys() ^ other.keys())]
        both = {at for at in one.keys() & other.keys() - before if not passing.search(at)}
        found += [f"{at}: {one[at]} and {other[at]} s" for at in both if abs(one[at] - other[at]) > APART]
        return found or [f"{len(one)} instead of {count}"] * (len(one) < count)

    until(lambda: not differ(), SECONDS, lambda: f"kernel and nfqlb: {differ()}")
    return tables()[0].keys()


def datagrams(client: Host, address: str, source: int) -> None:
    client.run([sys.executable, "-c", DATAGRAMS, address, "7", str(source)])


@pytest.mark.parametrize("version", [1, 0])
def test_connections_go_from_the_kernel_to_us_and_back(version: int) -> None:
    """In the middle of transfers, from both sides."""
    with Shared(echo=True) as net:
        net.start_both(version)
        whole = net.storage.fill("whole", SIZE)
        held: list[load.Held] = []
        known: Set[str] = frozenset()
        count = 0
        for source, (holder, next_one) in enumerate([(net.director, net.second), (net.second, net.director)], 20_000):
            net.move(holder)
            for family in net.families:
                held += [load.Held(net.client, net.vip(family), HELD, port) for port in (7, STICKY)]
                datagrams(net.client, net.vip(family), source)
            count += len(net.families) * (2 * HELD + 1)
            downloads = [load.Half(net.client, net.url("/whole", family)) for family in net.families]
            known = agree(net, count + 2 * len(net.families), known)  # templates and downloads

            net.move(next_one)
            assert sum(one.alive() for one in held) == len(held) * HELD
            assert [download.rest() for download in downloads] == [whole] * len(downloads)
