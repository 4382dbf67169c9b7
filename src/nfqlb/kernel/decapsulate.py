"""Packets out of their tunnel on a real server: a BPF program in tc's ingress hook, for IPv4 in IPv4 and IPv6 in IPv6.

Strategy: machines that cannot load the ipip module run the few instructions that it takes here. They stand before the
IP stack, take the outer header off packets whose inner destination is a VIP (RFC 2003, RFC 2473), super-packets
included, and leave all others alone. The program needs no process: it stays until it is detached. It is assembled
from the list of VIPs, since a compiler would be one more thing that a real server lacks.

Formats: include/uapi/linux/bpf.h; the instruction set is RFC 9669.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Sequence

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from nfqlb.errors import MissingError
from nfqlb.kernel import bpf

NAME = "nfqlb-decapsulate"
ACCEPT, SHOT = 0, 2  # TC_ACT_OK, TC_ACT_SHOT
LOAD_BYTES_RELATIVE, ADJUST_ROOM, PULL_DATA = 68, 50, 39  # helpers
LINK_MAX = 18  # bytes of a link's header that may stand before
FROM_NETWORK_HEADER, ROOM_MAC, FIXED_GSO = 1, 1, 1
PROTOCOL = 16  # in struct __sk_buff
STACK = 10  # the frame pointer's register
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
OUTER = {4: 20, 6: 40}
INSIDE = {4: 4, 6: 41}  # the protocol of a packet in a packet
NEXT_HEADER = {4: 9, 6: 6}  # offsets in the IP header
DESTINATION = {4: 16, 6: 24}
FRAGMENT, MORE_OR_OFFSET = 6, 0x3FFF

_INSTRUCTION = struct.Struct("=BBhi")


class Assembler:
    """Instructions with labels to jump to; offsets are filled in at the end."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, str]] = []
        self._labels: dict[str, int] = {}

    def put(self, opcode: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0, jump: str = "") -> None:
        self._code.append((opcode, of << 4 | to, offset, value, jump))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    # the few instructions that are needed; each name says what it does to register `to`

    def move(self, to: int, value: int) -> None:
        self.put(0xB7, to, value=value)

    def copy(self, to: int, of: int) -> None:
        self.put(0xBF, to, of)

    def add(self, to: int, value: int) -> None:
        self.put(0x07, to, value=value)

    def keep(self, to: int, mask: int) -> None:
        self.put(0x57, to, value=mask)

    def load(self, to: int, of: int, offset: int, size: int) -> None:
        self.put({1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}[size], to, of, offset)

    def wide(self, to: int, value: bytes) -> None:
        """The 8 bytes as they lie in memory."""
        low, high = struct.unpack("=ii", value)
        self.put(0x18, to, value=low)
        self.put(0, value=high)

    def if_equal(self, to: int, value: int, jump: str) -> None:
        self.put(0x15, to, value=value, jump=jump)

    def if_other(self, to: int, value: int, jump: str) -> None:
        self.put(0x55, to, value=value, jump=jump)

    def if_registers_differ(self, to: int, of: int, jump: str) -> None:
        self.put(0x5D, to, of, jump=jump)

    def go(self, jump: str) -> None:
        self.put(0x05, jump=jump)

    def call(self, helper: int) -> None:
        self.put(0x85, value=helper)

    def leave(self, verdict: int) -> None:
        self.move(0, verdict)
        self.put(0x95)

    def assembled(self) -> bytes:
        lines = []
        for at, (opcode, registers, offset, value, jump) in enumerate(self._code):
            lines.append(_INSTRUCTION.pack(opcode, registers, self._labels[jump] - at - 1 if jump else offset, value))
        return b"".join(lines)


def assemble(vips: Sequence[str]) -> bytes:
    """The program that takes packets for these VIPs out of their tunnel."""
    code = Assembler()
    code.copy(6, 1)
    code.load(7, 6, PROTOCOL, 4)
    families = sorted({ipaddress.ip_address(vip).version for vip in vips})
    for family in families:
        code.if_equal(7, struct.unpack("=H", struct.pack("!H", ETHERTYPE[family]))[0], f"ip{family}")
    code.label("pass")
    code.leave(ACCEPT)
    for family in families:
        packed = [ipaddress.ip_address(vip).packed for vip in vips if ipaddress.ip_address(vip).version == family]
        code.label(f"ip{family}")
        _family(code, family, packed)
    code.label("drop")
    code.leave(SHOT)
    return code.assembled()


def _family(code: Assembler, family: int, vips: Sequence[bytes]) -> None:
    """Look at both headers on the stack; take the outer one off where the inner one is for a VIP."""
    outer = OUTER[family]
    _read(code, 2 * outer)
    code.if_equal(0, 0, f"read{family}")
    code.copy(1, 6)
    code.move(2, LINK_MAX + 2 * outer)
    code.call(PULL_DATA)  # a packet socket leaves even the headers of a long frame in pages
    _read(code, 2 * outer)
    code.if_other(0, 0, "pass")
    code.label(f"read{family}")
    code.load(1, STACK, NEXT_HEADER[family] - 2 * outer, 1)
    code.if_other(1, INSIDE[family], "pass")
    if family == 4:
        code.load(1, STACK, -2 * outer, 1)
        code.if_other(1, 0x45, "pass")
        code.load(1, STACK, FRAGMENT - 2 * outer, 2)
        code.keep(1, struct.unpack("=H", struct.pack("!H", MORE_OR_OFFSET))[0])
        code.if_other(1, 0, "pass")
    inner = DESTINATION[family] - outer
    if family == 4:
        code.load(1, STACK, inner, 4)
    else:
        code.load(1, STACK, inner, 8)
        code.load(2, STACK, inner + 8, 8)
    for number, vip in enumerate(vips):
        following = f"vip{family}-{number}"
        if family == 4:
            code.wide(3, vip + bytes(4))
        else:
            code.wide(3, vip[:8])
        code.if_registers_differ(1, 3, following)
        if family == 6:
            code.wide(3, vip[8:])
            code.if_registers_differ(2, 3, following)
        code.go(f"take{family}")
        code.label(following)
    code.go("pass")
    code.label(f"take{family}")
    code.copy(1, 6)
    code.move(2, -outer)
    code.move(3, ROOM_MAC)
    code.move(4, FIXED_GSO)
    code.call(ADJUST_ROOM)
    code.if_other(0, 0, "drop")
    code.leave(ACCEPT)


def _read(code: Assembler, size: int) -> None:
    """Copy so many bytes of the packet to the stack, as far as they do not lie in pages; register 0 says whether."""
    code.copy(1, 6)
    code.move(2, 0)
    code.copy(3, STACK)
    code.add(3, -size)
    code.move(4, size)
    code.move(5, FROM_NETWORK_HEADER)
    code.call(LOAD_BYTES_RELATIVE)


def attach(vips: Sequence[str], devices: Sequence[str]) -> None:
    """Have packets for these VIPs taken out of their tunnel where they come in; replaces what was attached before."""
    fd = _load(assemble(vips))
    try:
        with IPRoute() as ip:
            hooked = bpf.hooked(ip)
            for device in devices:
                (index,) = ip.link_lookup(ifname=device)
                bpf.attach(ip, index, fd, NAME, hooked=index in hooked)
    finally:
        os.close(fd)


def detach() -> None:
    """Take the program away wherever it is, and tc's hook with it where nobody else uses that."""
    with IPRoute() as ip:
        for index in bpf.attached(ip, NAME):
            bpf.detach(ip, index, NAME)


def attached() -> list[str]:
    """The interfaces on which it is."""
    with IPRoute() as ip:
        return list(bpf.attached(ip, NAME).values())


def _load(program: bytes) -> int:
    """A file descriptor of the program in the kernel."""
    try:
        return bpf.load(program, "decapsulate")
    except OSError as error:
        raise MissingError(
            f"the kernel takes no BPF program to decapsulate with ({error.strerror}): load the module ipip instead"
        ) from None
