"""The nft diverter's table as netlink messages; pure: a plan goes in, messages come out.

Strategy: base chains one step after mangle (-149) and at conntrack's raw step (-300) jump to chains named after the
direction; members stand in sets, so the number of rules does not grow with services. Requests are matched where they
come in (prerouting, and output for the director's own clients), replies where they leave or arrive (forward, input,
and output for a real server on the director itself): a source that is rewritten before routing is a martian. A
request never comes from a real server's own endpoint; else a service that shares the port would catch replies.

    base chain -> requests | replies, of-server -> request | reply -> the chain of one queue: the NFQUEUE target alone

ICMP errors about our own tunnels come to the director itself: they are found by what they quote.

With several workers the client's address and port are hashed, and a verdict map picks the queue's chain. The NFQUEUE
rules have no bypass: without a listener packets are dropped and repeated by TCP, not answered by the local stack.

A chain that no packet enters holds a socket match: while it is there, the kernel reassembles fragments before any of
these hooks, as IPVS has it do (net/netfilter/xt_socket.c, socket_mt_enable_defrag).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence

from nfqlb.kernel import expressions as x
from nfqlb.kernel import netlink as nl
from nfqlb.kernel.diverter import ICMP_ERRORS, SEED
from nfqlb.kernel.plan import Endpoint, Members, Plan

PREROUTING, INPUT, FORWARD, OUTPUT = range(4)
DIVERT, RAW = -149, -300
BASE_CHAINS = (  # name, type, hook, priority, what it jumps to
    ("raw-prerouting", "filter", PREROUTING, RAW, ("untracked",)),
    ("raw-output", "filter", OUTPUT, RAW, ("untracked-output", "untracked")),
    ("prerouting", "filter", PREROUTING, DIVERT, ("requests",)),
    ("input", "filter", INPUT, DIVERT, ("replies",)),
    ("forward", "filter", FORWARD, DIVERT, ("replies",)),
    ("output", "route", OUTPUT, DIVERT, ("requests", "replies")),
)
CHAINS = ("defragmented", "untracked-output", "untracked", "request", "requests", "reply", "replies", "of-server")
CLASSES = ("gso", "plain")
PROTOCOL, ADDRESS, SERVICE, ICMP_TYPE, MARK = 12, {4: 7, 6: 8}, 13, {4: 14, 6: 29}, 19  # nft's data type numbers
HOST_ORDER = struct.pack("=BBI", 0, 4, 1)  # user data of a set that lets the nft program print its keys right
ICMP = {4: 1, 6: 58}
INSIDE = {4: 4, 6: 41}  # the protocol of a packet in a packet
SIZE = {4: 4, 6: 16}
SOURCE, DESTINATION = {4: (12, 0), 6: (8, 0)}, {4: (16, 2), 6: (24, 2)}  # offset of the address, of the port
QUOTED, QUOTED_HEADER, QUOTED_PROTOCOL = 8, {4: 20, 6: 40}, {4: 9, 6: 6}  # the packet that an ICMP error quotes
ELEMENTS = 1500  # per message: an attribute ends at 65,535 bytes


def remove(table: str, family: int) -> nl.Message:
    return nl.Message(nl.DELTABLE, 0, family, nl.text(1, table))


def replace(table: str, family: int, plan: Plan, *, reassemble: bool) -> list[nl.Message]:
    """The whole table, in place of what bore its name; `reassemble` where the kernel has the socket match."""
    name = nl.text(1, table)
    create = nl.Message(nl.NEWTABLE, nl.CREATE, family, name)
    queues = {f"{kind}-{i}": queue for kind in CLASSES for i, queue in enumerate(getattr(plan, kind))}
    messages = [create, remove(table, family), create]  # created first: what is not there cannot be removed
    messages += [nl.Message(nl.NEWCHAIN, nl.CREATE, family, name + nl.text(3, c)) for c in (*queues, *CHAINS)]
    for chain, kind, hook, priority, _ in BASE_CHAINS:
        where = nl.nested(4, nl.number(1, hook), nl.number(2, priority))
        body = name + nl.text(3, chain) + where + nl.number(5, x.ACCEPT) + nl.text(7, kind)
        messages.append(nl.Message(nl.NEWCHAIN, nl.CREATE, family, body))
    for title, keys in sets(family, plan).items():
        type_of_key, length = _key_type(title, family)
        body = name + nl.text(2, title) + nl.number(4, type_of_key) + nl.number(5, length) + nl.number(10, 1)
        values = {}
        if title in CLASSES:
            body += _map()
            values = {key: x.verdict_data(x.GOTO, f"{title}-{struct.unpack('=I', key)[0]}") for key in keys}
        messages.append(nl.Message(nl.NEWSET, nl.CREATE, family, body))
        messages += _edit(table, title, family, nl.NEWSETELEM, keys, values)
    messages += [rule(table, chain, family, [x.nfqueue(queue)]) for chain, queue in queues.items()]
    messages += [rule(table, chain, family, expressions) for chain, expressions in _rules(family, plan)]
    if reassemble:
        messages.append(rule(table, "defragmented", family, [x.socket_match()]))
    for chain, _, _, _, targets in BASE_CHAINS:
        messages += [rule(table, chain, family, [x.verdict(x.JUMP, target)]) for target in targets]
    return messages


def changes(table: str, family: int, old: Members, new: Members) -> list[nl.Message]:
    """What turns the members of the sets from old to new; no rule is touched."""
    messages = []
    for name in Members._fields:
        before, after = getattr(old, name), getattr(new, name)
        messages += _edit(table, name, family, nl.NEWSETELEM, _keys(family, after - before))
        messages += _edit(table, name, family, nl.DELSETELEM, _keys(family, before - after))
    return messages


def sets(family: int, plan: Plan) -> dict[str, set[bytes]]:
    """Every set and map of the table, and its keys."""
    members = plan.members(family)
    found = {"errors": {bytes([kind]) for kind in ICMP_ERRORS[family]}}
    found |= {name: _keys(family, getattr(members, name)) for name in Members._fields}
    for kind in CLASSES:
        count = len(getattr(plan, kind))
        if count > 1:
            found[kind] = {struct.pack("=I", i) for i in range(count)}
    return found


def rule(table: str, chain: str, family: int, expressions: Sequence[bytes]) -> nl.Message:
    body = nl.text(1, table) + nl.text(2, chain) + nl.nested(4, *expressions)
    return nl.Message(nl.NEWRULE, nl.CREATE | nl.APPEND, family, body)


def _rules(family: int, plan: Plan) -> list[tuple[str, list[bytes]]]:
    """Every rule behind the base chains: the chain and its expressions."""
    source, destination = SOURCE[family], DESTINATION[family]
    icmp = [*_protocol(ICMP[family]), x.payload(x.TRANSPORT, 0, 1), x.lookup("errors")]
    request = [*_endpoint(family, destination), x.lookup("services")]
    not_from_server = [*_endpoint(family, source), x.lookup("reals", absent=True)]
    reply = [*_endpoint(family, source), x.lookup("reals")]
    not_of_server = [*_address(family, source), x.lookup("servers", absent=True)]
    to_vip = [*_address(family, destination), x.lookup("vips"), *not_of_server]
    about_server = [*icmp, *_quoted_endpoint(family), x.lookup("reals")]
    about_tunnel = [*icmp, *_quoted_tunnel(family), x.lookup("tunnels")]
    fragment = _later_fragment(family)
    of_server = [*_address(family, source), x.lookup("servers")]
    untracked = [x.notrack(), x.verdict(x.ACCEPT)]
    tcp = _protocol(6)

    def to(kind: str, *client: bytes) -> list[bytes]:
        """Go to a queue of that class, picked by what `client` loads: an address, or an address and a port."""
        count = len(getattr(plan, kind))
        if count == 1:
            return [x.verdict(x.GOTO, f"{kind}-0")]
        return [*client, x.hashed(SIZE[family] + 4 * len(client) - 4, count, SEED), x.verdict_map(kind)]

    return [
        ("untracked-output", [*_endpoint(family, destination), x.lookup("reals"), *untracked]),
        ("untracked", [*request, *untracked]),
        ("untracked", [*reply, *untracked]),
        ("untracked", [*icmp, *to_vip, *untracked]),
        ("untracked", [*about_server, *untracked]),
        ("requests", [*request, *not_from_server, x.verdict(x.GOTO, "request")]),
        ("requests", [*icmp, *to_vip, *to("plain", *_quoted_client(family, destination))]),
        ("requests", [*fragment, *to_vip, *to("plain", *_address(family, source))]),
        ("request", [*tcp, *to("gso", *_client(family, source))]),
        ("request", to("plain", *_client(family, source))),
        ("replies", [*of_server, x.verdict(x.JUMP, "of-server")]),  # by the address alone: most packets stop here
        ("replies", [*about_server, *to("plain", *_quoted_client(family, source))]),
        ("replies", [*about_tunnel, *to("plain", *_address(family, destination))]),
        ("of-server", [*reply, x.verdict(x.GOTO, "reply")]),
        ("of-server", [*fragment, *to("plain", *_address(family, destination))]),
        ("reply", [*tcp, *to("gso", *_client(family, destination))]),
        ("reply", to("plain", *_client(family, destination))),
    ]


def _protocol(number: int) -> list[bytes]:
    return [x.meta_protocol(), x.compare(x.EQUAL, bytes([number]))]


def _address(family: int, end: tuple[int, int]) -> list[bytes]:
    return [x.payload(x.NETWORK, end[0], SIZE[family])]


def _client(family: int, end: tuple[int, int]) -> list[bytes]:
    return [*_address(family, end), x.payload(x.TRANSPORT, end[1], 2, x.FIRST + SIZE[family] // 4)]


def _endpoint(family: int, end: tuple[int, int]) -> list[bytes]:
    """Protocol, address and port, as the sets hold them."""
    address = x.payload(x.NETWORK, end[0], SIZE[family], x.FIRST + 1)
    return [x.meta_protocol(), address, x.payload(x.TRANSPORT, end[1], 2, x.FIRST + 1 + SIZE[family] // 4)]


def _quoted_client(family: int, end: tuple[int, int]) -> list[bytes]:
    address = x.payload(x.TRANSPORT, QUOTED + end[0], SIZE[family])
    return [address, x.payload(x.TRANSPORT, QUOTED + QUOTED_HEADER[family] + end[1], 2, x.FIRST + SIZE[family] // 4)]


def _quoted_endpoint(family: int) -> list[bytes]:
    """Where the packet that an ICMP error quotes was going; behind IP options it is not found."""
    address, port = DESTINATION[family]
    return [
        x.payload(x.TRANSPORT, QUOTED + QUOTED_PROTOCOL[family], 1),
        x.payload(x.TRANSPORT, QUOTED + address, SIZE[family], x.FIRST + 1),
        x.payload(x.TRANSPORT, QUOTED + QUOTED_HEADER[family] + port, 2, x.FIRST + 1 + SIZE[family] // 4),
    ]


def _quoted_tunnel(family: int) -> list[bytes]:
    """Where the tunnel went whose packet an ICMP error quotes."""
    return [
        x.payload(x.TRANSPORT, QUOTED + QUOTED_PROTOCOL[family], 1),
        x.compare(x.EQUAL, bytes([INSIDE[family]])),
        x.payload(x.TRANSPORT, QUOTED + DESTINATION[family][0], SIZE[family]),
    ]


def _later_fragment(family: int) -> list[bytes]:
    if family == 4:
        return [x.payload(x.NETWORK, 6, 2), x.masked(b"\x1f\xff"), x.compare(x.DIFFERENT, b"\0\0")]
    return [x.fragment_header(2, 2), x.masked(b"\xff\xf8"), x.compare(x.DIFFERENT, b"\0\0")]


def _map() -> bytes:
    """What makes a set a verdict map: its flag, the type and size of its values."""
    return nl.number(3, 0x8) + nl.number(6, 0xFFFFFF00) + nl.number(7, 0) + nl.attribute(13, HOST_ORDER)


def _key_type(name: str, family: int) -> tuple[int, int]:
    """nft's number for the type of a set's key, and the length of that key."""
    if name in CLASSES:
        return MARK, 4
    if name == "errors":
        return ICMP_TYPE[family], 1
    if name in ("vips", "servers", "tunnels"):
        return ADDRESS[family], SIZE[family]
    return PROTOCOL << 12 | ADDRESS[family] << 6 | SERVICE, SIZE[family] + 8


def _keys(family: int, members: Iterable[Endpoint | str]) -> set[bytes]:
    kind = nl.FAMILY[family]
    return {
        socket.inet_pton(kind, member)
        if isinstance(member, str)
        else bytes([member[0], 0, 0, 0]) + socket.inet_pton(kind, member[1]) + struct.pack("!H2x", member[2])
        for member in members
    }


def _edit(
    table: str, name: str, family: int, kind: int, keys: Iterable[bytes], values: Mapping[bytes, bytes] | None = None
) -> list[nl.Message]:
    elements = []
    for key in sorted(keys):
        value = [nl.nested(2, values[key])] if values else []
        elements.append(nl.nested(1, nl.nested(1, nl.attribute(1, key)), *value))
    flags = nl.CREATE if kind == nl.NEWSETELEM else 0
    head = nl.text(1, table) + nl.text(2, name)
    parts = [elements[i : i + ELEMENTS] for i in range(0, len(elements), ELEMENTS)]
    return [nl.Message(kind, flags, family, head + nl.nested(3, *part)) for part in parts]
