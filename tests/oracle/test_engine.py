"""The recorded series once more, through the fast engine: its receiving, decoding, batches and verdicts.

A pair of datagram sockets stands where the kernel's netlink is; the messages are those of NFQUEUE
(include/uapi/linux/netfilter/nfnetlink_queue.h). What the reference engine calls for each packet is what
test_schedulers calls.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from types import TracebackType
from typing import Any, Self

import pytest

from nfqlb._core.datapath import Result
from nfqlb._core.queue import FastEngine
from nfqlb._core.snapshot import Service, Snapshot
from tests.oracle.test_schedulers import SERIES, Replay

NUMBER = 4096  # of the queue
PACKET, PACKET_HEADER, PAYLOAD, MARK, VERDICT = 3 << 8, 1, 10, 3, 2
PACKET_MESSAGE, ACCEPT = 3 << 8 | 0, 1
SECONDS = 30  # that a verdict may take
VERDICTS = {0: "drop", 1: "accept"}


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(len(value) + 3 & ~3, b"\0")


class Engine:
    """A fast engine on a core's first worker."""

    def __init__(self, replay: Replay) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.settimeout(SECONDS)
        self.theirs, self.numbers = theirs, itertools.count(1)
        self.engine = FastEngine(replay.lab.workers[0], [(theirs.fileno(), NUMBER)])
        self.thread = threading.Thread(target=self.engine.run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.engine.stop()
        self.thread.join(SECONDS)
        del self.engine
        self.ours.close()
        self.theirs.close()

    def send(self, packet: bytes, *, hook: int = 0, mark: int = 0) -> Result:
        number = next(self.numbers)
        body = struct.pack("=BBH", 2, 0, socket.htons(NUMBER))
        body += attribute(PACKET_HEADER, struct.pack("!IHB", number, 0x0800, hook))
        body += attribute(MARK, struct.pack("!I", mark)) if mark else b""
        body += attribute(PAYLOAD, packet)
        self.ours.send(struct.pack("=IHHII", 16 + len(body), PACKET_MESSAGE, 0, 0, 0) + body)
        while True:  # the first verdict is for what a predecessor might have left
            answer = self.ours.recv(65536)
            verdict, about = struct.unpack_from("!II", answer, 24)
            if about == number:
                break
        length = struct.unpack_from("=H", answer, 32)[0] - 4 if len(answer) > 32 else 0
        if length:
            return Result("rewrite", "", answer[36 : 36 + length])
        return Result(VERDICTS[verdict], "no_server" if verdict == 0 else "", None)


class FastReplay(Replay):
    """As it is, but that who gets no server is told nothing: an answer would leave this machine."""

    def publish(self) -> None:
        servers = [(self.slot(number), *self.end(number), weight, "nat") for number, weight in self.servers]
        how = self.series["scheduler"], servers, self.service
        self.service = Service(*self.key, *how, mark=self.mark, flags=self.series["flags"])
        self.lab.datapath.publish(Snapshot([self.service], no_server="drop"))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # the engine's own sockets, which live as long as it does
def test_the_fast_engine_chooses_and_counts_as_the_kernel_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    different: list[dict[str, Any]] = []
    for series in SERIES:
        replay = FastReplay(series)
        with Engine(replay) as engine:
            monkeypatch.setattr(replay.lab, "send", engine.send)
            sequence, counters = replay.run()
        if (sequence, counters) != (series["sequence"], series["counters"]):
            different.append(series)
    with capsys.disabled():
        print(f"\noracle, fast engine: {len(SERIES) - len(different)} of {len(SERIES)} series equal")
    assert different == []
    assert len(SERIES) == 247
