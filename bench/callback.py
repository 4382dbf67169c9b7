"""The same NAT by netfilterqueue and a Python callback: `python -m bench.callback QUEUE VIP:PORT REAL:PORT ...`.

What an engine in plain Python can do, with struct and without detours: one unpack, one dictionary look-up, one pack a
packet. It does for a UDP packet over IPv4 what the core does for it: checks, look-up by addresses and ports, round
robin for a new flow, both directions, last-seen time, packet and byte counters, incremental checksums (RFC 1624). It
has no timers, no TCP states and one configuration for ever, which flatters it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from itertools import cycle

from netfilterqueue import NetfilterQueue, Packet

from bench import share

MAXLEN = 16384
BUFFER = 32 << 20
SO_RCVBUFFORCE = 33
# version and header length, length, fragment, protocol, checksum; addresses and ports; UDP checksum
VIEW = struct.Struct("!BxHxxHxBH4s4sHHxxH")
WORDS = struct.Struct("!6H")  # addresses and ports, as a checksum sees them
MORE_OR_OFFSET = 0x3FFF

Endpoint = tuple[bytes, int]


@dataclass(slots=True)
class Flow:
    """One direction of a connection: what its packets get instead of their addresses and ports."""

    new: bytes
    seen: float = 0.0
    packets: int = 0
    octets: int = 0


def update(check: int, old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """The checksum after `old` became `new` (RFC 1624, equation 3)."""
    total = (check ^ 0xFFFF) + sum(new) + 0xFFFF * len(old) - sum(old)
    total = (total & 0xFFFF) + (total >> 16)
    return ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF


class Nat:
    def __init__(self, vip: Endpoint, reals: list[Endpoint]) -> None:
        self.vip, self.next_real = vip, cycle(reals).__next__
        self.flows: dict[tuple[bytes, int, bytes, int], Flow] = {}

    def admit(self, client: bytes, cport: int, server: bytes, sport: int) -> Flow | None:
        """Decide about a flow by its first packet; None for one that is not ours."""
        if (server, sport) != self.vip:
            return None
        real, rport = self.next_real()
        back = self.flows[real, rport, client, cport] = Flow(server + client + struct.pack("!HH", sport, cport))
        back.seen = time.monotonic()
        flow = self.flows[client, cport, server, sport] = Flow(client + real + struct.pack("!HH", cport, rport))
        return flow

    def handle(self, packet: Packet) -> None:
        data = packet.get_payload()
        if len(data) >= VIEW.size:
            start, length, fragment, protocol, check, source, destination, sport, dport, udp = VIEW.unpack_from(data)
            if start == 0x45 and protocol == 17 and not fragment & MORE_OR_OFFSET and length <= len(data):
                flow = self.flows.get((source, sport, destination, dport)) or self.admit(
                    source, sport, destination, dport
                )
                if flow is not None:
                    flow.seen = time.monotonic()
                    flow.packets += 1
                    flow.octets += length
                    old, new = WORDS.unpack_from(data, 12), WORDS.unpack(flow.new)
                    check = update(check, old[:4], new[:4])
                    udp = (update(udp, old, new) or 0xFFFF) if udp else 0
                    packet.set_payload(
                        data[:10] + check.to_bytes(2) + flow.new + data[24:26] + udp.to_bytes(2) + data[28:]
                    )
        packet.accept()


def endpoint(text: str) -> Endpoint:
    address, port = text.split(":")
    return socket.inet_aton(address), int(port)


def main(number: str, vip: str, *reals: str) -> None:
    share.take(share.ENGINE)
    queue = NetfilterQueue()
    queue.bind(int(number), Nat(endpoint(vip), [endpoint(real) for real in reals]).handle, MAXLEN)
    with socket.socket(fileno=os.dup(queue.get_fd())) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    print("ready", flush=True)
    queue.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
