"""The machine and what a director serves on it, read once; checks look at nothing else."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import NfqlbError
from nfqlb.kernel import neighbours, nft, programs, routes, sysctl
from nfqlb.kernel.capabilities import NET_ADMIN, NET_RAW, capable
from nfqlb.kernel.doctor import wire
from nfqlb.kernel.iptables import PROGRAM, Iptables
from nfqlb.kernel.kernel import PROGRAMS
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.queues import Queue as Listener
from nfqlb.kernel.queues import queues
from nfqlb.kernel.saved import Saved
from nfqlb.model import family

SIOCETHTOOL, ETHTOOL_GGRO, ETHTOOL_SGRO = 0x8946, 0x2B, 0x2C
CONNTRACK = Path("/proc/sys/net/netfilter")
NETSTAT = Path("/proc/net/netstat")
PATIENCE = 0.5  # seconds for a server to answer ARP or ND
LOCAL = 2  # RTN_LOCAL
NAMES = {NET_ADMIN: "CAP_NET_ADMIN", NET_RAW: "CAP_NET_RAW"}


class Service(NamedTuple):
    """A virtual service and what it has counted; `vip` is empty for one by firewall mark."""

    key: str
    vip: str
    mark: int
    mode: str
    reals: tuple[str, ...]  # addresses
    serves: bool = True  # whether one of them takes new connections
    inpkts: int = 0
    outpkts: int = 0
    inbytes: int = 0
    outbytes: int = 0


class Queue(NamedTuple):
    number: int
    dropped: int  # by the kernel, for want of room in queue or socket
    buffer: int  # bytes that the socket may hold


class Served(NamedTuple):
    """What the director says; `running` is false where there is none, `left` where one ended without cleaning up."""

    running: bool
    name: str = "main"
    left: bool = False
    elsewhere: int = 0  # the director's pid, where it lives in another network namespace
    services: tuple[Service, ...] = ()
    queues: tuple[Queue, ...] = ()
    reasons: Mapping[str, int] = {}
    diverter: str = ""
    firewall: str = ""
    role: str = ""  # among the directors that have the VIPs in turn

    @property
    def has_vips(self) -> bool:
        """Whether they are to be on this machine."""
        return self.role in ("", "master")

    @property
    def vips(self) -> set[str]:
        return {service.vip for service in self.services if service.vip}

    @property
    def servers(self) -> set[str]:
        return {real for service in self.services for real in service.reals}

    @property
    def families(self) -> set[int]:
        return {family(address) for address in self.vips | self.servers}


class Way(NamedTuple):
    """How this machine reaches an address; `gateway` is empty on the same link."""

    local: bool
    device: str
    gateway: str
    mtu: int = 0
    source: str = ""


class Chain(NamedTuple):
    """A chain of others in hook forward with policy drop; `named`: its rules mention every real server."""

    family: str
    table: str
    name: str
    named: bool


class Machine(NamedTuple):
    missing: tuple[str, ...] = ()  # capabilities
    programs: tuple[str, ...] = ()  # not there
    unable: str = ""  # why this kernel diverts no packets
    sysctls: Mapping[str, str] = {}
    frozen: bool = False  # sysctls cannot be changed from here
    gro: Mapping[str, bool] = {}  # by device
    holders: Mapping[str, str] = {}  # VIP -> device that has it
    ways: Mapping[str, Way] = {}  # to VIPs and servers, where there is one
    silent: frozenset[str] = frozenset()  # servers that answer neither ARP nor ND
    macs: Mapping[bytes, str] = {}  # link-layer address -> server
    marked: Mapping[tuple[int, str], str] = {}  # device of the way to a server with that mark; empty: no way
    claims: Mapping[str, set[bytes]] = {}  # VIP -> others that say they have it
    echoes: Mapping[str, int] = {}  # server -> longest packet that reached it
    listeners: Mapping[int, Listener] = {}
    martians: int = 0  # packets dropped by rp_filter
    tracked: tuple[int, int] = (0, 0)  # connections and their limit
    chains: tuple[Chain, ...] = ()
    ahead: tuple[tuple[str, str], ...] = ()  # program and rule that accepts in mangle PREROUTING before ours

    @property
    def devices(self) -> set[str]:
        """Those that packets of services come and go by."""
        ways = {way.device for way in self.ways.values() if not way.local}
        return (ways | set(self.holders.values())) - {"lo"}


def take(served: Served) -> Machine:
    """Read everything; what this process may not read counts as in order, and the capability as missing."""
    missing = tuple(name for bit, name in NAMES.items() if not capable(bit))
    absent = tuple(program for program in PROGRAMS if not programs.there(program))
    machine = Machine(missing, absent, _unable(served, bool(missing or absent)), sysctls(), frozen=_frozen())
    if not served.running or served.elsewhere or missing:
        return machine
    vips, servers = served.vips, served.servers
    with IPRoute() as ip:
        holders = _holders(ip, vips)
        ways = {address: way for address in vips | servers if (way := _way(ip, address))}
        marks = {(service.mark, real) for service in served.services if service.mark for real in service.reals}
        marked = {(mark, real): way.device if (way := _way(ip, real, mark)) else "" for mark, real in marks}
        gateway = {way.device for address in ("192.0.2.1", "2001:db8::") if (way := _way(ip, address))}  # the default's
    reached = _reached({real for real in servers if real in ways and not ways[real].local})
    machine = machine._replace(holders=holders, ways=ways, marked=marked, silent=frozenset(reached[1]), macs=reached[0])
    asked = {(device, vip) for vip in vips for device in _places(vip, machine, gateway)}
    sizes = {real: ways[real].mtu for real in servers & ways.keys() - reached[1] if not ways[real].local}
    return machine._replace(
        gro={device: gro(device) for device in machine.devices | gateway},
        claims=wire.who_has(asked),
        echoes=wire.echoes(sizes),
        listeners=queues(),
        martians=_martians(),
        tracked=_tracked(),
        chains=tuple(_chains(served)),
        ahead=tuple(_ahead(served)),
    )


def sysctls() -> dict[str, str]:
    """What decides over forwarding, by path below /proc/sys."""
    found = {}
    for number, leaves in (("4", ("rp_filter", "forwarding", "send_redirects", "arp_ignore")), ("6", ("forwarding",))):
        for folder in (sysctl.ROOT / f"net/ipv{number}/conf").glob("*"):
            for leaf in leaves:
                found[f"net/ipv{number}/conf/{folder.name}/{leaf}"] = sysctl.read(
                    f"net/ipv{number}/conf/{folder.name}/{leaf}"
                )
    found[sysctl.SWITCH[4]] = sysctl.read(sysctl.SWITCH[4])
    return {name: value for name, value in found.items() if value is not None}


def gro(device: str, on: bool | None = None) -> bool:
    """Whether the device merges what it receives; True as well where it cannot say. With `on` it is set first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if on is not None:
            _ethtool(sock, device, ETHTOOL_SGRO, int(on))
        try:
            return bool(_ethtool(sock, device, ETHTOOL_GGRO, 0))
        except OSError:
            return True


def _ethtool(sock: socket.socket, device: str, command: int, value: int) -> int:
    import array

    data = array.array("B", struct.pack("II", command, value))
    request = struct.pack("16sP16x", device.encode(), data.buffer_info()[0])
    fcntl.ioctl(sock, SIOCETHTOOL, request)
    return int(struct.unpack("II", data)[1])


def _unable(served: Served, known: bool) -> str:
    if known or served.running:
        return ""
    try:
        if not nft.loads():
            Iptables("doctor", Saved(Path("/nonexistent"))).require(Plan("doctor"))
    except NfqlbError as error:
        return str(error)
    return ""


def _frozen() -> bool:
    return not os.access(sysctl.ROOT / sysctl.SWITCH[4], os.W_OK)


def _way(ip: IPRoute, address: str, mark: int = 0) -> Way | None:
    try:
        [route, *_] = ip.route("get", dst=address, **({"mark": mark} if mark else {}))
    except NetlinkError:
        return None
    if route["type"] not in (1, LOCAL):  # RTN_UNICAST
        return None
    [link, *_] = ip.get_links(route.get("oif"))
    gateway = route.get("gateway") or (route.get("via") or {}).get("addr", "")
    metrics = route.get("metrics")
    mtu = (metrics.get("mtu") if metrics else 0) or link.get("mtu")
    return Way(route["type"] == LOCAL, str(link.get("ifname")), gateway, int(mtu), str(route.get("prefsrc") or ""))


def _holders(ip: IPRoute, vips: Iterable[str]) -> dict[str, str]:
    links = {link["index"]: str(link.get("ifname")) for link in ip.get_links()}
    there = {(one.get("local") or one.get("address")): links.get(one["index"], "") for one in ip.get_addr()}
    return {vip: there[vip] for vip in vips if vip in there}


def _places(vip: str, machine: Machine, gateway: set[str]) -> set[str]:
    """Where somebody else could say that he has the VIP."""
    if vip in machine.holders:
        ours = machine.holders[vip]
        return machine.devices | gateway - {"lo"} if ours == "lo" else {ours}
    way = machine.ways.get(vip)
    return {way.device} if way and not way.gateway else set()


def _reached(servers: set[str]) -> tuple[dict[bytes, str], set[str]]:
    """The link-layer addresses of the servers on our links, and which answer nothing."""
    end = time.monotonic() + PATIENCE
    found = neighbours.hops(servers)
    late = False
    while servers - found.keys() and not late:
        late = time.monotonic() >= end  # and what came meanwhile counts, where this process was
        time.sleep(0.02)
        found = neighbours.hops(servers)
    return {hop.destination: server for server, hop in found.items() if hop.destination}, servers - found.keys()


def _martians() -> int:
    """TcpExt IPReversePathFilter of this network namespace."""
    lines = [line.split() for line in NETSTAT.read_text().splitlines() if line.startswith("TcpExt:")]
    return int(dict(zip(*lines, strict=True)).get("IPReversePathFilter", 0))


def _tracked() -> tuple[int, int]:
    with suppress(OSError):
        return int((CONNTRACK / "nf_conntrack_count").read_text()), int((CONNTRACK / "nf_conntrack_max").read_text())
    return 0, 0


def _chains(served: Served) -> Iterable[Chain]:
    for title, table, name in routes.dropping(served.firewall, served.families):
        text = ""
        if programs.there("nft"):
            with suppress(NfqlbError):
                text = programs.run("nft", "-n", "list", "chain", title, table, name)
        yield Chain(title, table, name, all(f"{server} " in f"{text} ".replace(",", " ") for server in served.servers))


def _ahead(served: Served) -> Iterable[tuple[str, str]]:
    """Rules that accept before the jump of the iptables diverter, which stands behind all others."""
    if served.diverter != "iptables":
        return
    for version in served.families:
        for line in programs.run(f"{PROGRAM[version]}-save", "-t", "mangle").splitlines():
            if line.startswith("-A PREROUTING ") and line.endswith(" -j ACCEPT"):
                yield PROGRAM[version], line.removeprefix("-A ")
