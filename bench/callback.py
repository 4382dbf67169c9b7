"""The same NAT by netfilterqueue and a Python callback: `python -m bench.callback QUEUE VIP REAL ...`.

What an engine in plain Python can do, with struct and without detours: one unpack, one dictionary look-up, one pack a
packet. It does for a UDP or TCP packet over IPv4 what the core does for it: checks, look-up by addresses and ports,
round robin for a new flow, both directions, last-seen time, packet and byte counters, incremental checksums (RFC 1624).
It has no timers, no TCP states and one configuration for ever, which flatters it.
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

MAXLEN = 16384
BUFFER = 32 << 20
SO_RCVBUFFORCE = 33
# version and header length, length, fragment, protocol, checksum; addresses and ports
VIEW = struct.Struct("!BxHxxHxBH4s4sHH")
CHECKSUM = struct.Struct("!H")
CHECKSUM_AT = {socket.IPPROTO_TCP: 36, socket.IPPROTO_UDP: 26}
SHORTEST = 38
WORDS = struct.Struct("!6H")  # addresses and ports, as a checksum sees them
MORE_OR_OFFSET = 0x3FFF


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
    def __init__(self, vip: bytes, reals: list[bytes]) -> None:
        self.vip, self.next_real = vip, cycle(reals).__next__
        self.flows: dict[tuple[int, bytes, int, bytes, int], Flow] = {}

    def admit(self, protocol: int, client: bytes, cport: int, server: bytes, port: int) -> Flow | None:
        """Decide about a flow by its first packet; None for one that is not ours."""
        if server != self.vip:
            return None
        real = self.next_real()
        back = self.flows[protocol, real, port, client, cport] = Flow(server + client + struct.pack("!HH", port, cport))
        back.seen = time.monotonic()
        flow = self.flows[protocol, client, cport, server, port] = Flow(client + real + struct.pack("!HH", cport, port))
        return flow

    def handle(self, packet: Packet) -> None:
        data = packet.get_payload()
        if len(data) >= SHORTEST:
            start, length, fragment, protocol, check, source, destination, sport, dport = VIEW.unpack_from(data)
            at = CHECKSUM_AT.get(protocol)
            if start == 0x45 and at and not fragment & MORE_OR_OFFSET and length <= len(data):
                flow = self.flows.get((protocol, source, sport, destination, dport)) or self.admit(
                    protocol, source, sport, destination, dport
                )
                if flow is not None:
                    flow.seen = time.monotonic()
                    flow.packets += 1
                    flow.octets += length
                    old, new = WORDS.unpack_from(data, 12), WORDS.unpack(flow.new)
                    check = update(check, old[:4], new[:4])
                    (transport,) = CHECKSUM.unpack_from(data, at)
                    transport = (update(transport, old, new) or 0xFFFF) if transport or at == 36 else 0
                    packet.set_payload(
                        data[:10] + check.to_bytes(2) + flow.new + data[24:at] + transport.to_bytes(2) + data[at + 2 :]
                    )
        packet.accept()


def main(number: str, vip: str, *reals: str) -> None:
    queue = NetfilterQueue()
    queue.bind(int(number), Nat(socket.inet_aton(vip), [socket.inet_aton(real) for real in reals]).handle, MAXLEN)
    with socket.socket(fileno=os.dup(queue.get_fd())) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    print("ready", flush=True)
    queue.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
