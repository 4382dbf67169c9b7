"""The kernel's view of its packet queues, as /proc/net/netfilter/nfnetlink_queue shows it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

RECEIVE_BUFFER = 8 << 20  # bytes of a queue's socket that bursts take
TABLE = Path("/proc/net/netfilter/nfnetlink_queue")


class Queue(NamedTuple):
    """One bound queue: who holds it, how many packets wait, and how many were lost so far."""

    number: int
    portid: int  # netlink port of the listener: usually its pid
    waiting: int
    queue_dropped: int  # the queue was full
    user_dropped: int  # the socket's receive buffer was full


def queues() -> dict[int, Queue]:
    """Every bound queue of this network namespace, by number."""
    try:
        lines = TABLE.read_text().splitlines()
    except OSError:
        return {}
    rows = (list(map(int, line.split())) for line in lines)
    return {row[0]: Queue(row[0], row[1], row[2], row[5], row[6]) for row in rows}
