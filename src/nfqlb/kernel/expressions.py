"""The few nftables expressions that a diverter needs, each as the bytes of one rule element.

Strategy: a rule is a list of these. Registers are the 32-bit ones; a key of several fields lies in consecutive
registers, every field padded to four bytes, which is how concatenated set keys are laid out, too.
"""

from __future__ import annotations

import struct

from nfqlb.kernel.netlink import attribute, nested, number, text

NETWORK, TRANSPORT = 1, 2  # what a payload offset counts from
EQUAL, DIFFERENT = 0, 1
ACCEPT, JUMP, GOTO = 1, -3, -4
FIRST = 8  # NFT_REG32_00


def meta_protocol(register: int = FIRST) -> bytes:
    """The transport protocol, behind IPv6 extension headers as well."""
    return _expression("meta", number(1, register), number(2, 16))


def payload(base: int, offset: int, length: int, register: int = FIRST) -> bytes:
    """Bytes of the packet; the rule does not match where there are none, as in a later fragment's transport header."""
    return _expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def fragment_header(offset: int, length: int, register: int = FIRST) -> bytes:
    """Bytes of the IPv6 fragment header; the rule does not match where there is none."""
    fields = (number(1, register), attribute(2, b"\x2c"), number(3, offset), number(4, length))
    return _expression("exthdr", *fields)


def masked(mask: bytes, register: int = FIRST) -> bytes:
    values = (nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(len(mask)))))
    return _expression("bitwise", number(1, register), number(2, register), number(3, len(mask)), *values)


def compare(operator: int, value: bytes, register: int = FIRST) -> bytes:
    return _expression("cmp", number(1, register), number(2, operator), nested(3, attribute(1, value)))


def lookup(name: str, *, absent: bool = False, register: int = FIRST) -> bytes:
    """The key is in the set; with `absent` it is not."""
    return _expression("lookup", text(1, name), number(2, register), number(5, int(absent)))


def verdict_map(name: str, register: int = FIRST) -> bytes:
    """What the map says for the key becomes the verdict."""
    return _expression("lookup", text(1, name), number(2, register), number(3, 0))


def hashed(length: int, modulus: int, seed: int, register: int = FIRST) -> bytes:
    """Replace the key by its hash (Jenkins), reduced to 0 .. modulus-1."""
    fields = (number(1, register), number(2, register), number(3, length), number(4, modulus), number(5, seed))
    return _expression("hash", *fields, number(7, 0))


def verdict_data(code: int, chain: str = "") -> bytes:
    """The attributes of a verdict, for a rule or a map's element."""
    return nested(2, number(1, code), *([text(2, chain)] if chain else []))


def verdict(code: int, chain: str = "") -> bytes:
    return _expression("immediate", number(1, 0), nested(2, verdict_data(code, chain)))


def meta_mark(register: int = FIRST) -> bytes:
    """The packet's netfilter mark."""
    return _expression("meta", number(1, register), number(2, 3))


def learn(name: str, register: int = FIRST) -> bytes:
    """Put the key into the set, or let it begin its time anew; the rule ends here where the set is full."""
    return _expression("dynset", text(1, name), number(3, 1), number(4, register))


def data(value: bytes, register: int = FIRST) -> bytes:
    return _expression("immediate", number(1, register), nested(2, attribute(1, value)))


def write_tcp_option(kind: int, offset: int, length: int, register: int = FIRST) -> bytes:
    """Write into a TCP option that is there; of kind 2, the MSS, only what is lower."""
    fields = (attribute(2, bytes([kind])), number(3, offset), number(4, length), number(6, 1), number(7, register))
    return _expression("exthdr", *fields)


def notrack() -> bytes:
    return _expression("notrack")


def nfqueue(queue: int, *, bypass: bool = False) -> bytes:
    """iptables' NFQUEUE target through nft_compat: struct xt_NFQ_info_v3 in native order, padded to 8."""
    info = struct.pack("=HHH2x", queue, 1, bypass)
    return _expression("target", text(1, "NFQUEUE"), number(2, 3), attribute(3, info))


def socket_match() -> bytes:
    """iptables' socket match through nft_compat: struct xt_socket_mtinfo1, no flags, padded to 8."""
    return _expression("match", text(1, "socket"), number(2, 1), attribute(3, bytes(8)))


def _expression(name: str, *fields: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *fields))
