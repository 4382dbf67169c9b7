"""What is fuzzed: each target makes any bytes into a run of the core that must hold its audits.

`packet`: the bytes are one packet, at every hook with every flag, among connections. `sequence`: they are a script
(ext/nfqlb/_core/script.pyx). `table`: they are laid over the table file of a director that died; the next one adopts
it, and serves.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from functools import cache

from tests.fuzz.world import KINDS, NUMBERS, world

SEND, WAIT, PUBLISH, STAND_BY = range(4)
# docs/table.md, layout 2, with the 1024 slots of a small table
HEADER, SLOTS, SLOT, ENTRIES, ENTRY, LAST = 0, 4096, 48, 4096 + 1024 * 48, 128, 64
PATCH = struct.Struct("<BHB8s")  # part and length, number of the slot or entry, offset in it, bytes


def step(
    kind: int, what: int = 0, flow: int = 0, count: int = 1, way: int = 0, change: tuple[int, int] = (0, 0)
) -> bytes:
    """One step of a script (script.pyx names its bytes); `change` is a place and what is XORed in."""
    return bytes((kind, what, flow, count - 1, way, *change, 0))


def send(name: str, flow: int = 0, count: int = 1, way: int = 0) -> bytes:
    return step(SEND, NUMBERS[name], flow, count, way)


# connections of all kinds in all states; and later something for each of them, and for new ones
OPEN = b"".join(send(name, number % 5, 2) for number, name in enumerate(KINDS)) + send("udp", 0, 8)
SERVE = b"".join(send(name, 0, 8) for name in KINDS) + step(WAIT, 255, 1, change=(0, 4))
SERVE += send("tcp_syn", 0, 64) + send("udp", 64, 64)


def packet(data: bytes) -> int:
    player = world()
    player.play(OPEN)
    before = player.packets
    player.every_way(data)
    player.finish()
    return player.packets - before


def sequence(data: bytes) -> int:
    player = world()
    player.play(data)
    player.finish()
    return player.packets


def table(data: bytes) -> int:
    fd, image = table_file()
    with mmap.mmap(fd, len(image)) as memory:
        memory[:] = image
        for part, number, at, replaced in PATCH.iter_unpack(data[: len(data) // PATCH.size * PATCH.size]):
            replaced = replaced[: 1 + part // 4 % 8]
            for place in places(part % 4, number, at):
                memory[place : place + len(replaced)] = replaced[: len(memory) - place]
    player = world(fd)
    player.audit()
    player.play(SERVE)
    player.finish()
    return player.packets


def places(part: int, number: int, at: int) -> list[int]:
    """Where a patch goes: the header, one slot, one entry, or the same place of every entry."""
    if part == 0:
        return [HEADER + (number * 256 + at) % SLOTS]
    if part == 1:
        return [SLOTS + number % 1024 * SLOT + at % SLOT]
    if part == 2:
        return [ENTRIES + number % (LAST + 1) * ENTRY + at % ENTRY]
    return [ENTRIES + entry * ENTRY + at % ENTRY for entry in range(LAST + 1)]


@cache
def table_file() -> tuple[int, bytes]:
    """A file in memory, and what a director left in it that died in the middle of its work."""
    fd = os.memfd_create("table")
    world(fd).play(OPEN)
    return fd, os.pread(fd, os.fstat(fd).st_size, 0)


# each returns how many packets it is about
TARGETS: dict[str, Callable[[bytes], int]] = {"packet": packet, "sequence": sequence, "table": table}
