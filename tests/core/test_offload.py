"""What the director does with flows that the kernel forwards: the test is the kernel, and counts in its memory."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from nfqlb._core.follow import Follower
from nfqlb._core.offload import Offload
from nfqlb.kernel import bpf
from nfqlb.testing import FORWARD, FakeClock, tcp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="BPF maps need root")

RING = 1 << 18
FIN, FIRST = 1, 16  # offload.h, of the client; << 1 of the real server
WEB = Virtual(VIP, {REAL: 1})
STICKY = Virtual(VIP, {REAL: 1}, persistence=300)


class Kernel:
    """Maps as the program has them, and a follower, for a lab."""

    def __init__(self, *virtuals: Virtual, capacity: int = 64) -> None:
        self.fds = [
            bpf.create("flows", bpf.HASH, Offload.KEY, Offload.FLOW, 2 * capacity, bpf.NO_PREALLOC),
            bpf.create("places", bpf.ARRAY, 4, Offload.PLACE, capacity + 1, bpf.MMAPABLE),
            bpf.create("control", bpf.ARRAY, 4, Offload.CONTROL, 1, bpf.MMAPABLE),
            bpf.create("events", bpf.RINGBUF, 0, 0, RING),
        ]
        self.places = mmap.mmap(self.fds[1], (capacity + 1) * Offload.PLACE)
        self.clock = FakeClock()
        self.lab = Lab(*virtuals, clock=self.clock)
        self.offload = Offload(*self.fds, RING, capacity)
        self.lab.datapath.hand_down(self.offload)
        self.follower = Follower(self.lab.datapath)

    def close(self) -> None:
        self.places.close()
        for fd in self.fds:
            os.close(fd)

    @property
    def flows(self) -> int:
        return self.offload.statistics()["flows"]

    def passed(self, place: int, requests: int = 0, replies: int = 0, ended: int = 0) -> None:
        """So many packets of a place were forwarded, and these ends seen, in all."""
        at = place * Offload.PLACE
        struct.pack_into("=4QI", self.places, at, requests, 40 * requests, replies, 40 * replies, ended)

    def answer(self, client: str = CLIENT) -> None:
        """A client's SYN and its real server's answer, which hands the connection down."""
        assert self.lab.send(tcp(client, VIP, "S")).reason == "forwarded"
        assert self.lab.send(tcp(REAL, client, "SA"), hook=FORWARD).reason == "returned"

    def look(self) -> None:
        self.follower.go_through(self.clock())

    def state(self) -> str:
        """Of the only connection."""
        (found,) = (row.name for row in self.lab.connections() if not row.template)
        return found


@pytest.fixture
def made() -> Iterator[list[Kernel]]:
    kernels: list[Kernel] = []
    yield kernels
    for kernel in kernels:
        kernel.close()


def test_a_syn_on_the_ports_of_an_old_connection_begins_with_a_place_of_its_own(made: list[Kernel]) -> None:
    """Persistence has it go on with the old entry, whose place has seen both ends."""
    made.append(kernel := Kernel(STICKY))
    kernel.answer()
    kernel.passed(1, 5, 5, ended=FIN | FIN << 1 | FIRST)
    kernel.look()
    assert (kernel.state(), kernel.flows) == ("TIME_WAIT", 1)
    kernel.answer()
    kernel.look()
    assert (kernel.state(), kernel.flows) == ("SYN_RECV", 1)
    kernel.passed(2, 5, 5, ended=FIN | FIN << 1 | FIRST)
    kernel.look()
    assert kernel.state() == "TIME_WAIT"
