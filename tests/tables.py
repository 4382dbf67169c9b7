"""A table's file, looked at from outside: what the next director would make of it, and whether that is whole."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import NamedTuple

from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath
from nfqlb._core.script import Player
from nfqlb._core.snapshot import Snapshot
from nfqlb.testing import PREROUTING, udp

CAPACITY_AT = 16  # docs/table.md: magic, layout, capacity


class Found(NamedTuple):
    """Connections (and templates), entries that made no sense, and each connection's client and real server."""

    adopted: int
    torn: int
    flows: set[tuple[bytes, int, bytes, int]]


def audit(file: bytes) -> Found:
    """Adopt these bytes as a director does; AssertionError with what does not hold of the table then."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with tempfile.TemporaryFile(dir="/dev/shm") as memory:
        memory.write(file)
        memory.flush()
        table = Table(memory.fileno(), int.from_bytes(file[CAPACITY_AT : CAPACITY_AT + 8], sys.byteorder), now)
        assert not table.lost, table.lost
        datapath = Datapath(table)
        packet = udp("192.0.2.1:1", "192.0.2.2:2"), PREROUTING, 0, 0, 0
        Player(datapath, [datapath.worker()], [Snapshot([])], [packet], now).audit()
        rows = table.connections(now)
        assert len(rows) == table.adopted == table.used
        return Found(table.adopted, table.torn, {(row[1], row[2], row[5], row[6]) for row in rows})
