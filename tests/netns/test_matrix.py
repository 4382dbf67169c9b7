"""Every kind of packet under every forwarding method, to real servers and to the director as its own real server.

Strategy: one network and one director for each method and engine, watched while the tests go through it. A
cell of the matrix passes when clients get what they should, and when everything that left the director is accounted for
(decode.py). Checksums are finished by software, so that all of them can be checked, but for the tests of super-packets.
"""

from __future__ import annotations

import itertools
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from netns import load
from netns.host import Host
from netns.topology import Net
from netns.wiring import endpoint, lan
from tests import sizes
from tests.netns.watch import Watch

SERVERS, LOCAL, CLOSED, LOCAL_CLOSED, NARROW = 7, 8, 9, 10, 11  # ports of the services, the first two of echo servers
DIVERTERS = {"fast": "nft", "reference": "iptables"}  # each engine under one, since neither depends on the other
SITES = [(engine, method) for engine in DIVERTERS for method in ("nat", "dr", "tun")]
LONGEST = 65_531  # bytes of an IP packet
COPIED = 4_016  # bytes of a packet that the reference engine sees
MTU, NARROW_MTU = 1500, 1400
UDP_SEGMENT = 103  # include/uapi/linux/udp.h
PORTS = itertools.cycle(range(30_000, 32_768))  # of datagrams, neither the kernel's choice nor that of netns.load

Answer = tuple[str, str]  # the server, and the client that it saw

pytestmark = [
    pytest.mark.parametrize(("engine", "method"), SITES, indirect=True, scope="module"),
    pytest.mark.parametrize("mode", [None, "local"], ids=["servers", "local"]),
    pytest.mark.parametrize("family", [4, 6]),
]


class Site(NamedTuple):
    """A network whose director runs all services of these tests."""

    net: Net
    watch: Watch
    engine: str


@pytest.fixture(scope="module")
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(method: str, engine: str, watch: Callable[[Net], Watch]) -> Iterator[Site]:
    with Net(servers=3, web=False, echo=True, mode=method) as net:
        net.director.start_echo(LOCAL)
        net.servers[2].start_echo(NARROW)
        net.offload(False)
        for host in net.hosts:  # an ICMP error must not fail to come because of the test before
            host.sysctl("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        for family, wide in ((4, 32), (6, 128)):
            net.director.ip(f"route add {net.servers[2].address(family)}/{wide} dev eth0 mtu {NARROW_MTU}")
        file = net.director.folder / "nfqlb.toml"
        file.write_text("\n".join(services(net, family) for family in (4, 6)))
        net.director.nfqlb("--config", str(file), "--engine", engine, "--diverter", DIVERTERS[engine])
        with watch(net) as watched:
            yield Site(net, watched, engine)


def services(net: Net, family: int) -> str:
    servers, director = net.servers[:2], [net.director]
    rows = [
        (SERVERS, ("tcp", "udp"), servers),
        (LOCAL, ("tcp", "udp"), director),
        (CLOSED, ("udp",), servers),
        (LOCAL_CLOSED, ("udp",), director),
        (NARROW, ("tcp",), net.servers[2:]),
    ]
    text = ""
    for port, protocols, hosts in rows:
        for protocol in protocols:
            text += f'[[service]]\nvip = "{net.service(port, family)}/{protocol}"\n'
            text += f'mode = "{net.mode}"\nscheduler = "rr"\n'
            for host in hosts:
                text += f'[[service.real]]\naddress = "{endpoint(host.address(family), port)}"\n'
    return text


class Cell(NamedTuple):
    """What a test of one cell needs to know."""

    net: Net
    watch: Watch
    engine: str
    mode: str
    family: int

    @property
    def port(self) -> int:
        return LOCAL if self.mode == "local" else SERVERS

    @property
    def closed(self) -> int:
        return LOCAL_CLOSED if self.mode == "local" else CLOSED

    @property
    def vip(self) -> str:
        return self.net.vip(self.family)

    @property
    def client(self) -> str:
        return self.net.client.address(self.family)

    @property
    def names(self) -> set[str]:
        """Of the machines that serve."""
        return {"d"} if self.mode == "local" else {"s1", "s2"}

    def check_answers(self, answers: list[Answer]) -> None:
        """Each server gave as many as any other, and saw the client itself."""
        assert load.split(answers) == dict.fromkeys(self.names, len(answers) // len(self.names))
        assert {seen for _, seen in answers} == {self.client}

    def open(self, host: Host, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        family = socket.AF_INET if self.family == 4 else socket.AF_INET6
        opened = host.inside(lambda: socket.socket(family, kind, protocol))
        opened.settimeout(5)
        return opened

    def connect(self, kind: socket.SocketKind, port: int, host: Host | None = None) -> socket.socket:
        """A socket of the client's, or of another's, connected to the VIP. Datagrams come from a port that none came
        from of late: by one of the kernel's choice they would now and then be of an older flow, with its real server.
        """
        opened = self.open(host or self.net.client, kind)
        if kind is socket.SOCK_DGRAM:
            opened.bind(("", next(PORTS)))
        opened.connect((self.vip, port))
        return opened

    def host(self, name: str) -> Host:
        return next(host for host in self.net.hosts if host.name == name)

    def send(self, packets: list[Packet], host: Host | None = None) -> None:
        """Send these from the client, or another, as they are."""
        with self.open(host or self.net.client, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for packet in packets:
                raw.sendto(bytes(packet), (packet.dst, 0))

    def ip(self, source: str, target: str, **more: object) -> Packet:
        """An IP header; `more` is named as IPv4 has it."""
        if self.family == 4:
            return IP(src=source, dst=target, **more)
        return IPv6(src=source, dst=target, **{{"ttl": "hlim"}[name]: value for name, value in more.items()})

    @property
    def icmp(self) -> int:
        return socket.IPPROTO_ICMP if self.family == 4 else socket.IPPROTO_ICMPV6


@pytest.fixture
def cell(site: Site, method: str, mode: str | None, family: int) -> Cell:
    forget(site.net.client)
    return Cell(*site, mode or method, family)


# -- TCP and UDP ------------------------------------------------------------------------------------------------------


@contextmanager
def offloading(net: Net) -> Iterator[None]:
    net.offload(True)
    yield
    net.offload(False)


def talk(cell: Cell, count: int, size: int, port: int = 0, host: Host | None = None) -> list[Answer]:
    """A line of so many bytes on each of several connections, all at once; who repeated it."""
    line, end = b"." * (size - 1) + b"\n", (socket.SOCK_STREAM, port or cell.port, host)
    with ExitStack() as stack:
        connections = [stack.enter_context(cell.connect(*end)) for _ in range(count)]
        files = [stack.enter_context(connection.makefile("rb")) for connection in connections]
        for connection in connections:
            connection.sendall(line)
        return [answer(file.readline(), line) for file in files]


def ask(cell: Cell, count: int, size: int) -> list[Answer]:
    """Datagrams of so many bytes, each from a port of its own, one after the other; who repeated it."""
    answers = []
    for _ in range(count):
        data = random.randbytes(size)
        with cell.connect(socket.SOCK_DGRAM, cell.port) as asking:
            asking.send(data)
            answers.append(answer(asking.recv(LONGEST), data))
    return answers


def answer(heard: bytes, said: bytes) -> Answer:
    server, client, body = heard.split(b" ", 2)
    assert body == said
    return server.decode(), client.decode()


def ask_in_segments(cell: Cell, count: int, size: int) -> None:
    """Datagrams from one port, handed to the kernel as one, are all repeated."""
    sent = [number.to_bytes(size) for number in range(1, count + 1)]
    with cell.connect(socket.SOCK_DGRAM, cell.port) as asking:
        asking.sendmsg([b"".join(sent)], [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))])
        heard = [asking.recv(LONGEST).split(b" ", 2)[2] for _ in sent]
    assert sorted(heard) == sent


@pytest.mark.cell(kind="tcp")
def test_connections_are_spread_and_their_bytes_arrive(cell: Cell) -> None:
    cell.check_answers(talk(cell, 4, 20_000))
    assert cell.watch.check().unfinished == 0


@pytest.mark.cell(kind="super-packets")
def test_super_packets_arrive(cell: Cell) -> None:
    with offloading(cell.net):
        cell.check_answers(talk(cell, 4, 60_000))
        if cell.mode == "nat":
            assert load.split(talk(cell, 2, 60_000, host=cell.net.director)) == {"s1": 1, "s2": 1}
    assert cell.watch.check().long > 0


@pytest.mark.cell(kind="udp")
def test_datagrams_and_those_of_a_segment_sender_arrive(cell: Cell) -> None:
    for size in (1, 1452):
        cell.check_answers(ask(cell, 4, size))
    ask_in_segments(cell, 16, 1200)
    assert cell.watch.check().unfinished == 0
    with offloading(cell.net):
        for _ in range(sizes.DATAGRAMS // 16):
            ask_in_segments(cell, 16, 1200)
    assert cell.watch.check().long > 0


# -- fragments --------------------------------------------------------------------------------------------------------


ORDERS: dict[str, Callable[[list[Packet]], list[Packet]]] = {
    "as cut": lambda pieces: pieces,
    "backwards": lambda pieces: pieces[::-1],
    "shuffled": lambda pieces: random.Random(1).sample(pieces, len(pieces)),
}


def cut(packet: Packet) -> list[Packet]:
    if packet.version == 4:
        return list(fragment(packet, 1480))
    payload, size = bytes(packet)[40:], 1448
    header = IPv6(src=packet.src, dst=packet.dst, hlim=packet.hlim)
    starts = range(0, len(payload), size)
    number = random.getrandbits(32)
    return [
        header
        / IPv6ExtHdrFragment(nh=packet.nh, id=number, offset=at // 8, m=at + size < len(payload))
        / Raw(payload[at : at + size])
        for at in starts
    ]


def datagram(cell: Cell, source: str, sport: int, target: str, dport: int, data: bytes) -> Packet:
    packet = cell.ip(source, target) / UDP(sport=sport, dport=dport) / Raw(data)
    if cell.family == 4:
        packet.id = random.randrange(1, 1 << 16)
    return packet


def answer_in_pieces(cell: Cell, size: int, order: Callable[[list[Packet]], list[Packet]]) -> None:
    """A datagram whose fragments come in that order is answered; under NAT, an answer in such fragments arrives."""
    data = random.randbytes(size)
    with cell.connect(socket.SOCK_DGRAM, cell.port) as waiting:
        port = waiting.getsockname()[1]
        cell.send(order(cut(datagram(cell, cell.client, port, cell.vip, cell.port, data))))
        server, seen, body = waiting.recv(LONGEST).split(b" ", 2)
        if cell.mode == "nat":
            host = cell.host(server.decode())
            answer = datagram(cell, host.address(cell.family), cell.port, cell.client, port, data)
            cell.send(order(cut(answer)), host)
            assert waiting.recv(LONGEST) == data
    assert server.decode() in cell.names
    assert seen.decode() == cell.client
    assert body == data[: len(body)]
    assert len(body) >= size - 60  # an answer of the longest is cut to leave room for the server's name


@pytest.mark.cell(kind="fragments")
def test_fragments_in_any_order_are_forwarded(cell: Cell) -> None:
    for size in (1473, COPIED - 100) if cell.engine == "reference" else (1473, 8000, 40_000):
        cell.check_answers(ask(cell, 2, size))
        for order in ORDERS.values():
            answer_in_pieces(cell, size, order)
    cell.watch.check()


@pytest.mark.cell(kind="longest")
def test_the_longest_datagram_is_forwarded(cell: Cell) -> None:
    for order in ORDERS.values():
        answer_in_pieces(cell, LONGEST - (28 if cell.family == 4 else 48), order)
    cell.watch.check()


# -- ICMP errors and path MTU -----------------------------------------------------------------------------------------


@pytest.mark.cell(kind="icmp-error")
def test_a_closed_port_is_told_to_the_client(cell: Cell) -> None:
    for host in (cell.net.client, cell.net.director)[: 2 if cell.mode == "nat" else 1]:
        with cell.connect(socket.SOCK_DGRAM, cell.closed, host) as asking:
            asking.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                asking.recv(1)
    cell.watch.check()


@pytest.mark.cell(kind="icmp-error")
def test_a_clients_error_about_an_answer_reaches_the_server(cell: Cell) -> None:
    with cell.connect(socket.SOCK_DGRAM, cell.port) as asking:
        asking.send(b"?")
        server = asking.recv(100).split()[0].decode()
        port = asking.getsockname()[1]
    host = cell.host(server)
    answer = cell.ip(cell.vip, cell.client) / UDP(sport=cell.port, dport=port) / Raw(b"12345678")
    refusal = ICMP(type=3, code=3) if cell.family == 4 else ICMPv6DestUnreach(code=4)
    with cell.open(host, socket.SOCK_RAW, cell.icmp) as hearing:
        cell.send([cell.ip(cell.client, cell.vip) / refusal / Raw(bytes(answer))])
        heard = hearing.recv(1000)
    known = host.address(cell.family) if cell.net.mode == "nat" else cell.vip
    quote = heard[28:] if cell.family == 4 else heard[8:]
    inside = IP(quote) if cell.family == 4 else IPv6(quote)
    assert (inside.src, inside.dst, inside[UDP].sport, inside[UDP].dport) == (known, cell.client, cell.port, port)
    cell.watch.check()


@pytest.mark.cell(kind="expired")
def test_a_packet_whose_time_is_over_is_told_to_the_client(cell: Cell) -> None:
    with (
        cell.connect(socket.SOCK_DGRAM, cell.port) as asking,
        cell.open(cell.net.client, socket.SOCK_RAW, cell.icmp) as hearing,
    ):
        ports = UDP(sport=asking.getsockname()[1], dport=cell.port)
        cell.send([cell.ip(cell.client, cell.vip, ttl=2) / ports / Raw(b"12345678")])
        heard = hearing.recv(1000)
    heard = heard[20:] if cell.family == 4 else heard
    assert heard[0] == (11 if cell.family == 4 else 3)
    assert cell.watch.check().errors == 1


def forget(*hosts: Host) -> None:
    """All that was learnt of path MTUs."""
    for host in hosts:
        for family in ("-4", "-6"):
            host.run(["ip", family, "route", "flush", "cache"])


@pytest.mark.cell(kind="pmtu-to-client")
def test_a_smaller_mtu_towards_the_client_is_heard_by_the_server(cell: Cell) -> None:
    towards_client = lan(1).prefixes.of(cell.family)
    cell.net.router.narrow(towards_client, "lan1", 1300)
    try:
        cell.check_answers(talk(cell, 2, 20_000))
    finally:
        cell.net.router.narrow(towards_client, "lan1", MTU)
        forget(*cell.net.servers, cell.net.director)
    account = cell.watch.check()
    assert cell.mode == "local" or account.errors > 0


@pytest.mark.cell(kind="pmtu-to-server")
def test_a_smaller_mtu_towards_the_server_is_told_to_the_client(cell: Cell) -> None:
    assert load.split(talk(cell, 2, 20_000, NARROW)) == {"s3": 2}
    forget(cell.net.client)
    assert cell.watch.check().errors > 0
