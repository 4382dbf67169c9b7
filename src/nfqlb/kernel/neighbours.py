"""Where real servers are on the wire: the route to each, its next hop, and that hop's link-layer address.

Strategy: the kernel keeps all of it; here it is asked, in a few netlink dumps whatever the number of servers, and told
to keep what we use fresh: it never sees the frames that we send, so it would not resolve a neighbour on its own, nor
notice that one is gone. A neighbour that is not known is resolved; one whose server carries traffic is probed again
and again (NUD_PROBE: unicast, three times a second apart, then it counts as failed). Whoever listens to `Events` hears
of every change, a server that announces a new address included. pyroute2 knows these messages too, at 0.1 ms for each
neighbour and route.

Formats: include/uapi/linux/rtnetlink.h, neighbour.h, if_link.h; addresses in network order, the rest in host order.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from nfqlb.kernel.netlink import CREATE, DUMP, NLMSG_DONE, NLMSG_ERROR, REQUEST, attribute, attributes, pack, received
from nfqlb.model import family

RTM_GETLINK, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH, RTM_GETNEIGH = 18, 22, 24, 26, 28, 30
RTM_DELROUTE = 25
RTM_NEWADDR, RTM_DELADDR, RTM_GETRULE = 20, 21, 34
REPLACE = 0x100  # NLM_F_REPLACE
# RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
GROUPS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS, RTA_MARK, RTA_VIA, RTAX_MTU = 1, 4, 5, 7, 8, 16, 18, 2
NDA_DST, NDA_LLADDR, IFLA_ADDRESS, IFLA_MTU, IFA_ADDRESS, IFA_LOCAL = 1, 2, 1, 4, 1, 2
RTN_UNICAST, RTN_LOCAL = 1, 2
NTF_USE = 0x01
PROBE = 0x10  # NUD_PROBE
VALID = 0xDE  # REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT
SETTLED, STALE = 0x06, 0x04  # REACHABLE, STALE: nobody is asking
ETHER = 1  # ARPHRD_ETHER
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_ROUTE = struct.Struct("=8BI")  # rtmsg
_RULE = struct.Struct("=B11x")  # fib_rule_hdr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg
_ADDRESS = struct.Struct("=4BI")  # ifaddrmsg
_NUMBER = struct.Struct("=I")


class Hop(NamedTuple):
    """The way to a real server: see _core.snapshot.Hop, whose arguments these are."""

    interface: int
    mtu: int
    destination: bytes = b""
    source: bytes = b""
    address: bytes = bytes(16)
    local: bool = False
    mark: int = 0
    mask: int = 0


HERE = Hop(0, 0, local=True)


class Link(NamedTuple):
    kind: int  # ARPHRD_*
    mtu: int
    address: bytes


class Route(NamedTuple):
    local: bool
    interface: int
    gateway: str
    mtu: int  # 0: the link's
    source: bytes  # our address on it, 16 bytes


class Neighbour(NamedTuple):
    state: int  # NUD_*
    address: bytes


Place = tuple[int, str]  # interface, IP address


def hops(servers: Iterable[str]) -> dict[str, Hop]:
    """The way to each of these addresses, as far as there is one now; what is not resolved is on its way to be."""
    servers = list(servers)
    links, neighbours = _links(), _neighbours()
    found: dict[str, Hop] = {}
    unresolved = set()
    for server, route in routes(servers).items():
        link = links.get(route.interface)
        if route.local:
            found[server] = HERE
        elif link is not None:
            mtu = route.mtu or link.mtu
            neighbour = neighbours.get((route.interface, route.gateway))
            if link.kind != ETHER:
                found[server] = Hop(route.interface, mtu, address=route.source)
            elif neighbour is not None and neighbour.state & VALID and len(neighbour.address) == 6:
                found[server] = Hop(route.interface, mtu, neighbour.address, link.address, route.source)
            else:
                unresolved.add((route.interface, route.gateway))
    _tell(_neighbour(place, 0, NTF_USE) for place in unresolved)
    return found


def own() -> set[str]:
    """The addresses of this machine."""
    found = set()
    for body in _dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        fields = dict(attributes(body[_ADDRESS.size :]))
        found.add(_text(fields.get(IFA_LOCAL) or fields[IFA_ADDRESS]))
    return found


def probe(servers: Iterable[str]) -> None:
    """Have the kernel ask the next hop of each whether it is still there, unless it is asking already."""
    places = {(route.interface, route.gateway) for route in routes(servers).values() if not route.local}
    if places:
        settled = {place: known for place, known in _neighbours().items() if known.state & SETTLED}
        _tell(_neighbour(place, PROBE, 0, settled[place].address) for place in places & settled.keys())


def confirm(interfaces: Set[int]) -> None:
    """The same for next hops on these interfaces that nobody has heard of for a while."""
    if interfaces:
        stale = ((place, known) for place, known in _neighbours().items() if known.state & STALE)
        _tell(_neighbour(place, PROBE, 0, known.address) for place, known in stale if place[0] in interfaces)


def ruled() -> set[int]:
    """The families whose packets this kernel can route by rules (CONFIG_IP_MULTIPLE_TABLES): there is one at least."""
    return {number for number, kind in FAMILY.items() if any(True for _ in _dump(RTM_GETRULE, _RULE.pack(kind)))}


class Events:
    """Readable when links, addresses, routes or neighbours changed in this network namespace; `clear` then calls
    `heard`, and tells it whether addresses of this machine may have changed, and whether routes.
    """

    def __init__(self, heard: Callable[[bool, bool], None]) -> None:
        self._heard = heard
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def clear(self) -> None:
        """Take all that came."""
        try:
            kinds = {kind for kind, *_ in received(self._socket)}
        except OSError:  # more than could be kept
            kinds = {RTM_NEWADDR, RTM_NEWROUTE}
        self._heard(bool(kinds & {RTM_NEWADDR, RTM_DELADDR}), bool(kinds & {RTM_NEWROUTE, RTM_DELROUTE}))

    def close(self) -> None:
        self._socket.close()


def _links() -> Mapping[int, Link]:
    links = {}
    for body in _dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, kind, index, _, _ = _LINK.unpack_from(body)
        fields = dict(attributes(body[_LINK.size :]))
        links[index] = Link(kind, _NUMBER.unpack(fields[IFLA_MTU])[0], fields.get(IFLA_ADDRESS, b""))
    return links


def _neighbours() -> Mapping[Place, Neighbour]:
    found = {}
    for body in _dump(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)):
        kind, interface, state, _, _ = _NEIGHBOUR.unpack_from(body)
        fields = dict(attributes(body[_NEIGHBOUR.size :]))
        if kind in FAMILY.values() and NDA_DST in fields:
            found[interface, _text(fields[NDA_DST])] = Neighbour(state, fields.get(NDA_LLADDR, b""))
    return found


def routes(addresses: Iterable[str], mark: int = 0) -> Mapping[str, Route]:
    """The route that packets with that mark have to each address, where there is one."""
    asked = dict(enumerate(addresses, 1))
    requests = []
    for number, address in asked.items():
        packed = ipaddress.ip_address(address).packed
        message = _ROUTE.pack(FAMILY[family(address)], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        message += attribute(RTA_DST, packed) + attribute(RTA_MARK, _NUMBER.pack(mark))
        requests.append(pack(RTM_GETROUTE, REQUEST, number, message))
    found = {}
    for kind, number, body in _answers(requests):
        if kind != RTM_NEWROUTE or body[7] not in (RTN_UNICAST, RTN_LOCAL):
            continue
        fields = dict(attributes(body[_ROUTE.size :]))
        gateway = fields.get(RTA_GATEWAY) or fields.get(RTA_VIA, b"")[2:]
        metrics = dict(attributes(fields.get(RTA_METRICS, b"")))
        found[asked[number]] = Route(
            body[7] == RTN_LOCAL,
            _NUMBER.unpack(fields[RTA_OIF])[0],
            _text(gateway) if gateway else asked[number],
            _NUMBER.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else 0,
            _mapped(fields.get(RTA_PREFSRC, bytes(4))),
        )
    return found


def _neighbour(place: Place, state: int, flags: int, address: bytes = b"") -> bytes:
    interface, ip = place
    body = _NEIGHBOUR.pack(FAMILY[family(ip)], interface, state, flags, 0)
    body += attribute(NDA_DST, ipaddress.ip_address(ip).packed)
    if address:
        body += attribute(NDA_LLADDR, address)
    return pack(RTM_NEWNEIGH, REQUEST | CREATE | REPLACE, 1, body)


def _mapped(address: bytes) -> bytes:
    return address if len(address) == 16 else bytes(10) + b"\xff\xff" + address


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _dump(kind: int, body: bytes) -> Iterator[bytes]:
    for reply, _, payload in _answers([pack(kind, REQUEST | DUMP, 1, body)]):
        if reply not in (NLMSG_ERROR, NLMSG_DONE):
            yield payload


def _tell(messages: Iterable[bytes]) -> None:
    """Requests whose failure the next look will show."""
    for _ in _answers(list(messages)):
        pass


def _answers(messages: Sequence[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(type, number of the request, body) of everything that the kernel says to these requests.

    It answers before send returns, so the socket never blocks; a dump goes on with each receive.
    """
    if not messages:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.setblocking(False)
        for message in messages:
            sock.send(message)
            for kind, _, number, body in received(sock):
                yield kind, number, body
