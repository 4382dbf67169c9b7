"""Netfilter's netlink in as many lines as it takes: attributes, one atomic batch, dumps.

Strategy: pyroute2 knows these messages too, but takes 0.1 ms for each set element and loses the errors of messages
that asked for no acknowledgement; a set of 100,000 services has to be there in one batch. So messages are packed
here: an attribute is bytes, a message is a Message, a batch is one sendmsg that the kernel takes whole or not at all
(net/netfilter/nfnetlink.c, nfnetlink_rcv_batch). The kernel answers before send returns, so no socket ever blocks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
FORCED = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP, DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10
CREATE, APPEND, EMPTY_ONLY = 0x400, 0x800, 0x100  # EMPTY_ONLY (NLM_F_NONREC) with a delete: refuse while it is in use
BATCH_BEGIN, BATCH_END = 0x10, 0x11
SUBSYSTEM_NFTABLES = 10
BOTH = 46  # nftables' inet tables, which see IPv4 and IPv6
NETDEV = 5  # and those of devices
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6, BOTH: 1, NETDEV: NETDEV}

NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)
GETSET, DELSET = 10, 11
NEWSET, NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN = 9, 12, 13, 14, 15, 16
DROP = 0  # a chain's policy, NF_DROP
ADD_MEMBERSHIP, EVENTS = 1, 7  # NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES

_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000


class Message(NamedTuple):
    """One nftables request: its type, the flags beside REQUEST, the family (4, 6 or BOTH) and its attributes."""

    type: int
    flags: int
    family: int
    body: bytes


class Chain(NamedTuple):
    """A base chain: the number of its hook (include/uapi/linux/netfilter.h), and whether it drops what no rule took."""

    table: str
    name: str
    hook: int
    drops: bool


def attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message or of a nested attribute, in order."""
    position = 0
    while position + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (max(length, 4) + 3) & ~3


def batch(messages: Sequence[Message]) -> None:
    """Do all of it in one transaction, or nothing: OSError."""
    if not messages:
        return
    data = [pack(BATCH_BEGIN, REQUEST, 0, _NFGEN.pack(0, 0, SUBSYSTEM_NFTABLES))]
    for index, message in enumerate(messages, 1):
        flags = REQUEST | message.flags | (ACK if index == len(messages) else 0)
        data.append(pack(SUBSYSTEM_NFTABLES << 8 | message.type, flags, index, _body(message)))
    data.append(pack(BATCH_END, REQUEST, len(messages) + 1, _NFGEN.pack(0, 0, SUBSYSTEM_NFTABLES)))
    request = b"".join(data)
    with _open(len(request)) as sock:
        sock.send(request)
        done = False
        for kind, _, sequence, payload in received(sock):
            if kind == NLMSG_ERROR:
                code = -int(struct.unpack_from("=i", payload)[0])
                if code:
                    raise OSError(code, os.strerror(code))
                done = done or sequence == len(messages)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def dump(kind: int, family: int, body: bytes = b"") -> list[bytes]:
    """The attributes of every object of that kind, as one consistent view; ENOENT where what is named isn't there."""
    for _ in range(10):
        with _open() as sock:
            flags = REQUEST | DUMP
            sock.send(pack(SUBSYSTEM_NFTABLES << 8 | kind, flags, 1, _body(Message(kind, 0, family, body))))
            found, interrupted, complete = [], False, False
            for reply, reply_flags, _, payload in received(sock):
                interrupted = interrupted or bool(reply_flags & DUMP_INTERRUPTED)
                if reply in (NLMSG_ERROR, NLMSG_DONE):
                    code = -int(struct.unpack_from("=i", payload)[0]) if payload else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    complete = True
                    break
                found.append(payload[4:])
            if complete and not interrupted:
                return found
    raise OSError(errno.EINTR, "the rules change faster than they can be read")


def base_chains(family: int) -> Iterator[Chain]:
    """Those of everybody (include/uapi/linux/netfilter/nf_tables.h, NFTA_CHAIN_*)."""
    for body in dump(GETCHAIN, family):
        fields = dict(attributes(body))
        if 4 in fields:
            table, name = (fields[at][:-1].decode() for at in (1, 3))
            hook = int.from_bytes(dict(attributes(fields[4]))[1], "big")
            yield Chain(table, name, hook, int.from_bytes(fields.get(5, b"\1"), "big") == DROP)


def generation() -> int:
    """A number that changes with every change to nftables (and iptables-nft) in this network namespace."""
    with _open() as sock:
        sock.send(pack(SUBSYSTEM_NFTABLES << 8 | GETGEN, REQUEST, 1, _NFGEN.pack(0, 0, 0)))
        for kind, _, _, payload in received(sock):
            if kind == NLMSG_ERROR:
                break
            return int(struct.unpack("!I", dict(attributes(payload[4:]))[1])[0])
    raise OSError(errno.EOPNOTSUPP, "this kernel has no nftables")


class Events:
    """Readable when somebody changed nftables (or iptables-nft) in this network namespace; needs CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._socket = _open()
        try:
            self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, EVENTS)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def others(self) -> bool:
        """Whether another process did it, or there was more than could be kept. The kernel names threads."""
        try:
            messages = list(received(self._socket))
        except OSError:
            return True
        bodies = [payload[4:] for kind, _, _, payload in messages if kind == SUBSYSTEM_NFTABLES << 8 | NEWGEN]
        threads = {int.from_bytes(dict(attributes(body)).get(2, b""), "big") for body in bodies}
        return not threads <= set(map(int, os.listdir("/proc/self/task")))

    def close(self) -> None:
        self._socket.close()


def _open(size: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.setblocking(False)
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # errors come back without a copy of the request
    widen(sock, socket.SO_SNDBUF, max(1 << 20, 2 * size))
    widen(sock, socket.SO_RCVBUF, 1 << 20)
    return sock


def widen(sock: socket.socket, option: int, size: int) -> None:
    """Give a buffer of a socket so many bytes, or as many as the machine lets everybody have."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, FORCED[option], size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def received(sock: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each message that a socket that never blocks has now."""
    while True:
        try:
            data = sock.recv(1 << 18)
        except BlockingIOError:
            return
        position = 0
        while position + _HEADER.size <= len(data):
            length, kind, message_flags, sequence, _ = _HEADER.unpack_from(data, position)
            yield kind, message_flags, sequence, data[position + _HEADER.size : position + length]
            position += (length + 3) & ~3


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message with netlink's own header."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _body(message: Message) -> bytes:
    return _NFGEN.pack(FAMILY.get(message.family, 0), 0, 0) + message.body
