"""Which packets the rules send to which queue: real packets of a client, a server and the director itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from netns.host import Host
from netns.topology import Net
from nfqlb.kernel.plan import Plan
from tests.netns.kernelproxy import FORWARD, INPUT, OUTPUT, PREROUTING, KernelProxy, Taken
from tests.plans import reals_of, services_of, serving

GSO, PLAIN, FIRST = 10, 11, 12
PORT, REAL_PORT = 80, 8080

SEND = """
import json, socket, sys
for family, source, destination, packet in json.load(sys.stdin):
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    sock = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.sendto(bytes.fromhex(packet), (destination, 0))
"""
ASK = """
import socket, sys
kind, host, port, size = sys.argv[1:]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, getattr(socket, kind))
sock.settimeout(0.3)
try:
    sock.connect((host, int(port)))
    sock.send(b"x" * int(size))
except OSError:
    pass
"""


class Lab(NamedTuple):
    """A director whose Kernel has applied `plan` and whose queues accept everything."""

    net: Net
    kernel: KernelProxy
    plan: Plan
    family: int

    @property
    def client(self) -> str:
        return self.net.client.address(self.family)

    @property
    def vip(self) -> str:
        return self.net.vip(self.family)

    @property
    def server(self) -> str:
        return self.net.servers[0].address(self.family)

    def send(self, host: Host, *packets: Packet) -> list[Taken]:
        """Send these from a host; what was queued."""
        rows = [(self.family, packet.src, packet.dst, bytes(packet).hex()) for packet in packets]
        host.run([sys.executable, "-c", SEND], stdin=json.dumps(rows))
        taken = self.kernel.taken()
        if self.plan.diverter == "nft":
            return taken
        # closed ports answer with "unreachable", and iptables cannot tell whose packets these are about
        protocol, kind = (9, 20) if self.family == 4 else (6, 40)
        unreachable = (1, 3) if self.family == 4 else (58, 1)
        return [packet for packet in taken if (packet.payload[protocol], packet.payload[kind]) != unreachable]

    def ip(self, source: str, destination: str) -> Packet:
        return (IP if self.family == 4 else IPv6)(src=source, dst=destination)

    def fragments(self, source: str, destination: str, sport: int, dport: int) -> list[Packet]:
        """A datagram in two fragments."""
        payload = bytes(UDP(sport=sport, dport=dport, len=1208, chksum=0) / Raw(b"x" * 1200))
        if self.family == 4:
            head, tail = (
                IP(src=source, dst=destination, id=7, proto=17, flags="MF"),
                IP(src=source, dst=destination, id=7, proto=17, frag=80),
            )
            return [head / Raw(payload[:640]), tail / Raw(payload[640:])]
        parts = (IPv6ExtHdrFragment(nh=17, id=7, m=1), IPv6ExtHdrFragment(nh=17, id=7, offset=80))
        return [
            IPv6(src=source, dst=destination) / part / Raw(p)
            for part, p in zip(parts, (payload[:640], payload[640:]), strict=True)
        ]

    def error(self, source: str, destination: str, about: Packet) -> Packet:
        """An ICMP error that quotes a packet."""
        icmp = ICMP(type=11) if self.family == 4 else ICMPv6PacketTooBig(mtu=1280)
        return self.ip(source, destination) / icmp / Raw(bytes(about))


EVERY = [pytest.param((kind, family), id=f"{kind}-{family}") for kind in ("nft", "iptables") for family in (4, 6)]


@pytest.fixture(scope="module", params=EVERY)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """For tests that leave it as it was: all of them share one."""
    with make_lab(*request.param) as made:
        yield made


@pytest.fixture(params=EVERY)
def own_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """For tests that change it."""
    with make_lab(*request.param) as made:
        yield made


@contextmanager
def make_lab(
    kind: str,
    family: int,
    gso: tuple[int, ...] = (GSO,),
    plain: tuple[int, ...] = (PLAIN,),
    syn: tuple[int, ...] = (FIRST,),
) -> Iterator[Lab]:
    with Net(servers=1, arms=2, web=False) as net:
        vip, server = net.vip(family), net.servers[0].address(family)
        services = {(protocol, vip, PORT) for protocol in (6, 17)}
        reals = {(protocol, server, REAL_PORT) for protocol in (6, 17)}
        plan = serving(Plan("packets", gso=gso, plain=plain, syn=syn, diverter=kind), services, reals)
        kernel = KernelProxy(net.director.namespace, "packets", net.director.folder / "kernel.json")
        try:
            assert set(kernel.bind(gso + plain + syn)) == {*gso, *plain, *syn}
            kernel.apply(plan)
            yield Lab(net, kernel, plan, family)
        finally:
            kernel.crash()


def where(taken: list[Taken]) -> list[tuple[int, int]]:
    return [(packet.queue, packet.hook) for packet in taken]


def test_requests(lab: Lab) -> None:
    to_vip = lab.ip(lab.client, lab.vip)
    client = lab.net.client
    assert where(lab.send(client, to_vip / TCP(sport=4000, dport=PORT))) == [(FIRST, PREROUTING)]
    for flags in ("A", "PA", "FA", "R", "SA"):
        assert where(lab.send(client, to_vip / TCP(sport=4000, dport=PORT, flags=flags))) == [(GSO, PREROUTING)]
    assert where(lab.send(client, to_vip / UDP(sport=4000, dport=PORT))) == [(PLAIN, PREROUTING)]


def test_replies(lab: Lab) -> None:
    to_client = lab.ip(lab.server, lab.client)
    server = lab.net.servers[0]
    assert where(lab.send(server, to_client / TCP(sport=REAL_PORT, dport=4000, flags="SA"))) == [(GSO, FORWARD)]
    assert where(lab.send(server, to_client / UDP(sport=REAL_PORT, dport=4000))) == [(PLAIN, FORWARD)]


def test_fragments_come_reassembled(lab: Lab) -> None:
    request = lab.fragments(lab.client, lab.vip, 4000, PORT)
    assert where(lab.send(lab.net.client, *request)) == [(PLAIN, PREROUTING)]
    reply = lab.fragments(lab.server, lab.client, REAL_PORT, 4000)
    assert where(lab.send(lab.net.servers[0], *reply[::-1])) == [(PLAIN, FORWARD)]


def test_icmp_errors(lab: Lab) -> None:
    about_reply = lab.ip(lab.vip, lab.client) / UDP(sport=PORT, dport=4000) / Raw(b"12345678")
    about_request = lab.ip(lab.client, lab.server) / UDP(sport=4000, dport=REAL_PORT) / Raw(b"12345678")
    assert where(lab.send(lab.net.client, lab.error(lab.client, lab.vip, about_reply))) == [(PLAIN, PREROUTING)]
    error = lab.error(lab.server, lab.client, about_request)
    assert where(lab.send(lab.net.servers[0], error)) == [(PLAIN, FORWARD)]


def test_directors_own_client(lab: Lab) -> None:
    director = lab.net.director
    for kind, queue in (("SOCK_STREAM", FIRST), ("SOCK_DGRAM", PLAIN)):
        director.run([sys.executable, "-c", ASK, kind, lab.vip, str(PORT), "10"])
        taken = where(lab.kernel.taken())
        assert (queue, OUTPUT) in taken
        assert {packet[0] for packet in taken} == {queue}
    reply = lab.ip(lab.server, director.address(lab.family)) / UDP(sport=REAL_PORT, dport=4000)
    assert where(lab.send(lab.net.servers[0], reply)) == [(PLAIN, INPUT)]


def test_a_real_servers_endpoint_never_asks(lab: Lab) -> None:
    """Else a service on the port of a client of the director's would catch the replies to it."""
    reply = lab.ip(lab.server, lab.vip) / UDP(sport=REAL_PORT, dport=PORT)
    assert where(lab.send(lab.net.servers[0], reply)) == [(PLAIN, INPUT)]
    client = lab.ip(lab.server, lab.vip) / UDP(sport=4000, dport=PORT)
    assert where(lab.send(lab.net.servers[0], client)) == [(PLAIN, PREROUTING)]


def test_bystanders(lab: Lab) -> None:
    director = lab.net.director.address(lab.family)
    echo = ICMP() if lab.family == 4 else ICMPv6EchoRequest()
    from_client = [
        lab.ip(lab.client, lab.vip) / TCP(sport=4000, dport=81),
        lab.ip(lab.client, lab.vip) / UDP(sport=4000, dport=81),
        lab.ip(lab.client, lab.vip) / echo,
        lab.ip(lab.client, lab.server) / TCP(sport=4000, dport=PORT),
        lab.ip(lab.client, lab.server) / UDP(sport=4000, dport=PORT),
        lab.ip(lab.client, director) / TCP(sport=4000, dport=PORT),
        *lab.fragments(lab.client, director, 4000, PORT),
        *lab.fragments(lab.client, lab.server, 4000, PORT),
    ]
    assert lab.send(lab.net.client, *from_client) == []
    from_server = [
        lab.ip(lab.server, lab.client) / TCP(sport=81, dport=4000),
        lab.ip(lab.server, lab.client) / UDP(sport=81, dport=PORT),
        lab.ip(lab.server, lab.client) / echo,
        lab.ip(lab.server, lab.vip) / echo,
    ]
    assert lab.send(lab.net.servers[0], *from_server) == []


def test_without_a_listener_packets_wait_for_one(own_lab: Lab) -> None:
    """They are dropped and repeated, not handed to the local stack, which would answer with a reset."""
    lab = own_lab
    lab.kernel.crash()
    with lab.net.client.capture("tcp", "eth0") as path:
        lab.net.client.run([sys.executable, "-c", ASK, "SOCK_STREAM", lab.vip, str(PORT), "1"])
    flags = lab.net.client.run(["tcpdump", "-n", "-r", str(path)]).stdout
    assert "[S]" in flags
    assert "[R" not in flags


def test_members_added_while_packets_flow(own_lab: Lab) -> None:
    lab = own_lab
    more = serving(
        lab.plan,
        services_of(lab.plan) | {(17, lab.vip, 81)},
        reals_of(lab.plan) - {(6, lab.server, REAL_PORT)} | {(6, lab.server, 81)},
    )
    lab.kernel.apply(more)
    assert where(lab.send(lab.net.client, lab.ip(lab.client, lab.vip) / UDP(dport=81))) == [(PLAIN, PREROUTING)]
    server, to_client = lab.net.servers[0], lab.ip(lab.server, lab.client)
    assert where(lab.send(server, to_client / TCP(sport=81, dport=4000, flags="SA"))) == [(GSO, FORWARD)]
    assert lab.send(server, to_client / TCP(sport=REAL_PORT, dport=4000, flags="SA")) == []


@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
def test_forward_accepts_what_nfqlb_forwards_and_nothing_else(own_lab: Lab, tracked: bool) -> None:
    """Under policy DROP: a request as it looks after its rewriting, its reply, and a client that goes past the VIP."""
    lab = own_lab
    program = "iptables" if lab.family == 4 else "ip6tables"
    director = lab.net.director
    if tracked:
        director.run([program, "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"])
        director.run(["conntrack", "-L"])
    director.run([program, "-P", "FORWARD", "DROP"])
    lab.net.client.run([sys.executable, "-c", ASK, "SOCK_DGRAM", director.address(lab.family), "9", "1"])
    lab.kernel.repair()
    rules = director.run([program, "-S"]).stdout
    assert ("UNTRACKED" in rules) == tracked
    reply = lab.ip(lab.server, lab.client) / UDP(sport=REAL_PORT, dport=4000)
    past = lab.ip(lab.client, lab.server) / UDP(sport=4000, dport=REAL_PORT)
    other = lab.ip(lab.client, lab.server) / UDP(sport=4000, dport=9)
    assert delivered(lab, lab.net.servers[0], lab.net.client, reply)
    assert delivered(lab, lab.net.client, lab.net.servers[0], past) == (not tracked)
    assert not delivered(lab, lab.net.client, lab.net.servers[0], other)


def delivered(lab: Lab, sender: Host, receiver: Host, packet: Packet) -> bool:
    with receiver.capture(f"udp and src host {packet.src}", "eth0") as path:
        lab.send(sender, packet)
    return "UDP" in receiver.run(["tcpdump", "-n", "-r", str(path)]).stdout


@pytest.mark.parametrize("family", [4, 6])
def test_both_directions_of_a_flow_reach_one_worker(family: int) -> None:
    """So do ICMP errors about it; and one client's flows spread over all workers."""
    with make_lab("nft", family, (10, 11, 12), (20, 21, 22), (30, 31, 32)) as lab:
        client, server = lab.net.client, lab.net.servers[0]
        chosen: dict[int, list[int]] = {}
        for port in range(4000, 4040, 2):
            request, reply = lab.ip(lab.client, lab.vip), lab.ip(lab.server, lab.client)
            quoted = lab.ip(lab.vip, lab.client) / UDP(sport=PORT, dport=port) / Raw(b"12345678")
            about_request = lab.ip(lab.client, lab.server) / UDP(sport=port, dport=REAL_PORT) / Raw(b"12345678")
            taken = lab.send(
                client,
                request / TCP(sport=port, dport=PORT),
                request / UDP(sport=port, dport=PORT),
                lab.error(lab.client, lab.vip, quoted),
            )
            taken += lab.send(
                server,
                reply / TCP(sport=REAL_PORT, dport=port, flags="SA"),
                reply / UDP(sport=REAL_PORT, dport=port),
                lab.error(lab.server, lab.client, about_request),
            )
            assert len(taken) == 6
            assert sorted(packet.queue // 10 for packet in taken) == [1, 2, 2, 2, 2, 3]
            chosen[port] = [packet.queue % 10 for packet in taken]
        assert all(len(set(workers)) == 1 for workers in chosen.values()), chosen
        assert {workers[0] for workers in chosen.values()} == {0, 1, 2}


@pytest.mark.parametrize("family", [4, 6])
def test_iptables_gives_each_port_of_a_client_to_one_worker(family: int) -> None:
    with make_lab("iptables", family, (10, 11, 12), (20, 21, 22), (30, 31, 32)) as lab:
        there, back = lab.ip(lab.client, lab.vip), lab.ip(lab.server, lab.client)
        chosen: dict[int, set[int]] = {}
        for port in range(40_000, 40_256, 20):
            taken = lab.send(lab.net.client, there / TCP(sport=port, dport=PORT), there / UDP(sport=port, dport=PORT))
            taken += lab.send(
                lab.net.servers[0],
                back / TCP(sport=REAL_PORT, dport=port, flags="SA"),
                back / UDP(sport=REAL_PORT, dport=port),
            )
            assert sorted(packet.queue // 10 for packet in taken) == [1, 2, 2, 3]
            chosen[port] = {packet.queue % 10 for packet in taken}
        assert all(len(workers) == 1 for workers in chosen.values()), chosen
        assert set().union(*chosen.values()) == {0, 1, 2}
