"""The nft diverter's table as netlink messages; pure: a plan goes in, messages come out.

Strategy: base chains one step after mangle (-149) and at conntrack's raw step (-300) jump to chains named after the
direction; members stand in sets, so the number of rules does not grow with services. Requests are matched where they
come in (prerouting, and output for the director's own clients), replies where they leave or arrive (forward, input,
and output for a real server on the director itself): a source that is rewritten before routing is a martian. A
request never comes from a real server's own endpoint; else a service that shares the port would catch replies.

    base chain -> requests | replies, of-server -> request | reply -> the chain of one queue: the NFQUEUE target alone

ICMP errors about our own tunnels come to the director itself: they are found by what they quote.

A real server with any port (`anyport`), or one behind a service by mark, sends replies that no port tells from its own
business. So `wide` remembers the client's end of each request to one in the set `clients`, for as long as connections
live, and a reply is what goes back there. Rules and sets of such services are there only where there are some.

First packets of TCP connections have queues of their own, so that a flood of them leaves the others alone.

With several workers the client's address and port are hashed, and a verdict map picks the queue's chain. The NFQUEUE
rules have no bypass unless asked for (`on_failure`): without a listener packets are dropped and repeated by TCP, not
answered by the local stack.

A chain that no packet enters holds a socket match: while it is there, the kernel reassembles fragments before any of
these hooks, as IPVS has it do (net/netfilter/xt_socket.c, socket_mt_enable_defrag).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nfqlb.kernel import expressions as x
from nfqlb.kernel import netlink as nl
from nfqlb.kernel.diverter import ICMP_ERRORS, SEED
from nfqlb.kernel.plan import Endpoint, Members, Plan, Span
from nfqlb.model import PROTOCOLS

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
CHAINS = (
    "defragmented",
    "untracked-output",
    "untracked",
    "request",
    "wide",
    "requests",
    "reply",
    "replies",
    "of-server",
)
CLIENTS, CLIENTS_MAX = "clients", 1 << 20
COMMON = ("services", "reals", "vips", "servers", "tunnels", "heads")
INTERVALS = ("ranges", "real_ranges")  # sets whose keys are a first and a last one, in one
CLASSES = ("gso", "plain", "head", "syn")
SYN_ONLY = b"\x17", b"\x02"  # of FIN, SYN, RST and ACK; the byte of a TCP header that has them is the 13th
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


class Standing(NamedTuple):
    """What a table has beside its base chains, which are those that it has to have."""

    chains: Sequence[str]
    sets: Sequence[str]


def standing(table: str, chains: Iterable[bytes], sets: Iterable[bytes]) -> Standing | None:
    """What there is of the table, from the kernel's list of chains and of sets; None where its base chains differ."""
    base, names = set(), []
    for body in chains:
        found = dict(nl.attributes(body))
        if found[1][:-1].decode() != table:
            continue
        name = found[3][:-1].decode()
        if 4 in found:
            hook = dict(nl.attributes(found[4]))
            base.add((name, found[7][:-1].decode(), *struct.unpack("!Ii", hook[1] + hook[2])))
        else:
            names.append(name)
    titles = [dict(nl.attributes(body))[2][:-1].decode() for body in sets]
    return Standing(names, titles) if base == {chain[:4] for chain in BASE_CHAINS} else None


def replace(
    table: str,
    family: int,
    plan: Plan,
    *,
    reassemble: bool,
    learned: Mapping[bytes, int] | None = None,
    there: Standing | None = None,
) -> list[nl.Message]:
    """The whole table, in place of what bore its name; `reassemble` where the kernel has the socket match. `learned`
    are keys of the set of clients and the milliseconds that they have left.

    Base chains of what is `there` stay: when a hook goes, the kernel drops every packet that waits in any queue
    (net/netfilter/nfnetlink_queue.c, nfqnl_nf_hook_drop).
    """
    name = nl.text(1, table)
    create = nl.Message(nl.NEWTABLE, nl.CREATE, family, name)
    queues = {f"{kind}-{i}": queue for kind in CLASSES for i, queue in enumerate(getattr(plan, kind))}
    if there:
        messages = [nl.Message(nl.DELRULE, 0, family, name)]
        messages += [nl.Message(nl.DELSET, 0, family, name + nl.text(2, title)) for title in there.sets]
        messages += [nl.Message(nl.DELCHAIN, 0, family, name + nl.text(3, chain)) for chain in there.chains]
    else:
        messages = [create, remove(table, family), create]  # created first: what is not there cannot be removed
    for chain, kind, hook, priority, _ in BASE_CHAINS if not there else ():
        where = nl.nested(4, nl.number(1, hook), nl.number(2, priority))
        body = name + nl.text(3, chain) + where + nl.number(5, x.ACCEPT) + nl.text(7, kind)
        messages.append(nl.Message(nl.NEWCHAIN, nl.CREATE, family, body))
    messages += [nl.Message(nl.NEWCHAIN, nl.CREATE, family, name + nl.text(3, c)) for c in (*queues, *CHAINS)]
    for title, keys in sets(family, plan).items():
        body = _set(name, title, family)
        values = {}
        if title in INTERVALS:
            fields = (nl.nested(1, nl.number(1, size)) for size in (1, SIZE[family], 2))
            body += nl.number(3, 0x84) + nl.nested(9, nl.nested(2, *fields))  # an interval of each field
        if title == "marks":
            body += nl.attribute(13, HOST_ORDER)
        if title in CLASSES:
            body += _map()
            values = {
                key: nl.nested(2, x.verdict_data(x.GOTO, f"{title}-{struct.unpack('=I', key)[0]}")) for key in keys
            }
        messages.append(nl.Message(nl.NEWSET, nl.CREATE, family, body))
        messages += _edit(table, title, family, nl.NEWSETELEM, keys, values)
    if plan.members(family).learns:
        timeout = nl.attribute(11, struct.pack("!Q", 1000 * plan.idle))
        flags = nl.number(3, 0x30) + nl.nested(9, nl.number(1, CLIENTS_MAX))  # filled by rules, for a time
        messages.append(nl.Message(nl.NEWSET, nl.CREATE, family, _set(name, CLIENTS, family) + flags + timeout))
        left = {key: nl.attribute(5, struct.pack("!Q", time)) for key, time in (learned or {}).items()}
        messages += _edit(table, CLIENTS, family, nl.NEWSETELEM, left, left)
    messages += [rule(table, chain, family, [x.nfqueue(queue, bypass=plan.bypass)]) for chain, queue in queues.items()]
    messages += [rule(table, chain, family, expressions) for chain, expressions in _rules(family, plan)]
    if reassemble:
        messages.append(rule(table, "defragmented", family, [x.socket_match()]))
    for chain, _, _, _, targets in BASE_CHAINS:
        messages += [rule(table, chain, family, [x.verdict(x.JUMP, target)]) for target in targets]
    return messages


def changes(table: str, family: int, old: Members, new: Members) -> list[nl.Message]:
    """What turns the members of the sets from old to new, of the same kinds; no rule is touched."""
    messages = []
    for name in Members._fields:
        before, after = getattr(old, name), getattr(new, name)
        messages += _edit(table, name, family, nl.DELSETELEM, _keys(family, before - after))
        messages += _edit(table, name, family, nl.NEWSETELEM, _keys(family, after - before))
    return messages


def sets(family: int, plan: Plan) -> dict[str, set[bytes]]:
    """Every set and map of the table, and its keys; not that of the clients, which the rules fill."""
    members = plan.members(family)
    found = {"errors": {bytes([kind]) for kind in ICMP_ERRORS[family]}}
    found |= {name: _keys(family, getattr(members, name)) for name in (*COMMON, *members.kinds)}
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
    members = plan.members(family)
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

    def errors_to(client: tuple[int, int]) -> list[bytes]:
        """Go where the connection goes whose packet an ICMP error quotes; `client` is the client's end in there."""
        return to("plain", *_quoted_client(family, client))

    def about_client(client: tuple[int, int]) -> list[bytes]:
        return [*_quoted_endpoint(family, client), x.lookup(CLIENTS)]

    heads = (
        [("request", [*_endpoint(family, destination), x.lookup("heads"), *to("head", *_client(family, source))])]
        if plan.mask
        else []
    )
    rules = [
        ("untracked-output", [*_endpoint(family, destination), x.lookup("reals"), *untracked]),
        ("untracked", [*request, *untracked]),
        ("untracked", [*reply, *untracked]),
        ("untracked", [*icmp, *to_vip, *untracked]),
        ("untracked", [*about_server, *untracked]),
        ("requests", [*request, *not_from_server, x.verdict(x.GOTO, "request")]),
        ("requests", [*icmp, *to_vip, *errors_to(destination)]),
        ("requests", [*fragment, *to_vip, *to("plain", *_address(family, source))]),
        ("request", [*tcp, *_is_first(), *to("syn", *_client(family, source))]),
        *heads,
        ("request", [*tcp, *to("gso", *_client(family, source))]),
        ("request", to("plain", *_client(family, source))),
        ("replies", [*of_server, x.verdict(x.JUMP, "of-server")]),  # by the address alone: most packets stop here
        ("replies", [*about_server, *errors_to(source)]),
        ("replies", [*about_tunnel, *to("plain", *_address(family, destination))]),
        ("of-server", [*reply, x.verdict(x.GOTO, "reply")]),
        ("of-server", [*fragment, *to("plain", *_address(family, destination))]),
        ("reply", [*tcp, *to("gso", *_client(family, destination))]),
        ("reply", to("plain", *_client(family, destination))),
    ]
    if not members.kinds:
        return rules
    request_to = x.verdict(x.GOTO, "wide" if members.learns else "request")
    if members.real_ranges:
        in_range = [*_endpoint(family, source), x.lookup("real_ranges")]
        rules += [
            ("untracked-output", [*_endpoint(family, destination), x.lookup("real_ranges"), *untracked]),
            ("untracked", [*in_range, *untracked]),
            ("untracked", [*icmp, *_quoted_endpoint(family), x.lookup("real_ranges"), *untracked]),
            ("of-server", [*in_range, x.verdict(x.GOTO, "reply")]),
            ("replies", [*icmp, *_quoted_endpoint(family), x.lookup("real_ranges"), *errors_to(source)]),
        ]
        not_from_server += [*_endpoint(family, source), x.lookup("real_ranges", absent=True)]
    if members.anyport:
        back = [*_address(family, source), x.lookup("anyport"), *_endpoint(family, destination), x.lookup(CLIENTS)]
        rules += [
            ("untracked", [*back, *untracked]),
            ("of-server", [*back, x.verdict(x.GOTO, "reply")]),
            ("untracked", [*icmp, *about_client(source), *untracked]),
            ("replies", [*icmp, *about_client(source), *errors_to(source)]),
        ]
        not_from_server += [*_address(family, source), x.lookup("anyport", absent=True)]
    if members.ranges:
        to_range = [*_endpoint(family, destination), x.lookup("ranges")]
        rules += [("untracked", [*to_range, *untracked]), ("requests", [*to_range, *not_from_server, request_to])]
    if members.marks:
        marked = [x.meta_mark(), x.lookup("marks")]
        for number in PROTOCOLS.values():
            rules.append(("requests", [*_protocol(number), *marked, *not_from_server, request_to]))
        from_network = [*icmp, *about_client(destination), *not_of_server]
        rules += [("untracked", [*from_network, *untracked]), ("requests", [*from_network, *errors_to(destination)])]
    if members.learns:
        rules += [
            ("wide", [*_endpoint(family, source), x.learn(CLIENTS)]),
            ("wide", [x.verdict(x.GOTO, "request")]),
        ]
    return rules


def _protocol(number: int) -> list[bytes]:
    return [x.meta_protocol(), x.compare(x.EQUAL, bytes([number]))]


def _is_first() -> list[bytes]:
    """Whether a TCP segment begins a connection."""
    bits, syn = SYN_ONLY
    return [x.payload(x.TRANSPORT, 13, 1), x.masked(bits), x.compare(x.EQUAL, syn)]


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


def _quoted_endpoint(family: int, end: tuple[int, int] | None = None) -> list[bytes]:
    """An end of the packet that an ICMP error quotes, its destination by default; behind IP options it is not found."""
    address, port = end or DESTINATION[family]
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


def _set(table: bytes, title: str, family: int) -> bytes:
    """What every set says of itself: table, name, type and length of its keys, and a number in its batch."""
    type_of_key, length = _key_type(title, family)
    return table + nl.text(2, title) + nl.number(4, type_of_key) + nl.number(5, length) + nl.number(10, 1)


def _key_type(name: str, family: int) -> tuple[int, int]:
    """nft's number for the type of a set's key, and the length of that key."""
    if name in (*CLASSES, "marks"):
        return MARK, 4
    if name == "errors":
        return ICMP_TYPE[family], 1
    if name in ("vips", "servers", "tunnels", "anyport"):
        return ADDRESS[family], SIZE[family]
    return PROTOCOL << 12 | ADDRESS[family] << 6 | SERVICE, SIZE[family] + 8


def _keys(family: int, members: Iterable[Endpoint | Span | str | int]) -> set[bytes]:
    return {_key(family, member) for member in members}


def _key(family: int, member: Endpoint | Span | str | int) -> bytes:
    """The key as it lies in registers; that of a span is its first one and its last one."""
    if isinstance(member, int):
        return struct.pack("=I", member)
    if isinstance(member, str):
        return socket.inet_pton(nl.FAMILY[family], member)
    protocol, address, *ports = member
    head = bytes([protocol, 0, 0, 0]) + socket.inet_pton(nl.FAMILY[family], address)
    return b"".join(head + struct.pack("!H2x", port) for port in ports)


def _edit(
    table: str, name: str, family: int, kind: int, keys: Iterable[bytes], values: Mapping[bytes, bytes] | None = None
) -> list[nl.Message]:
    """Put elements in or take them out; `values` are further attributes of each."""
    size = _key_type(name, family)[1]
    elements = []
    for key in sorted(keys):
        end = nl.nested(10, nl.attribute(1, key[size:])) if name in INTERVALS else b""
        value = values[key] if values else b""
        elements.append(nl.nested(1, nl.nested(1, nl.attribute(1, key[:size])), end, value))
    flags = nl.CREATE if kind == nl.NEWSETELEM else 0
    head = nl.text(1, table) + nl.text(2, name)
    parts = [elements[i : i + ELEMENTS] for i in range(0, len(elements), ELEMENTS)]
    return [nl.Message(kind, flags, family, head + nl.nested(3, *part)) for part in parts]
