"""The reference engine: netfilterqueue's own loop, one Python callback for each packet, over the same data path.

For debugging, teaching, and as a second opinion in tests: it must come to the same verdicts as the fast engine. It is
an order of magnitude slower, copies at most 4,016 bytes of a packet (longer ones leave with reason `truncated`) and
never asks for super-packets, so the kernel hands it finished checksums only.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection, Sequence
from functools import partial

from netfilterqueue import NetfilterQueue, Packet

from nfqlb._core.datapath import Worker
from nfqlb._core.transmit import Transmitter

HEAD = 8  # types.pxd
MAXLEN = 16384  # packets that may wait
IDLE_POLL = 0.1  # seconds between looks at the timers while nothing arrives


class ReferenceEngine:
    """Same life as queue.FastEngine, with queues that are bound here: (netlink socket or -1 for a new one, queue
    number). Of packets of the `heads` the headers alone are looked at.
    """

    def __init__(self, worker: Worker, queues: Sequence[tuple[int, int]], heads: Collection[int] = ()) -> None:
        self._worker = worker
        self._transmitter = Transmitter()
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queues: list[NetfilterQueue] = []
        self._packets: list[int] = []  # by queue
        for fd, number in queues:
            queue = NetfilterQueue(sockfd=fd)
            flags = HEAD if number in heads else 0
            queue.bind(number, partial(self._handle, len(self._queues), flags), max_len=MAXLEN)
            self._queues.append(queue)
            self._packets.append(0)

    def run(self) -> None:
        """Take and answer packets until `stop` is called."""
        by_fd = {queue.get_fd(): queue for queue in self._queues}
        waiting = select.poll()
        for fd in (*by_fd, self._wake):
            waiting.register(fd, select.POLLIN)
        while not self._stopping:
            for fd, _ in waiting.poll(IDLE_POLL * 1000):
                if fd in by_fd:
                    by_fd[fd].run(block=False)
            self._worker.expire(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        for queue in self._queues:
            queue.unbind()

    def stop(self) -> None:
        """End `run` soon; from any thread or signal handler."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def statistics(self) -> list[dict[str, int]]:
        """As FastEngine.statistics; netfilterqueue keeps its errors to itself."""
        return [{"packets": packets, "overruns": 0, "refused": 0, "ignored": 0} for packets in self._packets]

    def _handle(self, queue: int, flags: int, packet: Packet) -> None:
        self._packets[queue] += 1
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        payload, mark = packet.get_payload(), packet.get_mark()
        result = self._worker.process(payload, now, hook=packet.hook, mark=mark, flags=flags)
        self._transmitter.send(self._worker)
        if result.verdict in ("drop", "transmit"):
            packet.drop()
            return
        if result.packet is not None:
            packet.set_payload(result.packet)
        if result.verdict == "mark":
            packet.set_mark(self._worker.mark)
        packet.accept()
