"""What the director does with flows that the kernel forwards: the test is the kernel, and counts in its memory."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from time import CLOCK_BOOTTIME, clock_gettime_ns

import pytest

from nfqlb._core.follow import Follower
from nfqlb._core.offload import Offload
from nfqlb._core.snapshot import Hop
from nfqlb.kernel import bpf
from nfqlb.testing import FORWARD, INPUT, FakeClock, endpoint, icmp, ip, tcp
from tests.core.lab import CLIENT, DEFAULTS, KIND, LINK, REAL, VIP, Lab, Policy, Virtual, clients

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="BPF maps need root")

RING = 1 << 18
OTHER = Hop(8, 1500, b"other!", b"source")
FIN, FIRST = 1, 16  # offload.h, of the client; << 1 of the real server
WEB = Virtual(VIP, {REAL: 1})
STICKY = WEB._replace(persistence=300)
ROUTED, TUNNELLED = WEB._replace(mode="dr"), WEB._replace(mode="tun")


class Kernel:
    """Maps as the program has them, and a follower, for a lab."""

    def __init__(
        self,
        *virtuals: Virtual,
        capacity: int = 64,
        room: int = 0,
        policy: Policy = KIND,
        ways: Mapping[str, Hop | None] | None = None,
    ) -> None:
        """Places, and keys that the map of flows has room for."""
        self.fds = [
            bpf.create("flows", bpf.HASH, Offload.KEY, Offload.FLOW, room or 2 * capacity, bpf.NO_PREALLOC),
            bpf.create("places", bpf.ARRAY, 4, Offload.PLACE, capacity + 1, bpf.MMAPABLE),
            bpf.create("control", bpf.ARRAY, 4, Offload.CONTROL, 1, bpf.MMAPABLE),
            bpf.create("events", bpf.RINGBUF, 0, 0, RING),
        ]
        self.places = mmap.mmap(self.fds[1], (capacity + 1) * Offload.PLACE)
        self.clock = FakeClock()
        self.lab = Lab(*virtuals, clock=self.clock, policy=policy, ways=ways)
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

    @property
    def refused(self) -> int:
        return self.offload.statistics()["refused"]

    def passed(self, place: int, requests: int = 0, replies: int = 0, ended: int = 0) -> None:
        """So many packets of a place were forwarded, and these ends seen, in all."""
        at, direction = place * Offload.PLACE, Offload.PLACE // 2
        struct.pack_into("=2Q44xI", self.places, at, requests, 40 * requests, ended)
        struct.pack_into("=2Q", self.places, at + direction, replies, 40 * replies)

    def answer(self, client: str = CLIENT) -> None:
        """A client's SYN and its real server's answer, which hands the connection down."""
        assert self.lab.send(tcp(client, VIP, "S")).reason == "forwarded"
        assert self.lab.send(tcp(REAL, client, "SA"), hook=FORWARD).reason == "returned"

    def ask(self, client: str = CLIENT, *, drained: bool = True) -> None:
        """A client's ACK; `drained`: nothing waits behind it."""
        self.lab.send(tcp(client, VIP, "A"))
        self.lab.workers[0].settle(drained)

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


def test_half_open_connections_go_before_their_time_though_the_kernel_would_forward_them(made: list[Kernel]) -> None:
    """drop_entry, and a flood of SYNs that real servers answer; whose client has spoken stays."""
    made.append(kernel := Kernel(WEB, policy=Policy(drop_entry=3)))
    for end in clients(8):
        kernel.answer(end)
    assert kernel.flows == 8
    kernel.passed(3, requests=1)
    assert kernel.lab.datapath.defend(kernel.clock()) == 7
    assert (kernel.flows, kernel.lab.table.used) == (1, 1)


def test_a_place_of_which_half_went_in_is_not_the_next_ones(made: list[Kernel]) -> None:
    """The kernel has room for three keys, a connection needs two."""
    made.append(kernel := Kernel(WEB, room=3))
    first, second, third = clients(3)
    kernel.answer(first)
    kernel.answer(second)
    assert (kernel.flows, kernel.refused) == (1, 1)
    kernel.passed(2, requests=1, ended=FIN | FIRST)  # the half that was in
    kernel.clock.advance(DEFAULTS.tcp_syn_recv + 1)
    kernel.lab.workers[0].expire(kernel.clock())
    kernel.answer(third)
    kernel.look()
    assert (kernel.state(), kernel.flows) == ("SYN_RECV", 1)


def test_what_the_kernel_refused_is_tried_again_after_a_second(made: list[Kernel]) -> None:
    made.append(kernel := Kernel(WEB, room=1))
    kernel.answer()
    assert kernel.refused == 1
    for _ in range(5):
        kernel.ask()
    assert kernel.refused == 1
    kernel.clock.advance(1)
    kernel.ask()
    assert kernel.refused == 2


@pytest.mark.parametrize("nominated", ["once it was installed", "long ago"])
def test_a_flow_that_goes_down_again_waits_for_an_empty_queue_again(made: list[Kernel], nominated: str) -> None:
    made.append(kernel := Kernel(ROUTED))
    slot = kernel.lab.slots["tcp", VIP, REAL]
    kernel.lab.datapath.lead(slot, LINK)
    kernel.lab.send(tcp(CLIENT, VIP, "S"))
    kernel.ask(drained=False)
    assert kernel.flows == 0
    if nominated == "once it was installed":
        kernel.clock.advance(0.2)
        kernel.ask(drained=False)
        assert kernel.flows == 1
        kernel.lab.datapath.lead(slot, OTHER)
        kernel.look()
        assert kernel.flows == 0
    else:
        kernel.clock.advance(10)
    kernel.ask(drained=False)
    assert kernel.flows == 0
    kernel.clock.advance(0.2)
    kernel.ask(drained=False)
    assert kernel.flows == 1


def test_of_a_handshake_with_secure_tcp_the_server_has_the_last_word(made: list[Kernel]) -> None:
    """It goes up while a connection is half open, and nothing comes up any more."""
    made.append(kernel := Kernel(WEB))
    kernel.answer()
    kernel.lab.configure(WEB, policy=Policy(secure_tcp=3))
    kernel.lab.datapath.defend(kernel.clock())
    kernel.passed(1, requests=1)
    kernel.look()
    assert kernel.lab.state() == ("SYN_RECV", DEFAULTS.tcp_syn_recv)
    kernel.clock.advance(5)
    kernel.look()
    assert kernel.lab.state() == ("SYN_RECV", DEFAULTS.tcp_syn_recv - 5), "nothing came"
    kernel.passed(1, requests=1, replies=1)
    kernel.look()
    assert kernel.lab.state() == ("ESTABLISHED", DEFAULTS.tcp)


def test_a_fin_is_not_lost_when_a_tunnel_becomes_narrower(made: list[Kernel]) -> None:
    way = Hop(7, 1500, b"server", b"source", endpoint("10.0.0.1:0").address)
    made.append(kernel := Kernel(TUNNELLED, ways={REAL: way}))
    kernel.lab.datapath.lead(kernel.lab.slots["tcp", VIP, REAL], way)
    kernel.lab.send(tcp(CLIENT, VIP, "S"))
    kernel.ask()
    assert kernel.flows == 1
    kernel.passed(1, requests=1, ended=FIN | FIRST)
    inside = ip("10.0.0.1", "10.0.0.2", 4, tcp(CLIENT, VIP))
    error = icmp("10.9.9.9", "10.0.0.1", 3, 4, inside, rest=(1400).to_bytes(4))
    assert kernel.lab.send(error, hook=INPUT).reason == "error_reissued"
    assert (kernel.state(), kernel.flows) == ("FIN_WAIT", 0)


def test_a_place_rests_for_a_second_of_the_clock(made: list[Kernel]) -> None:
    """However late the wheel is: here it stands where the lab's clock began."""
    made.append(kernel := Kernel(ROUTED, capacity=1))
    slot = kernel.lab.slots["tcp", VIP, REAL]
    kernel.lab.datapath.lead(slot, LINK)
    first, second = clients(2)
    for end in (first, second):
        kernel.lab.send(tcp(end, VIP, "S"))
    kernel.ask(first)
    assert kernel.flows == 1
    before = clock_gettime_ns(CLOCK_BOOTTIME)
    kernel.lab.datapath.lead(slot, OTHER)
    kernel.look()
    assert (kernel.flows, kernel.refused) == (0, 0)
    kernel.follower.go_through(before + 900_000_000)
    kernel.ask(second)
    assert (kernel.flows, kernel.refused) == (0, 1)
    kernel.follower.go_through(clock_gettime_ns(CLOCK_BOOTTIME) + 1_100_000_000)
    kernel.clock.advance(1)
    kernel.ask(second)
    assert kernel.flows == 1


@pytest.mark.parametrize(("real", "flows"), [("10.0.0.2:0", 0), ("10.0.0.2:80", 1)])
def test_rules_that_know_replies_by_their_clients_see_these_in_time(made: list[Kernel], real: str, flows: int) -> None:
    """A server with any port: nothing else tells its replies from its own business."""
    made.append(kernel := Kernel(Virtual("203.0.113.1:0", {real: 1}, persistence=300)))
    kernel.lab.send(tcp(CLIENT, VIP, "S"))
    kernel.lab.send(tcp("10.0.0.2:80", CLIENT, "SA"), hook=FORWARD)
    kernel.passed(1, 1, 1)
    kernel.look()
    kernel.clock.advance(DEFAULTS.tcp / 4)
    kernel.passed(1, 2, 2)
    kernel.look()
    assert kernel.flows == 1
    kernel.clock.advance(1)
    kernel.passed(1, 3, 3)
    kernel.look()
    assert kernel.flows == flows
    kernel.lab.send(tcp("10.0.0.2:80", CLIENT, "A"), hook=FORWARD)
    kernel.lab.workers[0].settle(True)
    assert kernel.flows == flows, "the rules did not see the client"
    kernel.ask()
    assert kernel.flows == 1


def test_errors_to_the_vips_of_a_mark_are_known_by_their_clients_too(made: list[Kernel]) -> None:
    """Of direct routing: the kernel's rules have to see the client again before they forget it."""
    made.append(kernel := Kernel(Virtual("0.0.0.0:0", {"10.0.0.2:0": 1}, mode="dr", mark=7)))
    (slot,) = kernel.lab.slots.values()
    kernel.lab.datapath.lead(slot, LINK)
    kernel.lab.send(tcp(CLIENT, VIP, "S"), mark=7)
    kernel.lab.send(tcp(CLIENT, VIP, "A"), mark=7)
    kernel.lab.workers[0].settle(True)
    kernel.passed(1, 1)
    kernel.look()
    assert kernel.flows == 1
    kernel.clock.advance(DEFAULTS.tcp / 4 + 1)
    kernel.passed(1, 2)
    kernel.look()
    assert kernel.flows == 0


def test_a_backup_that_leaves_requests_to_the_local_stack_hands_nothing_down(made: list[Kernel]) -> None:
    made.append(kernel := Kernel(WEB))
    kernel.answer()
    assert kernel.flows == 1
    kernel.lab.datapath.stand_by(True)
    kernel.look()
    assert kernel.flows == 0
    assert kernel.lab.send(tcp(REAL, CLIENT, "SA"), hook=FORWARD).reason == "returned"
    kernel.lab.workers[0].settle(True)
    assert kernel.flows == 0


def test_bytes_that_are_counted_after_their_packet_are_not_lost(made: list[Kernel]) -> None:
    made.append(kernel := Kernel(WEB))
    kernel.answer()
    slot = kernel.lab.slots["tcp", VIP, REAL]
    for size in (0, 40):
        struct.pack_into("=2Q", kernel.places, Offload.PLACE, 1, size)
        kernel.follower.count()
    before = len(tcp(CLIENT, VIP, "S"))
    assert kernel.lab.datapath.counted([slot])[slot][3] == before + 40
