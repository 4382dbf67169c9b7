"""Packets that ask a VIP on one real server, as another implementation reads them, and whose answer is whose."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

from nfqlb.health.direct import Direct
from nfqlb.health.stream import Failed, Unknown
from nfqlb.kernel import neighbours

OURS = {4: "10.2.0.1", 6: "2001:db8::1"}
VIP = {4: "203.0.113.10", 6: "2001:db8:1::10"}
PORT = 40_000


class Wire(Direct):
    """What is sent is kept; what comes is given to `hear`."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version, self.sent = version, list[bytes]()

    def _open(self, version: int) -> None:
        self._port = PORT

    def _framed(self, version: int, way: neighbours.Hop) -> Any:
        return self.sent.append

    async def last(self) -> Packet:
        while not self.sent:
            await asyncio.sleep(0)
        return read(self.sent.pop(0))

    def hear(self, packet: Packet) -> None:
        self._take(self.version, bytes(packet))


def read(data: bytes) -> Packet:
    """The packet, whose checksums must be right."""
    packet = (IP if data[0] >> 4 == 4 else IPv6)(data)
    again = packet.copy()
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (ICMP, "chksum"), (ICMPv6EchoRequest, "cksum")):
        if layer in again:
            delattr(again[layer], field)
    assert bytes(again) == data
    return packet


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    packed = ipaddress.ip_address(OURS[request.param]).packed
    way = neighbours.Hop(2, 1500, b"mac---", b"own---", packed.rjust(16, bytes(1)))
    monkeypatch.setattr(neighbours, "hops", lambda servers: dict.fromkeys(servers, way))
    return int(request.param)


def ask(wire: Wire, server: str, port: int = 80, seconds: float = 9.0) -> asyncio.Task[None]:
    asking = wire.ask(server, "dr", VIP[wire.version], port, source="", seconds=seconds)
    return asyncio.create_task(asking)


def back(packet: Packet, **tcp: Any) -> Packet:
    kind = IP if IP in packet else IPv6
    return kind(src=packet[kind].dst, dst=packet[kind].src) / TCP(sport=packet[TCP].dport, dport=PORT, **tcp)


def test_a_connection_that_is_granted_and_reset(version: int) -> None:
    async def live() -> None:
        wire = Wire(version)
        one, other = ask(wire, "10.2.0.11"), ask(wire, "10.2.0.12")
        syns = [await wire.last(), await wire.last()]
        for syn in syns:
            assert (syn.src, syn.dst) == (OURS[version], VIP[version])
            assert (syn[TCP].sport, syn[TCP].dport, str(syn[TCP].flags)) == (PORT, 80, "S")
        assert syns[0][TCP].seq != syns[1][TCP].seq
        wire.hear(back(syns[1], flags="RA", ack=syns[1][TCP].seq + 1 & 0xFFFFFFFF))
        with pytest.raises(ConnectionRefusedError):
            await other
        assert not one.done()
        wire.hear(back(syns[0], flags="SA", ack=syns[0][TCP].seq + 1 & 0xFFFFFFFF))
        await one
        reset = await wire.last()
        assert (str(reset[TCP].flags), reset[TCP].seq) == ("R", syns[0][TCP].seq + 1 & 0xFFFFFFFF)

    asyncio.run(asyncio.wait_for(live(), 10))


def test_what_is_left_of_a_connection_of_before_is_reset_and_asked_again(version: int) -> None:
    async def live() -> None:
        wire = Wire(version)
        asked = ask(wire, "10.2.0.11", seconds=0.15)
        syn = await wire.last()
        wire.hear(back(syn, flags="SA", ack=12345))
        reset = await wire.last()
        assert (str(reset[TCP].flags), reset[TCP].seq) == ("R", 12345)
        again = await asyncio.wait_for(wire.last(), 5)
        assert again[TCP].seq == syn[TCP].seq
        wire.hear(back(syn, flags="SA", ack=syn[TCP].seq + 1 & 0xFFFFFFFF))
        await asked

    asyncio.run(asyncio.wait_for(live(), 10))


def test_a_ping(version: int) -> None:
    async def live() -> None:
        wire = Wire(version)
        asked = ask(wire, "10.2.0.11", port=0)
        echo = await wire.last()
        kind, request = (IP, ICMP) if version == 4 else (IPv6, ICMPv6EchoRequest)
        assert echo[request].id == PORT
        data = bytes(echo[request])[8:]
        for load in (b"none", data):
            assert not asked.done()
            reply = ICMP(type=0, id=PORT) / load if version == 4 else ICMPv6EchoReply(id=PORT, data=load)
            wire.hear(kind(src=VIP[version], dst=OURS[version]) / reply)
            await asyncio.sleep(0)
        await asked

    asyncio.run(asyncio.wait_for(live(), 10))


@pytest.mark.parametrize(
    ("ways", "error"),
    [
        ({}, Failed),
        ({"10.2.0.11": neighbours.HERE}, Unknown),
        ({"10.2.0.11": neighbours.Hop(2, 1500, b"mac---", b"own---")}, Unknown),
    ],
    ids=["no way", "this machine", "no address"],
)
def test_who_cannot_be_asked(ways: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "hops", lambda servers: ways)

    async def live() -> None:
        with pytest.raises(error):
            await ask(Wire(4), "10.2.0.11")

    asyncio.run(live())


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60", bytes(20), bytes(60), b"\x4f" + bytes(30)])
@pytest.mark.parametrize("version", [4, 6])
def test_what_is_no_answer_is_passed_over(version: int, data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.send(data)
        ours.setblocking(False)
        Direct()._hear(version, ours)
