"""A set of queues and the thread that answers them.

Strategy: netfilterqueue opens and binds a queue on a socket that the holder keeps, the fast engine drives that socket.
After a crash of the director the socket is bound still and packets wait in it: then nothing is bound or configured
again, the engine just goes on. The kernel says which case it is, by the port id of the socket. The reference engine
opens sockets of its own and loses what waited.

A queue is bound with COPY_NONE, which delivers nothing, and gets its real settings in one message: also where rules of
a director that was killed still lead to that number, no packet comes before its time.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from netfilterqueue import COPY_NONE, NetfilterQueue, Packet

from nfqlb._core.datapath import Worker as CoreWorker
from nfqlb._core.queue import FastEngine, configure
from nfqlb.errors import KernelError, TakenError
from nfqlb.kernel import netlink
from nfqlb.kernel.queues import RECEIVE_BUFFER
from nfqlb.kernel.queues import Queue as Listener
from nfqlb.reference import MAXLEN, ReferenceEngine
from nfqlb.runconfig import QUEUES, QUEUES_PER_WORKER

SOCKETS = Path("/proc/net/netlink")
FIRST = 4096
NUMBERS = 65536
COPIED = {
    "gso": 65535,
    "plain": 65535,
    "head": 128,
    "syn": 65535,
}  # bytes of a packet, by class; a head has all that parse looks at
SEND_BUFFER = 16 << 20


class Engine(Protocol):
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def statistics(self) -> list[dict[str, int]]: ...


@dataclass(frozen=True)
class Queue:
    """One queue of a worker. `bound`: a predecessor bound the socket to it, and rules may lead there."""

    socket: socket.socket
    number: int
    kind: str  # its class, one of runconfig.QUEUES
    bound: bool


def assign(sockets: Sequence[socket.socket], first: int | None, taken: dict[int, Listener]) -> list[list[Queue]]:
    """Give the sockets their queues, per worker: those they are bound to, else `first` and up, else a free block."""
    owned = {listener.portid: listener.number for listener in taken.values()}
    known = [owned[portid] for portid in (s.getsockname()[0] for s in sockets) if portid in owned]
    if len(known) == len(sockets):
        numbers, bound = known, True
    else:
        numbers, bound = _block(len(sockets), first, taken), False
    workers = len(sockets) // QUEUES_PER_WORKER  # numbers of a class follow each other
    return [
        [Queue(sockets[i + at * workers], numbers[i + at * workers], kind, bound) for at, kind in enumerate(QUEUES)]
        for i in range(workers)
    ]


def _block(count: int, first: int | None, taken: dict[int, Listener]) -> list[int]:
    if first is not None:
        for number in range(first, first + count):
            if number in taken:
                pids = " and ".join(map(str, _readers(taken[number].portid))) or "unknown"
                raise TakenError(f"queue {number} is read by another process (pid {pids}); choose another --queue")
        return list(range(first, first + count))
    for start in range(FIRST, NUMBERS - count + 1):
        if taken.keys().isdisjoint(range(start, start + count)):
            return list(range(start, start + count))
    raise TakenError(f"no {count} free queues in a row from {FIRST} on; name some by --queue")


def _readers(portid: int) -> list[int]:
    """Processes that hold the netlink socket with this port id, as far as they can be seen."""
    rows = [line.split() for line in SOCKETS.read_text().splitlines()[1:]]  # sk Eth Pid ... Inode
    links = {f"socket:[{row[-1]}]" for row in rows if (row[1], row[2]) == (str(netlink.NETLINK_NETFILTER), str(portid))}
    pids = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(fd) in links:
                pids.add(int(fd.parts[2]))
    return sorted(pids)


class Worker:
    """One thread with its queues. `died` hears of an engine that ends without being told to, and why; `bypass` lets
    packets that a full queue has no room for pass.
    """

    def __init__(
        self,
        core: CoreWorker,
        queues: Sequence[Queue],
        engine: str,
        died: Callable[[str], None],
        *,
        bypass: bool = False,
    ) -> None:
        self.queues = queues
        self._core, self._kind, self._died, self._bypass = core, engine, died, bypass
        self._bindings: list[NetfilterQueue] = []
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> list[str]:
        """Bind what is not bound yet and begin to answer; returns warnings."""
        warnings: list[str] = []
        heads, firsts = ([queue.number for queue in self.queues if queue.kind == kind] for kind in ("head", "syn"))
        try:
            if self._kind == "reference":
                self._engine = ReferenceEngine(self._core, [(-1, queue.number) for queue in self.queues], heads)
            else:
                for queue in self.queues:
                    if not queue.bound:
                        warnings += widen(queue.socket)
                        self._bind(queue)
                fds = [(queue.socket.fileno(), queue.number) for queue in self.queues]
                self._engine = FastEngine(self._core, fds, heads, firsts)
        except OSError as error:
            numbers = ", ".join(str(queue.number) for queue in self.queues)
            raise KernelError(f"cannot bind queues {numbers}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._run, name=f"queue-{self.queues[0].number}", daemon=True)
        self._thread.start()
        return warnings

    def let_go(self) -> None:
        """End the thread after the batch that it has in hand; the queues stay bound, and packets wait in them."""
        self._stopping = True
        if self._engine and self._thread:
            self._engine.stop()
            self._thread.join(5)

    def stop(self) -> None:
        """End the thread and unbind the queues."""
        self.let_go()
        while self._bindings:
            self._bindings.pop().unbind()

    def info(self, seen: dict[int, Listener]) -> list[dict[str, object]]:
        """For each queue what the kernel (`seen`) and the engine count."""
        counted = self._engine.statistics() if self._engine else [{} for _ in self.queues]
        return [
            {
                "number": queue.number,
                "class": queue.kind,
                "waiting": seen[queue.number].waiting if queue.number in seen else 0,
                "queue_dropped": seen[queue.number].queue_dropped if queue.number in seen else 0,
                "user_dropped": seen[queue.number].user_dropped if queue.number in seen else 0,
                **({"buffer": _room(queue.socket, socket.SO_RCVBUF)} if self._kind == "fast" else {}),
                **counts,
            }
            for queue, counts in zip(self.queues, counted, strict=True)
        ]

    def _bind(self, queue: Queue) -> None:
        fd = queue.socket.fileno()
        # The package sets the receive buffer too: asked for what it is already, it changes nothing and does not warn.
        size = _room(queue.socket, socket.SO_RCVBUF)
        binding = NetfilterQueue(sockfd=fd)
        binding.bind(queue.number, Packet.drop, max_len=MAXLEN, mode=COPY_NONE, sock_len=size)
        self._bindings.append(binding)
        try:
            gso, size = queue.kind != "plain", COPIED[queue.kind]
            configure(fd, queue.number, gso=gso, copy_range=size, maxlen=MAXLEN, fail_open=self._bypass)
        except OSError as error:
            # Settings count at once: a packet may overtake their acknowledgement, and the engine has it repeated.
            if error.errno != errno.EPROTO:
                raise

    def _run(self) -> None:
        assert self._engine
        reason = "it returned"
        try:
            self._engine.run()
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
        if not self._stopping:
            self._died(f"the thread of queue {self.queues[0].number} ended: {reason}")


def widen(sock: socket.socket) -> list[str]:
    """Give a queue's socket room for bursts, forced where allowed; a warning where the machine's limit is too low."""
    warnings = []
    for option, size, sysctl in (
        (socket.SO_RCVBUF, RECEIVE_BUFFER, "net.core.rmem_max"),
        (socket.SO_SNDBUF, SEND_BUFFER, "net.core.wmem_max"),
    ):
        netlink.widen(sock, option, size)
        got = _room(sock, option)
        if got < size:
            warnings.append(f"the buffer of a queue is {got} bytes, bursts will be lost: sysctl -w {sysctl}={size}")
    return warnings


def _room(sock: socket.socket, option: int) -> int:
    """The size of a buffer as it was asked for: the kernel doubles it for its bookkeeping."""
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


def inherited(fds: Sequence[int]) -> list[socket.socket]:
    """The holder's sockets, for this process only."""
    for fd in fds:
        os.set_inheritable(fd, False)
    return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER, fileno=fd) for fd in fds]
