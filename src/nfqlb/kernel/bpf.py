"""BPF programs and maps by bpf(2) itself: made, loaded from an object file, attached to tc's hooks.

Strategy: what this project loads are single programs of tc, each with a handful of maps, so the few lines that read
them from an ELF file stand here and libbpf is one thing less that a machine needs. A filter is ours by its name. It has
a priority of its own, behind those that tc gives out by itself (49152 and before), so that others' filters see packets
first; the hook is made where there is none, and goes with the last filter in it.

Formats: include/uapi/linux/bpf.h; elf(5); the relocation R_BPF_64_64 is in Documentation/bpf/llvm_reloc.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError

SYS_BPF = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, PROG_LOAD, PROG_QUERY = 0, 5, 16
HASH, ARRAY, RINGBUF = 1, 2, 27  # map types
NO_PREALLOC, MMAPABLE = 1, 1 << 10
SCHED_CLS, TCX_EGRESS = 3, 47
INGRESS, CLSACT = "ffff:fff2", 0xFFFF0000
HOOKS = (0xFFFFFFF2, 0xFFFFFFF3)  # ingress and egress
LAST = 50000  # priority
LOG_BYTES = 1 << 20
LOAD_MAP, MAP_FD = 0x18, 1  # an instruction that loads 64 bits, and its source register: those are a map

_ELF = struct.Struct("<4s4B8xHH20xQ10xHHH")  # magic, class, order, ..., machine; sections: offset, size, count, names
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_INSTRUCTION = struct.Struct("<BBhi")
_MAP = struct.Struct("=7I16s")
_LOAD = struct.Struct("=IIQQIIQII16s")
_QUERY = struct.Struct("=4IQ2I")
SYMBOLS, RELOCATIONS = 2, 9  # section types
MACHINE = 247  # EM_BPF


class Program(NamedTuple):
    """Instructions, and where in them the maps stand: byte offset -> name."""

    code: bytes
    maps: Mapping[int, str]


def read(data: bytes, section: str) -> Program:
    """The program of that section of an object file; ValueError where there is none."""
    try:
        magic, kind, order, _, _, _, machine, at, size, count, names = _ELF.unpack_from(data)
        headers = [_SECTION.unpack_from(data, at + size * number) for number in range(count)]
        texts = [_text(data, headers[names], header[0]) for header in headers]
        number = texts.index(section)
        symbols = next(header for header in headers if header[1] == SYMBOLS)
        strings = headers[symbols[6]]
        maps = {}
        for header in headers:
            if header[1] != RELOCATIONS or header[7] != number:
                continue
            for offset, info in _RELOCATION.iter_unpack(_body(data, header)):
                symbol = _SYMBOL.unpack_from(_body(data, symbols), _SYMBOL.size * (info >> 32))
                maps[offset] = _text(data, strings, symbol[0])
    except (struct.error, StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"no BPF object file: {error}") from None
    if magic != b"\x7fELF" or (kind, order, machine) != (2, 1, MACHINE):
        raise ValueError("no BPF object file of this byte order")
    return Program(_body(data, headers[number]), maps)


def _body(data: bytes, header: tuple[int, ...]) -> bytes:
    return data[header[4] : header[4] + header[5]]


def _text(data: bytes, strings: tuple[int, ...], offset: int) -> str:
    body = _body(data, strings)
    return body[offset : body.index(b"\0", offset)].decode()


def linked(program: Program, maps: Mapping[str, int]) -> bytes:
    """The instructions with the file descriptors of these maps in them."""
    code = bytearray(program.code)
    for offset, name in program.maps.items():
        opcode, registers, _, _ = _INSTRUCTION.unpack_from(code, offset)
        if opcode != LOAD_MAP or name not in maps:
            raise ValueError(f"the program wants {name}, which is no map of ours")
        _INSTRUCTION.pack_into(code, offset, opcode, registers & 15 | MAP_FD << 4, 0, maps[name])
    return bytes(code)


def create(name: str, kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A file descriptor of a new map; key and value in bytes. OSError where the kernel makes none."""
    return _bpf(MAP_CREATE, _MAP.pack(kind, key, value, entries, flags, 0, 0, name.encode()))


def load(code: bytes, name: str) -> int:
    """A file descriptor of a program for tc in the kernel; OSError where it refuses, with the verifier's last words."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(instructions), ctypes.addressof(licence)

    def attributes(level: int, size: int, log: int) -> bytes:
        return _LOAD.pack(SCHED_CLS, len(code) // 8, *where, level, size, log, 0, 0, name.encode()[:15])

    try:
        return _bpf(PROG_LOAD, attributes(0, 0, 0))
    except OSError as error:
        log = ctypes.create_string_buffer(LOG_BYTES)
        try:
            return _bpf(PROG_LOAD, attributes(1, LOG_BYTES, ctypes.addressof(log)))
        except OSError:
            words = " ".join(log.value.decode(errors="replace").splitlines()[-3:])
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)} {words}".strip()) from None


def _bpf(command: int, attributes: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128))


def _call(command: int, union: ctypes.Array[ctypes.c_char]) -> int:
    number = SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf() is not known on {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, command, union, len(union))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


# --- tc ---------------------------------------------------------------------------------------------------------------


def hooked(ip: IPRoute) -> set[int]:
    """The interfaces that have tc's hook."""
    return {int(qdisc["index"]) for qdisc in ip.get_qdiscs() if qdisc["handle"] == CLSACT}


def attach(ip: IPRoute, index: int, fd: int, name: str, *, hooked: bool) -> None:
    """Have the program see what comes in by an interface, in place of one of that name that did; never neither."""
    try:
        if not hooked:
            ip.tc("add", "clsact", index)
        before = ours(ip, index, name)
        more: dict[str, Any] = {"prio": before[0]["info"] >> 16 if before else LAST}
        if before:
            more["handle"] = before[0]["handle"]
        verb = "replace-filter" if before else "add-filter"
        ip.tc(verb, "bpf", index, fd=fd, name=name, parent=INGRESS, classid=1, direct_action=True, **more)
    except NetlinkError as error:
        why = os.strerror(error.code)
        raise KernelError(f"tc on interface {index}: {why} (kernel modules sch_ingress, cls_bpf)") from error


def detach(ip: IPRoute, index: int, name: str) -> None:
    """Take the programs of that name away from an interface that has the hook, and it with them where nobody else uses
    it.
    """
    found = ours(ip, index, name)
    for message in found:
        where = {"parent": message["parent"], "prio": message["info"] >> 16}
        ip.tc("del-filter", "bpf", index, message["handle"], **where)
    if found and not _filters(ip, index):
        ip.tc("del", "clsact", index)


def attached(ip: IPRoute, name: str) -> dict[int, str]:
    """The interfaces that have a program of that name: index -> name."""
    there = hooked(ip)
    links = {int(link["index"]): str(link.get("ifname")) for link in ip.get_links() if link["index"] in there}
    return {index: link for index, link in links.items() if ours(ip, index, name)}


def ours(ip: IPRoute, index: int, name: str) -> list[Any]:
    """The filters of that name on an interface that has the hook."""
    return [
        message
        for message in _filters(ip, index)
        if message.get("kind") == "bpf" and message.get("options").get_attr("TCA_BPF_NAME") == name
    ]


def leaving(ip: IPRoute, index: int, *, hooked: bool) -> bool:
    """Whether a filter or a program sees what leaves by an interface."""
    return _programs(index) > 0 or (hooked and any(message["parent"] == HOOKS[1] for message in _filters(ip, index)))


def _programs(index: int) -> int:
    """How many programs stand on the way out of an interface (tcx, Linux 6.6)."""
    attributes = ctypes.create_string_buffer(_QUERY.pack(index, TCX_EGRESS, 0, 0, 0, 0, 0).ljust(128, b"\0"), 128)
    try:
        _call(PROG_QUERY, attributes)
    except OSError as error:
        return 0 if error.errno == errno.EINVAL else 1  # a kernel that has none of that
    return int(_QUERY.unpack_from(attributes)[5])


def _filters(ip: IPRoute, index: int) -> list[Any]:
    """Every filter of either hook; the kernel lists each priority too, as a filter without a handle."""
    found = (message for parent in HOOKS for message in ip.get_filters(index=index, parent=parent))
    return [message for message in found if message["handle"]]
